"""Print the page about the command line, in Markdown, made of the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from virnucpro.cli import app
from virnucpro.cli.program import as_helped

HEAD = """\
# Command line

```sh
virnucpro COMMAND -h    # the options and examples of a command
```

Messages, progress and errors go to stderr, and the output of `stats` and JSON to stdout. Errors
begin with `virnucpro: error:` and warnings with `virnucpro: warning:`; each is one line. Numbers
may be written as 16384, 16,384, 16_384 or 16k: `k` is 1,024 and `m` 1,048,576.

| Command | Purpose |
| --- | --- |
{commands}

Names of commands and options are completed in bash after this line, which belongs in `~/.bashrc`:

```sh
eval "$(_VIRNUCPRO_COMPLETE=bash_source virnucpro)"
```

In zsh, write `zsh_source` instead; in fish,
`_VIRNUCPRO_COMPLETE=fish_source virnucpro | source`.
"""


def escape(text: str) -> str:
    """Return text with options as code, and what Markdown would read as markup escaped."""
    text = re.sub(r"(`[^`]*`)|(?<![\w-])(--[a-z-]+)", lambda m: m[1] or f"`{m[2]}`", text)
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_\[\]|<>])", r"\\\1", part) for part in parts
    )


def describe(name: str) -> Iterator[str]:
    """Yield the parts of the section about a command."""
    command = as_helped(app.commands[name])
    ctx = click.Context(command, click.Context(app, **app.context_settings), name)
    usage = " ".join(command.collect_usage_pieces(ctx))
    summary, *others = command.paragraphs
    yield f"## virnucpro {name}"
    yield escape(summary)
    yield f"```text\nvirnucpro {name} {usage}\n```"
    yield from map(escape, others)
    yield f"Examples:\n\n```sh\n{command.examples}\n```"
    for heading, rows in command.lists(ctx).items():
        yield f"**{heading}**"
        # A table would break names of options.
        yield "\n".join(f"- `{first}`: {escape(text)}" for first, text in rows)


commands = "\n".join(
    f"| [`{name}`](#virnucpro-{name}) | {escape(as_helped(command).summary)} |"
    for name, command in app.commands.items()
)
sections = [part for name in app.commands for part in describe(name)]
print("\n\n".join([HEAD.format(commands=commands).strip(), *sections]))

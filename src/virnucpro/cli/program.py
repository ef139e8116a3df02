"""Commands: their help, the numbers that they take, and errors in how they are called."""

from __future__ import annotations

import difflib
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from virnucpro.terminal import print_error
from virnucpro.text import quoted, shown

Function = TypeVar("Function", bound=Callable[..., Any])

# The columns of help, and those of the names of options, beyond which their text is a line lower.
WIDTH = 80
NAMES = 24
MULTIPLES = {"": 1, "k": 2**10, "m": 2**20}
# What options that take files are said to take.
FILES = {"PLAN", "FOLDER", "HTML", "MODEL"}
# Code, and defaults of a few words.
UNBROKEN = re.compile(r"`[^`]*`|\[default: [^]]{1,30}\]")
COMPLETION = 'eval "$(_VIRNUCPRO_COMPLETE=bash_source virnucpro)"'


def count(value: str | int) -> int:
    """Return the whole number of a text, such as 16384, 16,384, 16_384 or 16k.

    Raises:
        click.BadParameter: It is none.
    """
    pattern = r"(-?(?:[0-9]{1,3}(?:[,_][0-9]{3}){1,9}|[0-9]{1,30}))([km]?)"
    found = re.fullmatch(pattern, str(value).strip().lower())
    if not found:
        raise click.BadParameter(
            f"must be a whole number, such as 4096 or 16k (got {quoted(value)})"
        )
    return int(found[1].replace(",", "").replace("_", "")) * MULTIPLES[found[2]]


def complete_files(_ctx: object, _param: object, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete names of files."""
    return [CompletionItem(incomplete, type="file")]


class Option(click.Option):
    """An option under a heading of the help."""

    def __init__(self, *names: Any, group: str = "Options", **settings: Any) -> None:
        if settings.get("metavar") in FILES:
            settings["shell_complete"] = complete_files
        super().__init__(*names, **settings)
        self.group = group
        default = settings.get("default")
        if default is not None and not self.is_flag:
            self.help = f"{self.help} [default: {default}]"


class Argument(click.Argument):
    """An argument with help, under a heading."""

    def __init__(self, *names: Any, help: str, group: str = "Input", **settings: Any) -> None:  # noqa: A002
        super().__init__(*names, shell_complete=complete_files, **settings)
        self.help, self.group = help, group


def option(*names: str, **settings: Any) -> Callable[[Function], Function]:
    """Return a decorator that adds an option to a command."""
    return click.option(*names, cls=Option, **settings)


def argument(*names: str, **settings: Any) -> Callable[[Function], Function]:
    """Return a decorator that adds an argument to a command."""
    return click.argument(*names, cls=Argument, **settings)


class Helped(click.Command):
    """A command whose help has parts: paragraphs, examples, and lists of names with their text.

    Args:
        examples: Lines of examples, comments among them.
        statuses: The meaning of each exit status.
    """

    def __init__(
        self, *given: Any, examples: str = "", statuses: Iterable[str] = (), **settings: Any
    ) -> None:
        super().__init__(*given, **settings)
        self.examples, self.statuses = examples.strip(), list(statuses)

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs of the description, each in one line."""
        return [" ".join(part.split()) for part in (self.help or "").split("\n\n")]

    @property
    def summary(self) -> str:
        """The first paragraph of the description."""
        return self.paragraphs[0]

    def lists(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """Return names and their text by heading."""
        found: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            group = getattr(param, "group", "Options")
            found.setdefault(group, []).append((name_of(param), str(getattr(param, "help", ""))))
        if self.statuses:
            found["Exit status"] = [(str(n), text) for n, text in enumerate(self.statuses)]
        # The headings of most use come first, and -h last.
        return {name: found[name] for name in sorted(found, key="Exit status".__eq__)}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse words; errors know the command, which those of some releases of click do not."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the parts of the usage: options that are required, and arguments."""
        params = self.get_params(ctx)
        required = [p for p in params if p.required and p.param_type_name == "option"]
        arguments = [p for p in params if p.param_type_name == "argument"]
        pieces = [f"{p.opts[0]} {p.metavar}" for p in required if isinstance(p, Option)]
        return [*(str(p.metavar) for p in arguments), *pieces, "[OPTIONS]"]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        width = min(WIDTH, formatter.width + 2)
        usage = f"Usage: {ctx.command_path} {' '.join(self.collect_usage_pieces(ctx))}"
        first, *others = self.paragraphs
        parts = [
            wrap(first, width),
            wrap(usage, width, after="  "),
            *(wrap(t, width) for t in others),
        ]
        if self.examples:
            parts.append(f"Examples:\n{textwrap.indent(self.examples, '  ')}")
        lists = self.lists(ctx)
        start = 4 + min(NAMES, max(len(name) for rows in lists.values() for name, _ in rows))
        parts += [f"{name}:\n{columns(rows, start, width)}" for name, rows in lists.items()]
        formatter.write("\n\n".join(parts) + "\n")


class Program(Helped, click.Group):
    """The program, whose commands report errors in how they are called in one line."""

    def lists(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """Return the commands, the options, and how to have names completed."""
        commands = [(name, as_helped(each).summary) for name, each in self.commands.items()]
        return {"Commands": commands, **super().lists(ctx)}

    def collect_usage_pieces(self, _ctx: click.Context) -> list[str]:
        """Return the parts of the usage."""
        return ["COMMAND [ARGUMENTS]"]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help if nothing is given."""
        return super().parse_args(ctx, args or ["--help"])

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help, and how names are completed."""
        super().format_help(ctx, formatter)
        formatter.write(
            "\nThe options and examples of a command: virnucpro COMMAND -h\n"
            f"Completion of names in bash (or zsh, or fish):\n  {COMPLETION}\n"
        )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is called, or say which one may have been meant."""
        name = args[0]
        if name not in self.commands and not ctx.resilient_parsing and not name.startswith("-"):
            from virnucpro.cli.hints import did_you_mean

            close = difflib.get_close_matches(name, self.commands, 1, 0.7)
            hint = f"; did you mean {close[0]}?" if close else did_you_mean(name)
            raise click.UsageError(f"no such command: {shown(name) or quoted(name)}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def main(self, *given: Any, **settings: Any) -> NoReturn:
        """Run the program and exit."""
        try:
            status = super().main(*given, **{**settings, "standalone_mode": False})
        except click.UsageError as error:
            print_error(describe_error(error))
            status = error.exit_code
        sys.exit(status or 0)


def as_helped(command: click.Command) -> Helped:
    """Return a command of the program as what it is."""
    assert isinstance(command, Helped)
    return command


def name_of(param: click.Parameter) -> str:
    """Return the name of an option or argument with what it takes."""
    names = ", ".join(sorted(param.opts, key=len)) if param.param_type_name == "option" else ""
    is_flag = getattr(param, "is_flag", False)
    return " ".join(filter(None, [names, None if is_flag else param.metavar]))


def wrap(text: str, width: int, before: str = "", after: str = "") -> str:
    """Return a text in lines; options, code and short defaults are not broken."""
    text = UNBROKEN.sub(lambda found: found[0].replace(" ", "\xa0"), text)
    lines = textwrap.fill(
        text,
        width,
        initial_indent=before,
        subsequent_indent=after,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return lines.replace("\xa0", " ")


def columns(rows: list[tuple[str, str]], start: int, width: int) -> str:
    """Return names and their texts in two columns, the second of which begins at `start`."""
    lines = []
    for name, text in rows:
        name = f"  {name}"
        if len(name) > start - 2:
            lines.append(name)
            name = ""
        lines.append(wrap(text, width, name.ljust(start), " " * start))
    return "\n".join(lines)


def describe_error(error: click.UsageError) -> str:
    """Return an error in how a command is called, with what to type instead, in one line."""
    param = getattr(error, "param", None)
    if isinstance(error, click.NoSuchOption):
        names = [name for p in error.ctx.command.params for name in p.opts] if error.ctx else []
        close = difflib.get_close_matches(error.option_name, names, 1, 0.7)
        message = f"no such option: {shown(error.option_name)}"
        message += f"; did you mean {close[0]}?" if close else ""
    elif isinstance(error, click.MissingParameter) and param is not None:
        name = str(param.metavar).strip("[].")
        name = f"{param.opts[0]} {name}" if param.param_type_name == "option" else name
        message = f"{name} is missing"
    elif isinstance(error, click.BadParameter) and param is not None:
        if isinstance(param.type, click.Choice):
            *choices, last = param.type.choices
            got = re.match(r"(.*) is not one of", error.message, re.DOTALL)
            error_text = f"must be {', '.join(choices)} or {last}"
            error_text += f" (got {got[1]})" if got else ""
        else:
            error_text = error.message
        message = f"{max(param.opts, key=len)} {error_text}"
    else:
        message = error.message.rstrip(".")
        message = message[:1].lower() + message[1:]
    path = error.ctx.command_path if error.ctx else "virnucpro"
    if isinstance(error, click.MissingParameter) and error.ctx:
        path = " ".join((path, *error.ctx.command.collect_usage_pieces(error.ctx)))
        return f"{message} (usage: {path})"
    return f"{message} (for help: {path} -h)"

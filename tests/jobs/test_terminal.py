"""What the command line shows of text from outside, and of values for scripts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from command import run
from fasta import fasta
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.terminal import PrintableFormatter, format_value
from virnucpro.text import printable

# Commands of terminals, ends of lines, and a mark that reverses the text after it.
ODD = "a\x1b[2J\x07\r\u2028\u202eb"
ESCAPED = r"a\x1b[2J\x07\r\u2028\u202eb"


@given(st.text(st.characters()))
def test_each_character_is_shown_or_escaped(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    for char in text:
        escape = char.encode("unicode_escape").decode()
        assert shown.startswith(char if char.isprintable() else escape)
        shown = shown[1 if char.isprintable() else len(escape) :]
    assert shown == ""


def test_names_of_files_are_escaped(tmp_path: Path) -> None:
    path, plan = tmp_path / f"{ODD}\n.fa", tmp_path / f"{ODD}.parquet"
    path.write_bytes(fasta([("a", "MK")]))
    result = run("pack", path, "-o", plan)
    assert result.returncode == 0
    assert result.stderr.endswith(f"\nPlan written to {tmp_path}/{ESCAPED}.parquet\n")
    result = run("verify", plan)
    assert result.stderr == f"{tmp_path}/{ESCAPED}.parquet: OK (1 sequences)\n"
    path.unlink()
    for arguments in (["verify", plan, path], ["pack", path, "-o", plan]):
        result = run(*arguments)
        assert result.returncode != 0
        assert result.stderr == f"virnucpro: error: {tmp_path}/{ESCAPED}\\n.fa: no such file\n"


def test_log_messages_are_one_line() -> None:
    record = logging.LogRecord("virnucpro", logging.WARNING, "", 1, "file %s", (f"{ODD}\n",), None)
    assert PrintableFormatter().format(record) == f"file {ESCAPED}\\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (True, "true"), (False, "false"), (5, "5"), (0.5, "0.5"), ("a\tb", r"a\tb")],
)
def test_values_for_scripts(value: object, text: str) -> None:
    assert format_value(value) == text

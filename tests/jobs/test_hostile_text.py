"""IDs, names and columns with markup, terminal commands or newlines do nothing in what is shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run

from virnucpro.data import GreedyPacker, PackingPlan, ReadOptions, pack_files

# The first few are tried each time, all by `make test-long`.
HOSTILE = (
    "\x1b[2J\x1b[1;31mred",
    "a\nvirnucpro: all is well",
    "right\u202eto\u2066left",
    '"><img/src=x/onerror=alert(1)>',
    "[red]markup[/red]",
    "M" * 5_000_000,
    "one\rtwo",
    "tab\there",
    "<script>alert(1)</script>",
    "bell\x07\x08\x08",
    "&lt;b&gt;",
    "</td></table><h1>done</h1>",
    "next\u2028line\x85",
    "paragraph\u2029end",
    "\x9b31mcsi",
    "\x1b]0;title\x07",
    "\x1b]8;;http://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x1bP1$r0m\x1b\\",
    "\x1b[6n",
    "zero\u200bwidth",
    "\u200emark\u200f",
    "\u2067isolate\u2069",
    "\u061cletter",
    "\ufeffbom",
    "soft\u00adhyphen",
    "\U000e0041tag",
    "nul\x00byte",
    "del\x7f",
    "\x0b\x0c",
    "\x1c\x1d\x1e\x1f",
    "[/]",
    "[link=file:///etc/passwd]x[/link]",
    ":warning:",
    "%s %d %n",
    "{0.__class__}",
    "${HOME} `id`",
    "\\x1b[2J",
    "=1+1",
    "\ud7ff\ue000\uffff",
    "a\u0300" * 1000,
    "\U0001f600" * 200_000,
    "'\"\\",
)
SOME = 8


def texts(wanted: Callable[[str], bool] = bool) -> list[Any]:
    """Return the texts as parameters."""
    return [
        pytest.param(text, id=str(number), marks=() if number < SOME else pytest.mark.long)
        for number, text in enumerate(HOSTILE)
        if wanted(text)
    ]


def is_short(text: str) -> bool:
    """Return whether a text may be a part of the name of a file."""
    return len(text.encode()) < 200 and not set(text) & set("/\0")


def is_shown_as_it_is(text: str) -> bool:
    lines = text.split("\n")
    return all(line.isprintable() for line in lines) and "virnucpro: all is well" not in lines


@pytest.mark.parametrize("identifier", texts())
def test_ids_in_every_command(identifier: str, tmp_path: Path) -> None:
    path, plan, page = (tmp_path / name for name in ("a.parquet", "plan.parquet", "report.html"))
    table = pa.table({"id": [identifier, "b", identifier], "length": [2000, 30, 3000]})
    pq.write_table(table, path)
    outputs = [
        run("pack", path, "-o", plan),
        run("pack", path, "-o", tmp_path / "other.parquet", "--overlong", "error"),
        run("pack", path, "-o", tmp_path / "other.parquet", "--duplicates", "error"),
        run("verify", plan),
        run("report", plan, "-o", page),
        run("stats", plan),
    ]
    assert [output.returncode for output in outputs] == [0, 1, 1, 0, 0, 0]
    other = tmp_path / "b.parquet"
    pq.write_table(pa.table({"id": ["b", "b", identifier], "length": [2000, 30, 3000]}), other)
    outputs.append(run("verify", plan, other))
    assert outputs[-1].returncode == 1
    for output in outputs:
        assert is_shown_as_it_is(output.stdout)
        assert is_shown_as_it_is(output.stderr)
        assert len(output.stderr) < 5000
    html = page.read_text(encoding="utf-8")
    assert is_shown_as_it_is(html)
    assert html.count("<script") == 1
    assert "<img" not in html
    assert "</table><h1>" not in html
    assert len(html) < 500_000


def messages_of(call: Callable[[], object]) -> str:
    """Return the message of the error that a call raises."""
    with pytest.raises((ValueError, OSError, TypeError)) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("text", texts())
def test_messages_and_logs_of_the_library(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those that no command words."""
    records = [{"id": text, "sequence": "MKTAY" * 9}, {"id": "b", "sequence": "MK"}]
    packer, strict = GreedyPacker(20), GreedyPacker(20, overlong="error")
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [text, text], "length": [5, 6]}), table)
    plan = packer.pack_lengths([45, 2])
    packer.pack_sequences(records)
    pack_files(table, tmp_path / "plan.parquet", packer)
    found = [
        messages_of(lambda: strict.pack_sequences(records)),
        messages_of(lambda: GreedyPacker(20, method=text)),
        messages_of(lambda: GreedyPacker(text)),  # type: ignore[arg-type]
        messages_of(lambda: packer.pack_lengths([1], ids=[text, text])),
        messages_of(lambda: packer.pack_lengths([text])),
        messages_of(lambda: pack_files(table, tmp_path / "x.parquet", strict, duplicates=text)),
        messages_of(lambda: pack_files(table, tmp_path / text, packer)),
        messages_of(lambda: pack_files(tmp_path / text, tmp_path / "x.parquet", packer)),
        messages_of(
            lambda: pack_files(
                table, tmp_path / "x.parquet", packer, options=ReadOptions(id_column=text)
            )
        ),
        messages_of(lambda: PackingPlan.load(tmp_path / text)),
        messages_of(lambda: plan.save(tmp_path / "missing" / text)),
        messages_of(lambda: plan.save(tmp_path / f"{text[:100]}.arrow" / "x.arrow")),
        messages_of(lambda: plan.reshuffle(text)),  # type: ignore[arg-type]
    ]
    found += [record.getMessage() for record in caplog.records]
    assert len(caplog.records) >= 2
    for message in found:
        assert message.isprintable(), message[:500]
        assert len(message) < 2000


@pytest.mark.parametrize("name", texts(is_short))
def test_names_of_files_and_columns(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    path, plan, page = folder / "a.parquet", folder / "plan.parquet", folder / "report.html"
    pq.write_table(pa.table({name: ["a", "b"], "length": [20, 30]}), path)
    outputs = [
        run("pack", path, "-o", plan, "--id-column", name),
        run("verify", plan),
        run("stats", plan, "--tsv"),
        run("report", plan, "-o", page),
        run("pack", path, "-o", plan),
        run("stats", path),
        run("verify", plan, folder / "none.parquet"),
        run("pack", path, "-o", folder / "plan.other"),
    ]
    assert [output.returncode for output in outputs] == [0, 0, 0, 0, 1, 1, 2, 2]
    for output in outputs:
        lines = (output.stdout + output.stderr).replace("\t", " ")
        assert is_shown_as_it_is(lines)
    assert all(line.count("\t") == 1 for line in outputs[2].stdout.splitlines())
    html = page.read_text(encoding="utf-8")
    assert is_shown_as_it_is(html)
    assert html.count("<script") == 1
    shutil.rmtree(folder)

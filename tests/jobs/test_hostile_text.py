"""IDs, names and columns with markup, terminal commands or newlines do nothing in what is shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run

HOSTILE = (
    "\x1b[2J\x1b[1;31mred",
    "bell\x07\x08\x08",
    "<script>alert(1)</script>",
    '"><img/src=x/onerror=alert(1)>',
    "&lt;b&gt;",
    "[red]markup[/red]",
    "right\u202eto\u2066left",
    "next\u2028line\x85",
    "one\rtwo",
    "\x9b31mcsi",
    "zero\u200bwidth",
)


def is_shown_as_it_is(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("identifier", HOSTILE)
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
    html = page.read_text(encoding="utf-8")
    assert is_shown_as_it_is(html)
    assert "<script" not in html
    assert "<img" not in html


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nall is well", "<script>", "tab\there"])
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
    assert [output.returncode for output in outputs] == [0, 0, 0, 0, 1, 1, 2, 1]
    for output in outputs:
        lines = (output.stdout + output.stderr).replace("\t", " ")
        assert is_shown_as_it_is(lines)
        assert "\nall is well" not in lines
    assert all(line.count("\t") == 1 for line in outputs[2].stdout.splitlines())
    html = page.read_text(encoding="utf-8")
    assert is_shown_as_it_is(html)
    assert "<script" not in html
    shutil.rmtree(folder)

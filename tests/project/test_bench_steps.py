"""The benchmarks: each step on small inputs, and how results are kept and written."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
STEPS = (
    "packers",
    "job",
    "loading",
    "targets",
    "growth",
    "tight",
    "samplers",
    "saved_plans",
    "cluster",
)
# Starts Ray several times.
LONG = "cluster"
MEASURE = """
from pathlib import Path
from results import Result
def measure(quick, folder):
    count = folder / "{name}.count"
    count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
    return Result(["{name}: " + count.read_text()], ["- {name}"])
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return bench.py with the steps one, two and three, a page and a README."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(tmp_path))
    bench = importlib.import_module("bench")
    steps = ("one", "two", "three")
    for name in steps:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(MEASURE.format(name=name))
    sections = (f"# {name}\n\n<!-- {name} -->\n\nold\n\n<!-- end -->\n" for name in steps)
    (tmp_path / "page.md").write_text("\n".join(["Page", *sections, "Last"]))
    (tmp_path / "README.md").write_text("A\n<!-- figures -->\n\n<!-- end -->\nB\n")

    def start(step: str, quick: bool, folder: Path) -> bool:
        try:
            bench.run(step, quick, folder)
        except ArithmeticError:
            return False
        return True

    new = {"STEPS": steps, "PAGE": tmp_path / "page.md", "README": tmp_path / "README.md"}
    new |= {"start": start, "commit": lambda: "abc", "machine": lambda: "this machine"}
    for attribute, value in new.items():
        monkeypatch.setattr(bench, attribute, value)
    return bench


def counts(folder: Path) -> list[str]:
    """Return how often each step was measured."""
    files = (folder / f"{name}.count" for name in ("one", "two", "three"))
    return [file.read_text() if file.exists() else "0" for file in files]


def test_results_of_the_same_commit_and_machine_are_kept(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.main(["one"], folder=tmp_path)
    bench.main(folder=tmp_path)
    bench.main(folder=tmp_path)
    assert counts(tmp_path) == ["1", "1", "1"]
    bench.main(["two"], again=True, folder=tmp_path)
    assert counts(tmp_path) == ["1", "2", "1"]
    for name, value in (("commit", "abd"), ("machine", "another")):
        monkeypatch.setattr(bench, name, lambda value=value: value)
        bench.main(["three"], folder=tmp_path)
    assert counts(tmp_path) == ["1", "2", "3"]
    # What was measured with changes does not come back.
    monkeypatch.setattr(bench, "commit", lambda: "abc and changes")
    for _ in range(2):
        bench.main(["one"], folder=tmp_path)
    assert counts(tmp_path) == ["3", "2", "3"]


def test_a_step_that_fails_leaves_the_others(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text("def measure(quick, folder):\n    return 1 / 0\n")
    with pytest.raises(SystemExit, match="failed: two"):
        bench.main(folder=tmp_path)
    page = (tmp_path / "page.md").read_text()
    assert page.count("old") == 1
    assert re.search(r"one: 1\n.*<!-- two -->\n\nold\n.*three: 1\n", page, re.DOTALL)
    # Figures only if all steps have them.
    assert (tmp_path / "README.md").read_text() == "A\n<!-- figures -->\n\n<!-- end -->\nB\n"


def test_sections_and_figures_are_written(bench: Any, tmp_path: Path) -> None:
    bench.main(folder=tmp_path)
    first = (tmp_path / "page.md").read_text()
    origin = r"`make bench STEP=two`, 0 s on \d{4}-\d\d-\d\d, commit abc: this machine\."
    assert re.search(rf"<!-- two -->\n\n{origin}\n\ntwo: 1\n\n<!-- end -->\n", first)
    assert first.startswith("Page\n# one\n")
    assert first.endswith("<!-- end -->\n\nLast")
    figures = "A\n<!-- figures -->\n\n- one\n- two\n- three\n\n<!-- end -->\nB\n"
    assert (tmp_path / "README.md").read_text() == figures
    bench.main(folder=tmp_path)
    assert (tmp_path / "page.md").read_text() == first
    assert (tmp_path / "README.md").read_text() == figures


@pytest.mark.parametrize("text", ["", "<!-- a -->\n", "<!-- a -->\n<!-- b -->\n<!-- end -->\n"])
def test_a_missing_section_is_an_error(bench: Any, text: str) -> None:
    with pytest.raises(ValueError, match="no section between <!-- a --> and <!-- end -->"):
        bench.replace(text, "a", ["new"])


def test_an_unknown_step_is_an_error(bench: Any, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="four: not in one, two, three"):
        bench.main(["four"], folder=tmp_path)


def test_page_has_a_section_of_each_step() -> None:
    page = PAGE.read_text(encoding="utf-8")
    sections = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- end -->\n", page, re.DOTALL)
    assert sorted(name for name, _ in sections) == sorted([*STEPS, "embedding"])
    assert "bench-quick" not in page
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count("<!-- figures -->\n") == readme.count("<!-- end -->\n") == 1


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [pytest.param(step, marks=[pytest.mark.long] * (step == LONG)) for step in STEPS]
)
def test_step(step: str, tmp_path: Path) -> None:
    """A step fills its section with tables and leaves the rest of the page as it is."""
    script = ROOT / "benchmarks" / "bench.py"
    command = [sys.executable, script, step, "--quick", "--folder", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(f"<!-- {step} -->\n")
    section, _, after = rest.partition("<!-- end -->\n")
    original = PAGE.read_text(encoding="utf-8")
    assert original.startswith(before)
    assert original.endswith(after)
    assert section.startswith("\n`make bench-quick`, ")
    assert re.search(r"\| -+:? \|\n\| \S.* \|\n", section)
    for picture in re.findall(r"\]\((.*\.svg)\)", section):
        assert (tmp_path / picture).stat().st_size

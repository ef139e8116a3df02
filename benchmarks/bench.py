"""Runs the steps of the benchmarks; writes docs/performance.md and the figures of the README.

Results are kept in a folder. A step is not repeated if its result is from this commit and machine.
"""

from __future__ import annotations

import datetime
import importlib
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from results import ROOT, Result, Stored, commit, console, machine

STEPS = (
    "packers",
    "embedding",
    "job",
    "loading",
    "targets",
    "growth",
    "tight",
    "samplers",
    "saved_plans",
    "cluster",
)
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"


def is_valid(stored: Stored | None, quick: bool) -> bool:
    """Return whether a result is from this commit and machine, without changes since."""
    return (
        stored is not None
        and (stored.quick, stored.commit, stored.machine) == (quick, commit(), machine())
        and not stored.commit.endswith("changes")
    )


def run(step: str, quick: bool, folder: Path) -> None:
    """Measure a step in this process and store the result."""
    at_first, begin = commit(), time.perf_counter()
    result: Result = importlib.import_module(step).measure(quick, folder)
    Stored(
        **asdict(result),
        step=step,
        quick=quick,
        machine=machine(),
        commit=at_first,
        date=str(datetime.date.today()),
        seconds=time.perf_counter() - begin,
    ).save(folder)


def start(step: str, quick: bool, folder: Path) -> bool:
    """Run a step in a process of its own; return whether it was measured."""
    options = ["--here", "--folder", str(folder.resolve()), *["--quick"] * quick]
    command = [sys.executable, __file__, step, *options]
    return subprocess.run(command, check=False).returncode == 0


def replace(text: str, mark: str, lines: list[str]) -> str:
    """Return a text with the lines between a mark and the end after it replaced."""
    begin, end = f"<!-- {mark} -->\n", "<!-- end -->\n"
    before, found, rest = text.partition(begin)
    old, ended, after = rest.partition(end)
    if not found or not ended or "<!--" in old:
        raise ValueError(f"no section between {begin.strip()} and {end.strip()}")
    section = "\n".join(lines).strip("\n")
    return f"{before}{begin}\n{section}\n\n{end}{after}"


def write(folder: Path, page: Path, readme: Path) -> None:
    """Write the stored results into the page, and their figures into the README."""
    results = {step: stored for step in STEPS if (stored := Stored.load(folder, step))}
    text = page.read_text(encoding="utf-8")
    for step, stored in results.items():
        text = replace(text, step, [stored.origin(), "", *stored.lines])
    page.write_text(text, encoding="utf-8")
    for picture in folder.glob("*.svg"):
        if picture.parent != page.parent:
            shutil.copy(picture, page.parent)
    if len(results) == len(STEPS):
        figures = [line for stored in results.values() for line in stored.figures]
        text = readme.read_text(encoding="utf-8")
        readme.write_text(replace(text, "figures", figures), encoding="utf-8")


def main(
    steps: Annotated[list[str] | None, typer.Argument(help="Steps to run; all by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small inputs; write in FOLDER.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Repeat steps with results.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where results are kept.")] = None,
    here: Annotated[bool, typer.Option("--here", hidden=True)] = False,
) -> None:
    """Run steps, each in a process of its own, and write what they found."""
    folder = folder or ROOT / "build" / ("bench-quick" if quick else "bench")
    folder.mkdir(parents=True, exist_ok=True)
    if unknown := set(steps or ()) - set(STEPS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: not in {', '.join(STEPS)}")
    if here:
        for step in steps or ():
            run(step, quick, folder)
        return
    failed = []
    for step in steps or STEPS:
        if not again and is_valid(Stored.load(folder, step), quick):
            console.print(f"{step}: measured before")
            continue
        console.rule(step)
        if not start(step, quick, folder):
            failed.append(step)
    page, readme = PAGE, README
    if quick:
        page, readme = (Path(shutil.copy(path, folder)) for path in (PAGE, README))
    write(folder, page, readme)
    console.print(f"Written to {page}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()

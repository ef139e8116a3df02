"""Measures all packers on all data sets; writes tables and plots into docs/explanation/."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import growth
import numpy as np
import targets
import typer
from data import DATA, QUICK
from packers import PACKERS
from rich.console import Console

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
console = Console(stderr=True)


def machine() -> str:
    """Describe this machine."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"{platform.system()}, Python {platform.python_version()}, NumPy {np.__version__}"
    )


def write_section(page: str, command: str, lines: list[str]) -> Path:
    """Write the lines that a command makes into a page of docs/explanation; return its path."""
    path = Path(ROOT, "docs", "explanation", page)
    begin, end = f"<!-- made by {command} -->\n", "<!-- end -->\n"
    text = path.read_text()
    before, after = text.partition(begin)[0], text.partition(end)[2]
    section = "\n".join(lines)
    path.write_text(f"{before}{begin}\n{section}\n\n{end}{after}")
    return path


def measure(packer: str, data: str) -> dict[str, Any] | str:
    """Return what measure.py prints, or why it failed."""
    command = [sys.executable, str(HERE / "measure.py"), packer, data]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return dict(json.loads(done.stdout))
    last = done.stderr.strip().splitlines()[-1]
    return "not installed" if last.startswith("ModuleNotFoundError") else f"failed: {last}"


def compare(data_names: list[str]) -> dict[str, str]:
    """Return a Markdown table for each data set, by its name."""
    tables: dict[str, str] = {}
    for data_name in data_names:
        num = len(DATA[data_name].make())
        lines = [
            f"### {data_name[0].upper()}{data_name[1:]}",
            "",
            f"Budget {DATA[data_name].max_tokens_per_batch:,} tokens.",
            "",
            "| packer | seconds | times ours | batches | efficiency | padding | peak memory |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        ours = None
        for name, packer in PACKERS.items():
            if num > packer.at_most:
                continue
            console.print(f"{data_name}: {name}")
            row = measure(name, data_name)
            if isinstance(row, str):
                lines.append(f"| {name} | {row} | | | | | |")
                continue
            ours = ours or row["seconds"]
            packed = row["batches"] is not None
            lines.append(
                f"| {name} | {row['seconds']:.6f} | {row['seconds'] / ours:,.2f} "
                f"| {format(row['batches'], ',') if packed else ''} "
                f"| {format(row['efficiency'], '.4f') if packed else ''} "
                f"| {format(row['padding'], '.1%') if packed else ''} "
                f"| {row['memory'] / 2**20:,.1f} MiB |"
            )
        tables[data_name] = "\n".join([*lines, ""])
    return tables


def show_in_readme(text: str) -> None:
    """Replace the text between the marks in the README."""
    path = ROOT / "README.md"
    begin, end = "<!-- made by make bench -->\n", "<!-- end -->\n"
    before, rest = path.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def main(quick: bool = False, output: Path = ROOT / "docs" / "explanation") -> None:
    """Measure everything; with --quick, what takes two minutes."""
    origin = (
        f"Made by `make {'bench-quick' if quick else 'bench'}` on {datetime.date.today()}: "
        f"{machine()}."
    )
    reached = targets.table(quick)
    tables = compare([name for name in QUICK if name in DATA] if quick else list(DATA))
    text = [
        "# Benchmarks",
        "",
        origin,
        "",
        "## Targets",
        "",
        "Ratios of medians of runs that alternate in one process, warm, with logging on.",
        "",
        reached,
        "",
        "## Comparison",
        "",
        "Each packer ran in its own process and was given the input that suits it best, "
        "prepared outside",
        'the measured time. "Times ours" is relative to `pack_lengths`. "Efficiency" is tokens',
        'divided by the budget of all batches, "padding" the share of padding in what a model',
        'computes, "peak memory" what a call uses beyond its input. Seconds are medians.',
        "",
        *tables.values(),
    ]
    output.mkdir(exist_ok=True)
    if not quick:
        text += [
            "## Growth",
            "",
            growth.by_sequences(output / "growth-sequences.svg"),
            "",
            "![Time per sequence by number of sequences](growth-sequences.svg)",
            "",
            growth.by_sizes(output / "growth-sizes.svg"),
            "",
            "![Time by number of distinct sizes](growth-sizes.svg)",
            "",
            "The layout alone, under limits on sequences:",
            "",
            growth.by_limits(),
            "",
        ]
        plots = [
            "![Time per sequence by number of sequences](docs/explanation/growth-sequences.svg)",
            "![Time by number of distinct sizes](docs/explanation/growth-sizes.svg)",
            "",
        ]
        show_in_readme("\n".join([origin, "", tables["proteins, 1 million"], reached, "", *plots]))
    path = output / ("benchmarks-quick.md" if quick else "benchmarks.md")
    path.write_text("\n".join(text))
    console.print(f"Written to {path}")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    app()

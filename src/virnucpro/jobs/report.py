"""A page about a plan: one HTML file that needs nothing else."""

from __future__ import annotations

import html
import io
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from virnucpro.files.output import replacing
from virnucpro.files.plan_file import Summary, read_summary, read_table

INK, BAR, CUT = "#334155", "#3b82b6", "#d9480f"

STYLE = f"""
body {{ font: 16px/1.5 system-ui, sans-serif; color: {INK}; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .75rem; }}
dl div {{ background: #f1f5f9; border-radius: .4rem; padding: .6rem .8rem; }}
dt {{ font-size: .85rem; }} dd {{ margin: 0; font-size: 1.25rem; font-weight: 600; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem 1rem .2rem 0; text-align: left; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
td {{ border-top: 1px solid #e2e8f0; overflow-wrap: anywhere; }}
svg {{ width: 100%; height: auto; }}
"""


def write_report(plan: str | PathLike[str], output: str | PathLike[str]) -> None:
    """Write a page about a plan.

    Args:
        plan: The plan's file.
        output: The HTML file to write. It appears when it is complete.

    Raises:
        ValueError: The file is no plan.
        OSError: A file cannot be read or written.
    """
    summary = read_summary(plan)
    table = read_table(plan)
    page = make_page(Path(plan).name, summary, table)
    with replacing(output) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def make_page(name: str, summary: Summary, table: Any) -> str:
    """Return the page."""
    packed = table.filter(pc.is_valid(table["batch"]))
    batch = packed["batch"].to_numpy()
    tokens = packed["tokens"].to_numpy()
    lengths = table["length"].to_numpy()
    budget = summary.limits.max_tokens_per_batch
    most = summary.limits.max_sequences_per_batch
    limit = summary.limits.max_residues
    totals = summary.totals
    next_fit = count_next_fit_decreasing(*np.unique(tokens, return_counts=True), budget, most)
    numbers = {
        "Sequences read": f"{totals.read:,}",
        "Packed": f"{totals.packed:,}",
        "Dropped": f"{totals.dropped:,}",
        "Batches": f"{totals.batches:,}",
        "Efficiency": f"{totals.efficiency:.4%}",
        "Lower bound": f"{totals.lower_bound:,}",
        "First-fit decreasing": f"{totals.first_fit_batches:,}",
        "Next-fit decreasing": f"{next_fit:,}",
        "Truncated": f"{totals.truncated:,}",
        "Residues": f"{totals.residues:,}",
        "Residues cut": f"{totals.residues_cut:,}",
        "Residues dropped": f"{totals.residues_dropped:,}",
        "Empty": f"{totals.empty:,}",
        "Duplicate IDs": f"{totals.duplicate_ids:,}",
        "Stops (*) left out": f"{totals.stops:,}",
        "Lower case made upper": f"{totals.lower_case:,}",
        "Gaps left out": f"{totals.gaps:,}",
        "Insertions left out": f"{totals.insertions:,}",
    }
    saved = next_fit - totals.batches
    share = f" ({saved / next_fit:.1%})" if next_fit else ""
    fill = np.bincount(batch, weights=tokens) / budget if len(batch) else np.empty(0)
    sizes = np.bincount(batch) if len(batch) else np.empty(0, np.int64)
    sections = [
        f"<h1>{html.escape(name)}</h1>",
        "<dl>",
        *(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in numbers.items()),
        "</dl>",
        f"<p>Next-fit decreasing, which keeps one batch open, would need {next_fit:,} batches: "
        f"this plan saves {saved:,}{share} of them. No packing needs fewer than "
        f"{totals.lower_bound:,}.</p>",
        "<h2>Lengths of sequences</h2>",
        draw(lambda axes: draw_lengths(axes, lengths, limit)),
        "<h2>Fill of batches</h2>",
        draw(lambda axes: draw_fill(axes, fill)),
        "<h2>Sequences per batch</h2>",
        draw(lambda axes: draw_sizes(axes, sizes)),
        "<h2>Most truncated sequences</h2>",
        most_truncated(table, limit),
        "<h2>Made with</h2>",
        parameters(summary),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def count_next_fit_decreasing(
    sizes: NDArray[Any], counts: NDArray[Any], budget: int, most: int | None
) -> int:
    """Return how many batches next-fit decreasing needs for so many sequences of each size."""
    batches = free = room = 0
    most = most or int(counts.sum())
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        fits = min(free // size if size else count, room, count)
        free, room, left = free - fits * size, room - fits, count - fits
        if left:
            per_batch = min(budget // size if size else left, most)
            batches += -(-left // per_batch)
            in_last = (left - 1) % per_batch + 1
            free, room = budget - in_last * size, most - in_last
    return batches


def draw(plot: Callable[[Axes], None]) -> str:
    """Return a plot as SVG."""
    # The same plan gives the same page.
    style: Any = {"svg.hashsalt": "virnucpro", "svg.fonttype": "none", "font.family": "sans-serif"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.tick_params(colors=INK)
        plot(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def draw_lengths(axes: Axes, lengths: NDArray[Any], limit: int) -> None:
    """Draw how long sequences are, and where they are cut."""
    longest = int(lengths.max(initial=0))
    # Beyond this lie a few that would make the rest too small to see.
    end = max(limit * 1.05, float(np.quantile(lengths, 0.995)) if len(lengths) else 1.0)
    bins = np.linspace(0, min(end, max(longest, 1)), 81)
    axes.hist(lengths[lengths <= bins[-1]], bins=bins.tolist(), color=BAR)
    if longest > limit:
        beyond = int((lengths > limit).sum())
        label = f"cut at {limit:,}: {beyond:,} sequences are longer, up to {longest:,}"
        axes.axvline(limit, color=CUT, label=label)
        axes.legend(loc="upper right", framealpha=1, edgecolor="none")
    axes.set_xlabel("residues")
    axes.set_ylabel("sequences")


def draw_fill(axes: Axes, fill: NDArray[Any]) -> None:
    """Draw how full batches are, in their order."""
    # Means of neighbours, where there are more batches than a line can show.
    parts = np.array_split(fill, min(len(fill), 400)) if len(fill) else []
    means = [float(part.mean()) for part in parts]
    least = [float(part.min()) for part in parts]
    at = np.cumsum([len(part) for part in parts])
    axes.plot(at, means, color=BAR, label="mean of neighbours")
    axes.plot(at, least, color=CUT, linewidth=0.8, label="least of neighbours")
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("batch")
    axes.set_ylabel("fill")
    axes.legend(loc="lower left", frameon=False)


def draw_sizes(axes: Axes, sizes: NDArray[Any]) -> None:
    """Draw how many sequences batches have."""
    if len(sizes):
        width = max(1, int(np.ptp(sizes)) // 80)
        bins = np.arange(sizes.min() - 0.5, sizes.max() + width + 0.5, width)
        axes.hist(sizes, bins=bins.tolist(), color=BAR)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("sequences")
    axes.set_ylabel("batches")


def most_truncated(table: Any, limit: int) -> str:
    """Return a table of the sequences that lost the most residues."""
    cut = table.filter(table["truncated"])
    if len(cut) == 0:
        return "<p>No sequence was truncated.</p>"
    order = pc.sort_indices(cut, sort_keys=[("length", "descending"), ("id", "ascending")])
    rows = cut.take(order[:20]).to_pylist()
    lines = [
        f'<tr><td>{html.escape(row["id"])}</td><td class="number">{row["length"]:,}</td>'
        f'<td class="number">{row["length"] - limit:,}</td></tr>'
        for row in rows
    ]
    return (
        '<table><tr><th>ID</th><th class="number">residues</th><th class="number">cut</th></tr>'
        + "\n".join(lines)
        + "</table>"
    )


def parameters(summary: Summary) -> str:
    """Return a table of parameters, and one of inputs."""
    made_with = "\n".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in summary.parameters.items()
    )
    inputs = "\n".join(
        f'<tr><td>{html.escape(source.name)}</td><td class="number">{source.sequences:,}</td>'
        f'<td class="number">{source.bytes:,}</td><td>{html.escape(source.sha256)}</td></tr>'
        for source in summary.inputs
    )
    return (
        f"<table>{made_with}</table><h2>Inputs</h2><table><tr><th>file</th>"
        '<th class="number">sequences</th><th class="number">bytes</th><th>SHA-256</th></tr>'
        f"{inputs}</table>"
    )

"""Write a report on a plan: one self-contained HTML page."""

from __future__ import annotations

import html
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.groups import counts_of_groups
from virnucpro.extras import needing
from virnucpro.files.output import write_file
from virnucpro.files.places import file_name, is_regular
from virnucpro.files.plan_checks import compare_layout
from virnucpro.files.plan_reader import PlanFile, open_plan
from virnucpro.files.plan_summary import Summary
from virnucpro.jobs.labels import label_totals
from virnucpro.kernel.limits import Limits
from virnucpro.memory import check_memory
from virnucpro.text import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Memory that must be available for plots, since libraries that lack it end the process.
PLOT_BYTES = 3 * 2**26

INK, BLUE, ORANGE = "#334155", "#3b82b6", "#d9480f"

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
    """Write a report on a plan.

    Args:
        plan: The plan file, or a folder of them, or the URI of one.
        output: The HTML file to write, or its URI. An existing file is replaced only when the new
            one is complete.

    Raises:
        ValueError: The file is not a plan, or damaged.
        OSError: A file cannot be read or written.
    """
    file = open_plan(plan)
    names = (recorded.name for recorded in file.summary.inputs)
    inputs = [file.origin, *(name for name in names if is_regular(name))]
    with write_file(output, inputs) as page:
        file.check_size()
        table = file.read()
        for error in compare_layout(table, file.layout):
            raise ValueError(f"{shown(file.name)}: damaged: {error}")
        content = make_page(file, table)
        page.write(content.encode())


def make_page(file: PlanFile, table: Any) -> str:
    """Return the HTML of a report."""
    summary, layout = file.summary, file.layout
    limits, totals = summary.limits, summary.totals
    next_fit = sum(
        count_next_fit_decreasing(counts.tokens[::-1], counts.sequences[::-1], limits)
        for counts in counts_of_groups(layout.core, limits, file.layout.group_offsets)
    )
    cells = {**label_totals(totals), "Batches by NFD": f"{next_fit:,}"}
    if layout.padding_tokens:
        cells["Padding tokens"] = f"{layout.padding_tokens:,}"
    saved = next_fit - totals.batches
    share = f" ({saved / next_fit:.1%})" if next_fit else ""
    fill = layout.batch_tokens / limits.max_tokens_per_batch
    sizes = np.diff(kernel.batch_offsets(layout.core))
    title = escape(file_name(file.name))
    sections = [
        f"<h1>{title}</h1>",
        "<dl>",
        *(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in cells.items()),
        "</dl>",
        f"<p>Next-Fit Decreasing (NFD), which keeps a single batch open, needs {next_fit:,} "
        f"batches; this plan saves {saved:,}{share}. Any packing needs at least "
        f"{totals.lower_bound:,}.</p>",
        *show_lengths(table, limits.max_residues),
        "<h2>Batch fill</h2>",
        draw(lambda axes: draw_fill(axes, fill)),
        "<h2>Sequences per batch</h2>",
        draw(lambda axes: draw_sizes(axes, sizes)),
        *show_truncated(table, limits.max_residues),
        "<h2>Parameters</h2>",
        list_parameters(summary),
        "<h2>Inputs</h2>",
        list_inputs(summary),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Return a text from outside for HTML."""
    return html.escape(shown(text))


def show_lengths(table: Any, max_residues: int) -> list[str]:
    """Return the section on the lengths of sequences, if the plan has them."""
    if "length" not in table.schema.names:
        return []
    lengths = table["length"].to_numpy()
    if "fragment" in table.schema.names:
        lengths = lengths[np.unique(table["row"].to_numpy(), return_index=True)[1]]
    return [
        "<h2>Sequence lengths</h2>",
        draw(lambda axes: draw_lengths(axes, lengths, max_residues)),
    ]


def count_next_fit_decreasing(sizes: NDArray[Any], counts: NDArray[Any], limits: Limits) -> int:
    """Return the number of batches that Next-Fit Decreasing makes.

    Args:
        sizes: Distinct sizes of sequences in tokens, in increasing order.
        counts: Number of sequences of each size.
        limits: The limits on batches.
    """
    budget = limits.max_tokens_per_batch
    max_sequences = limits.max_sequences_per_batch or int(counts.sum())
    num_batches = free_tokens = free_places = 0
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        fitting = min(free_tokens // size if size else count, free_places, count)
        free_tokens, free_places = free_tokens - fitting * size, free_places - fitting
        rest = count - fitting
        if rest:
            per_batch = min(budget // size if size else rest, max_sequences)
            num_batches += -(-rest // per_batch)
            in_last = (rest - 1) % per_batch + 1
            free_tokens, free_places = budget - in_last * size, max_sequences - in_last
    return num_batches


def draw(plot: Callable[[Axes], None]) -> str:
    """Return a plot as an SVG element."""
    check_memory(PLOT_BYTES, "the plots")
    matplotlib = import_matplotlib()
    # The page is the same whatever a matplotlibrc says, and the IDs of elements are not random.
    style = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    style |= {"svg.hashsalt": "virnucpro", "svg.fonttype": "none"}
    with matplotlib.rc_context(style):
        figure = matplotlib.figure.Figure(figsize=(9, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axes.tick_params(colors=INK)
        plot(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def import_matplotlib() -> Any:
    """Import matplotlib without what it says about a matplotlibrc, which the plots do not follow.

    Raises:
        ModuleNotFoundError: It is not installed.
        ValueError: It cannot be imported with this matplotlibrc or environment.
    """
    # Without a handler, its messages would go to stderr.
    logger, handler = logging.getLogger("matplotlib"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(), needing("the report", "cli"):
            warnings.simplefilter("ignore")
            import matplotlib.figure
    except (OSError, ValueError) as error:
        raise ValueError(
            "matplotlib cannot be imported with the present matplotlibrc or MPLBACKEND: "
            f"{shown(error)}"
        ) from error
    finally:
        logger.removeHandler(handler)
    return matplotlib


def draw_lengths(axes: Axes, lengths: NDArray[Any], max_residues: int) -> None:
    """Draw a histogram of sequence lengths and the maximum length."""
    longest = int(lengths.max(initial=0))
    # With a few very long sequences in range, all others would be too small to see.
    quantile = float(np.quantile(lengths, 0.995)) if len(lengths) else 1.0
    end = min(max(max_residues * 1.05, quantile), max(longest, 1))
    axes.hist(lengths[lengths <= end], bins=np.linspace(0, end, 81).tolist(), color=BLUE)
    if longest > max_residues:
        number = int((lengths > max_residues).sum())
        label = f"maximum {max_residues:,} (longer sequences: {number:,}, up to {longest:,})"
        axes.axvline(max_residues, color=ORANGE, label=label)
        axes.legend(loc="upper right", framealpha=1, edgecolor="none")
    axes.set_xlabel("length (residues)")
    axes.set_ylabel("sequences")


def draw_fill(axes: Axes, fill: NDArray[Any]) -> None:
    """Draw the fill of batches in order of their numbers."""
    # A line cannot show more points than this, so neighboring batches are summarized.
    parts = np.array_split(fill, min(len(fill), 400)) if len(fill) else []
    means = [float(part.mean()) for part in parts]
    minima = [float(part.min()) for part in parts]
    ends = np.cumsum([len(part) for part in parts])
    axes.plot(ends, means, color=BLUE, label="mean of neighboring batches")
    axes.plot(ends, minima, color=ORANGE, linewidth=0.8, label="minimum of neighboring batches")
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("batch")
    axes.set_ylabel("fill (share of budget)")
    axes.legend(loc="lower left", frameon=False)


def draw_sizes(axes: Axes, sizes: NDArray[Any]) -> None:
    """Draw a histogram of the number of sequences per batch."""
    if len(sizes):
        width = max(1, int(np.ptp(sizes)) // 80)
        bins = np.arange(sizes.min() - 0.5, sizes.max() + width + 0.5, width)
        axes.hist(sizes, bins=bins.tolist(), color=BLUE)
    axes.locator_params("x", integer=True)
    axes.set_xlabel("sequences per batch")
    axes.set_ylabel("batches")


def show_truncated(table: Any, max_residues: int) -> list[str]:
    """Return the section on truncated sequences, if the plan has their IDs."""
    if "truncated" not in table.schema.names:
        return []
    title = "<h2>Longest truncated sequences</h2>"
    truncated = table.filter(table["truncated"])
    if len(truncated) == 0:
        return [title, "<p>No sequences were truncated.</p>"]
    order = pc.sort_indices(truncated, sort_keys=[("length", "descending"), ("id", "ascending")])
    rows = [
        (row["id"], row["length"], row["length"] - max_residues)
        for row in truncated.take(order[:20]).to_pylist()
    ]
    return [title, html_table(["ID", "residues", "truncated"], rows)]


def list_parameters(summary: Summary) -> str:
    """Return a table of the parameters of a plan."""
    return html_table([], [(name, str(value)) for name, value in summary.parameters.items()])


def list_inputs(summary: Summary) -> str:
    """Return a table of the input files of a plan."""
    if not summary.inputs:
        return "<p>The plan was saved without the names of its inputs.</p>"
    rows = [(file.name, file.sequences, file.bytes, file.sha256) for file in summary.inputs]
    return html_table(["file", "sequences", "bytes", "SHA-256"], rows)


def html_table(header: list[str], rows: Sequence[tuple[str | int, ...]]) -> str:
    """Return an HTML table, with numbers aligned to the right."""
    is_number = [isinstance(value, int) for value in rows[0]]

    def line(tag: str, values: Sequence[str | int]) -> str:
        cells = [
            f'<{tag} class="number">{value if isinstance(value, str) else f"{value:,}"}</{tag}>'
            if right
            else f"<{tag}>{escape(str(value))}</{tag}>"
            for value, right in zip(values, is_number, strict=True)
        ]
        return f"<tr>{''.join(cells)}</tr>"

    lines = [line("td", row) for row in rows]
    return "\n".join(["<table>", *([line("th", header)] if header else []), *lines, "</table>"])

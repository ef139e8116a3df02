"""Write a report on a plan: one self-contained HTML page."""

from __future__ import annotations

import math
import os
import re
from os import PathLike

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.files.output import write_file
from virnucpro.files.places import file_name, is_uri, stamp_of
from virnucpro.files.plan_checks import as_numbers, check_numbers, compare_layout
from virnucpro.files.plan_reader import PlanFile, open_plan
from virnucpro.files.plan_summary import Summary, Totals
from virnucpro.files.recorded import candidates
from virnucpro.jobs.labels import label_totals
from virnucpro.jobs.report_numbers import (
    Batches,
    compare_batches,
    count_fill,
    even_edges,
    log_edges,
)
from virnucpro.jobs.report_page import (
    Column,
    Markup,
    escape,
    html_histogram,
    html_table,
    make_page,
    share_of,
)
from virnucpro.text import quoted, shown

# Columns of plans that are read: of all rows, and of the sequences that are listed.
COLUMNS = ("batch", "row", "fragment", "start", "tokens", "length")
LISTED_COLUMNS = ("id", "file")
# Sequences that are listed at most, and batches.
MAX_LISTED, MAX_BATCHES = 1000, 5
# Of them, as many as a page shows without scrolling the table, about.
MAX_IN_VIEW = 14
# A larger share of residues that are lost is marked as bad.
MAX_LOST = 0.01
# What happens to sequences above the limit.
FATES = {"truncate": "truncated", "drop": "dropped", "split": "split"}
# The IDs of UniProt: accessions as it documents them, alone or as in its FASTA files.
ACCESSION = r"([OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2})"
UNIPROT = re.compile(rf"(?:sp|tr)\|{ACCESSION}(?:-\d+)?\|\w+|{ACCESSION}(?:-\d+)?", re.ASCII)


def write_report(plan: str | PathLike[str], output: str | PathLike[str]) -> None:
    """Write a report on a plan.

    Its date is that of the plan file, or ``SOURCE_DATE_EPOCH`` if it is set, so that the same file
    gives the same page.

    Args:
        plan: The plan file, or a folder of them, or the URI of one.
        output: The HTML file to write, or its URI. An existing file is replaced only when the new
            one is complete.

    Raises:
        ValueError: The file is not a plan, or damaged.
        OSError: A file cannot be read or written.
    """
    file = open_plan(plan)
    names = (each.name for each in file.summary.inputs if not is_uri(each.name))
    inputs = [path for name in names for path in candidates(file, name)]
    with write_file(output, [file.origin, *inputs]) as page:
        file.check_size()
        page.write(describe_plan(file, date_of(file)).encode())


def date_of(file: PlanFile) -> str:
    """Return when a plan was last changed; nothing if its store does not tell.

    Raises:
        ValueError: ``SOURCE_DATE_EPOCH`` is not a date.
        OSError: The file cannot be read.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is not None:
        if not text.isdecimal() or len(text) > 12:
            raise ValueError(f"SOURCE_DATE_EPOCH must be a number of seconds (got {quoted(text)})")
        seconds = int(text)
    else:
        copied = [stamp for _, stamp in file.copy.stamp] if file.copy else None
        stamps = copied or [stamp_of(part) for part in file.parts]
        seconds = max((stamp[1] for stamp in stamps), default=0) // 10**9
        if seconds == 0:
            return ""
    return f"{np.datetime64(seconds, 's').astype('datetime64[m]')} UTC".replace("T", " ", 1)


def describe_plan(file: PlanFile, date: str) -> str:
    """Return the HTML of a report."""
    summary, layout = file.summary, file.layout
    limits, totals = summary.limits, summary.totals
    table = file.read(COLUMNS)
    for error in compare_layout(table, layout):
        raise ValueError(f"{shown(file.name)}: damaged: {error}")
    if "length" in table.schema.names and pc.any(pc.less(table["length"], 0)).as_py():
        raise ValueError(f"{shown(file.name)}: damaged: a length is negative")
    compared = compare_batches(layout, sizes_in_order(file, table), totals.first_fit_batches)
    sizes = np.diff(kernel.batch_offsets(layout.core))
    title = file_name(file.name)
    made = f"Plan file of {date}; report" if date else "Report"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="muted">{totals.read:,} sequences, {totals.batches:,} batches of at most '
        f"{limits.max_tokens_per_batch:,} tokens. {made} by virnucpro {kernel.__version__}.</p>",
        *show_cards(totals, compared),
        *show_comparison(totals, compared, layout.padding_tokens),
        *show_lost(file, table),
        *show_lengths(summary, table),
        *show_fill(layout.batch_tokens, sizes, limits.max_tokens_per_batch),
        *show_sizes(sizes),
        "<h2>Totals</h2>",
        html_table([Column(""), Column("", "number")], list(label_totals(totals).items())),
        "<h2>Inputs</h2>",
        list_inputs(summary),
        "<h2>Parameters</h2>",
        list_parameters(summary),
    ]
    return make_page(title, sections)


def sizes_in_order(file: PlanFile, table: pa.Table) -> NDArray[np.int64]:
    """Return the tokens of each sequence or fragment that is packed, in order of the input."""
    name, end = "row", len(table)
    if "fragment" in table.schema.names:
        name, end = "fragment", file.layout.num_sequences
    numbers = as_numbers(table[name])[:end]
    check_numbers(file.name, name, numbers)
    sizes = np.empty(end, np.int64)
    sizes[numbers] = as_numbers(table["tokens"])[:end]
    return sizes[sizes >= 0] if file.summary.totals.dropped else sizes


def show_cards(totals: Totals, compared: dict[str, Batches]) -> list[str]:
    """Return the numbers that a reader wants first: padding, what was lost, and batches."""
    *_, plan = compared.values()
    padding = padding_of(plan, totals)
    cards = []
    for number, batches in zip((8, 16), compared.values(), strict=False):
        note = ""
        if plan.tokens:
            note = f"these batches have {batches.tokens / plan.tokens:.2f} times the tokens"
        avoided = " avoided" if batches.tokens > plan.tokens else ""
        label = f"Padding{avoided}, against batches of {number}"
        cards.append((label, f"{padding_of(batches, totals)} → {padding}", note, "plain"))
    cards += lost_cards(totals)
    bound = f"no packing needs fewer than {totals.lower_bound:,}"
    if totals.batches == totals.lower_bound:
        bound = "no packing needs fewer"
    cards.append(("Batches", f"{totals.batches:,}", bound, "plain"))
    lines = [
        f'<div class="{kind}"><dt>{label}</dt><dd>{value}<small>{note}</small></dd></div>'
        for label, value, note, kind in cards
    ]
    return ['<dl class="cards">', *lines, "</dl>"]


def lost_cards(totals: Totals) -> list[tuple[str, str, str, str]]:
    """Return a label, a value, a note and a class for each way in which residues were lost."""
    cards: list[tuple[str, str, str, str]] = []
    known = totals.residues or totals.residues_kept + totals.residues_truncated
    for label, residues, sequences in (
        ("Residues truncated", totals.residues_truncated, totals.truncated),
        ("Residues dropped", totals.residues_dropped, totals.dropped),
    ):
        note = f"in {sequences:,} of {totals.read:,} sequences"
        if residues:
            kind = "bad" if residues > MAX_LOST * known else "warn"
            cards.append((label, share_of(residues, known), f"{residues:,} residues {note}", kind))
        elif sequences:
            kind = "bad" if residues is None and sequences > MAX_LOST * totals.read else "warn"
            unknown = ", number of residues not known" if residues is None else ", no residues"
            value = share_of(sequences, totals.read)
            cards.append((label.replace("Residues", "Sequences"), value, note[3:] + unknown, kind))
    if not cards:
        cards.append(("Residues lost", "0", "none truncated, none dropped", "good"))
    return cards


def padding_of(batches: Batches, totals: Totals) -> Markup:
    """Return the share of padding among the tokens of batches."""
    return share_of(batches.tokens - totals.tokens, batches.tokens)


def show_comparison(totals: Totals, compared: dict[str, Batches], rounding: int) -> list[str]:
    """Return the section on other ways to make batches."""
    fragments = " Fragments of split sequences count as sequences." if totals.split else ""
    rows = [
        (name, batches.number, batches.tokens, padding_of(batches, totals))
        for name, batches in compared.items()
    ]
    rest = f"{share_of(rounding, totals.tokens + rounding)} padding" if rounding else "no padding"
    columns = [Column("Batches"), Column("Number", "number"), Column("Tokens", "number")]
    return [
        "<h2>Padding, compared</h2>",
        html_table([*columns, Column("Padding", "number")], rows, strong=len(rows) - 1),
        '<p class="muted">Tokens that a model computes, with padding. Padded batches extend each '
        "sequence to the longest of its batch, as <code>DataCollatorWithPadding</code> of "
        "transformers does; those sorted by length are batches as "
        "<code>get_batch_indices</code> of fair-esm makes them. Packed batches are filled up to "
        "the budget here, as for batches of one shape; without a fixed shape, they have "
        f"{rest}.{fragments}</p>",
    ]


def show_lost(file: PlanFile, table: pa.Table) -> list[str]:
    """Return the section on sequences that lost residues, if the plan has their IDs."""
    if "length" not in table.schema.names:
        return []
    kept = file.summary.limits.max_residues
    is_lost = pc.and_(table["batch"].is_null(), pc.greater(table["length"], 0))
    if "fragment" not in table.schema.names:
        is_lost = pc.or_(is_lost, pc.greater(table["length"], kept))
    places = pa.array(np.flatnonzero(is_lost.to_numpy()))
    total = len(places)
    if total == 0:
        return []
    lost = table.select(["batch", "row", "length"]).take(places).append_column("place", places)
    keys = [("length", "descending"), ("row", "ascending")]
    lost = lost.take(pc.select_k_unstable(lost, k=min(MAX_LISTED, total), sort_keys=keys))
    texts = file.read(LISTED_COLUMNS).take(lost["place"])
    columns = [
        *(Column("ID"), Column("Residues", "number"), Column("Lost", "number", "descending")),
        *(Column("Share", "number"), Column("Row", "number")),
    ]
    has_files = len(file.summary.inputs) > 1
    rows = []
    for values, text in zip(lost.to_pylist(), texts.to_pylist(), strict=True):
        length = values["length"]
        number = length if values["batch"] is None else length - kept
        share = share_of(number, length)
        names = [text["file"]] if has_files else []
        rows.append((link(text["id"]), length, number, share, values["row"], *names))
    which = f"The {len(rows):,} longest of" if len(rows) < total else "All"
    scrolls = "; the table scrolls" if len(rows) > MAX_IN_VIEW else ""
    return [
        "<h2>Sequences that lost residues</h2>",
        f'<p class="muted">{which} {total:,}{scrolls}. The limit is {kept:,} residues; '
        "rows are numbered from 0, in order of the input.</p>",
        html_table([*columns, *([Column("File")] if has_files else [])], rows, "Sequences"),
    ]


def link(identifier: str) -> Markup:
    """Return an ID as a link to UniProt, if it is one of UniProt's."""
    match = UNIPROT.fullmatch(identifier)
    if match is None:
        return escape(identifier)
    page = f"https://www.uniprot.org/uniprotkb/{match[1] or match[2]}/entry"
    return Markup(f'<a href="{page}" rel="noreferrer">{escape(identifier)}</a>')


def show_lengths(summary: Summary, table: pa.Table) -> list[str]:
    """Return the section on the lengths of sequences, if the plan has them."""
    if "length" not in table.schema.names:
        return []
    lengths = table["length"].to_numpy()
    if "start" in table.schema.names:
        # The first fragment of each, and dropped ones.
        lengths = lengths[as_numbers(table["start"]) <= 0]
    kept = summary.limits.max_residues
    limit = (kept, FATES.get(summary.overlong or "", "over the limit"))
    positive = lengths[lengths > 0]
    plot = []
    if len(positive):
        low, high = int(positive.min()), int(positive.max())
        is_log = high > 2 * low
        edges = (log_edges if is_log else even_edges)(low, high, kept + 1)
        marked = limit if high > kept else None
        numbers = count_in_bins(positive, edges)
        plot = [html_histogram(edges, numbers, "residues", "sequences", is_log, marked)]
    return ["<h2>Lengths of sequences</h2>", describe(lengths, "residues"), *plot]


def show_sizes(sizes: NDArray[np.int64]) -> list[str]:
    """Return the section on the numbers of sequences per batch."""
    if len(sizes) == 0:
        return []
    unit, edges = "sequences per batch", even_edges(int(sizes.min()), int(sizes.max()))
    plot = html_histogram(edges, count_in_bins(sizes, edges), unit, "batches")
    return ["<h2>Sequences per batch</h2>", describe(sizes, unit), plot]


def count_in_bins(values: NDArray[np.int64], edges: list[int]) -> list[int]:
    """Return how many values are in each bin."""
    ends = np.searchsorted(np.array(edges[1:-1], np.int64), values, side="right")
    numbers: list[int] = np.bincount(ends, minlength=len(edges) - 1).tolist()
    return numbers


def describe(values: NDArray[np.int64], unit: str) -> str:
    """Return a few numbers about values, in words."""
    if len(values) == 0:
        return "<p>There are none.</p>"
    return (
        f"<p>Smallest {values.min():,}, median {np.median(values):,.0f}, mean "
        f"{values.mean():,.1f}, largest {values.max():,} {unit}.</p>"
    )


def show_fill(tokens: NDArray[np.int64], sizes: NDArray[np.int64], budget: int) -> list[str]:
    """Return the section on the fill of batches."""
    if len(tokens) == 0:
        return []
    classes = count_fill(tokens, budget)
    most = max(number for _, number in classes)
    rows = [
        (
            Markup(name.replace(" %", "&#160;%")),
            *(number, share_of(number, len(tokens)), bar(number, most)),
        )
        for name, number in classes
    ]
    least = np.argsort(tokens, kind="stable")[:MAX_BATCHES].tolist()
    emptiest = [
        (batch, int(sizes[batch]), int(tokens[batch]), share_of(int(tokens[batch]), budget))
        for batch in least
    ]
    of_classes = [Column("Fill"), Column("Batches", "number")]
    of_classes += [Column("Share", "number"), Column("Log scale", "bar")]
    of_batches = [Column("Batch"), Column("Sequences", "number"), Column("Tokens", "number")]
    return [
        '<div class="pair"><div><h2>Fill of batches</h2>',
        html_table(of_classes, rows),
        "</div><div><h2>Least full batches</h2>",
        html_table([*of_batches, Column("Fill", "number")], emptiest),
        "</div></div>",
    ]


def bar(number: int, most: int) -> Markup:
    """Return a bar whose width is the logarithm of a number."""
    width = 100 * math.log1p(number) / math.log1p(most)
    return Markup(f'<span style="width:{width:.0f}%"></span>')


def list_parameters(summary: Summary) -> str:
    """Return a table of the parameters of a plan."""
    unknown = {"max_sequences_per_batch": "no limit"}
    rows = [
        (name, unknown.get(name, "not known") if value is None else value)
        for name, value in summary.parameters.items()
    ]
    return html_table([Column(""), Column("")], rows)


def list_inputs(summary: Summary) -> str:
    """Return a table of the input files of a plan."""
    if not summary.inputs:
        return "<p>The plan was saved without the names of its inputs.</p>"
    columns = [Column("File"), Column("Sequences", "number"), Column("Bytes", "number")]
    rows = [
        (
            Markup(f"{escape(file.text)}<small>SHA-256 {escape(file.sha256)}</small>"),
            *(file.sequences, file.bytes),
        )
        for file in summary.inputs
    ]
    return html_table(columns, rows)

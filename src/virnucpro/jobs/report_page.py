"""The HTML of reports: style, tables and histograms."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from virnucpro.jobs.report_numbers import ticks
from virnucpro.text import shown

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f1f5f9; --line: #cbd5e1;
  --ink: #1e293b; --muted: #475569; --link: #1d4ed8; --bar: #2f7ab5; --lost: #c2410c;
  --good: #166534; --good-card: #ecfdf3; --warn: #854d0e; --warn-card: #fef7d6;
  --bad: #b91c1c; --bad-card: #feeceb; }
@media (prefers-color-scheme: dark) { :root { --page: #0f172a; --card: #1e293b; --line: #475569;
  --ink: #e2e8f0; --muted: #a3b1c6; --link: #93c5fd; --bar: #5aa9e6; --lost: #fb923c;
  --good: #86efac; --good-card: #12301f; --warn: #fcd34d; --warn-card: #3a2d0a;
  --bad: #fca5a5; --bad-card: #431a1d; } }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
.muted, figcaption, caption, small { color: var(--muted); }
a { color: var(--link); }
code { font-size: .9em; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: .75rem; margin: 1.25rem 0; }
.cards div { background: var(--card); border-radius: .5rem; padding: .75rem 1rem;
  border-left: .3rem solid var(--line); }
.cards dt { font-size: .9rem; color: var(--muted); }
.cards dd { margin: 0; font-size: 1.5rem; font-weight: 650; line-height: 1.4; }
.cards small { display: block; font-size: .875rem; font-weight: 400; }
.cards .good { background: var(--good-card); border-color: var(--good); }
.cards .warn { background: var(--warn-card); border-color: var(--warn); }
.cards .bad { background: var(--bad-card); border-color: var(--bad); }
.good dd { color: var(--good); } .warn dd { color: var(--warn); } .bad dd { color: var(--bad); }
.cards dd small { color: var(--ink); }
.wide { overflow: auto; } [role=region] { max-height: 32rem; }
.pair { display: flex; flex-wrap: wrap; gap: 0 4rem; } .pair > * { flex: 1 1 22rem; }
table { border-collapse: collapse; min-width: min(100%, 30rem); }
:is(td, th):first-child { min-width: 8rem; }
.sortable .text { min-width: 10rem; }
th, td { padding: .3rem 1rem .3rem 0; text-align: left; vertical-align: top; }
th { font-size: .875rem; color: var(--muted); font-weight: 600; vertical-align: bottom; }
td, tbody th { border-top: 1px solid var(--line); }
:is(th, td):last-child { padding-right: 0; }
thead th { position: sticky; top: 0; background: var(--page); overflow-wrap: normal; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.strong td { font-weight: 650; }
td small { display: block; font-family: ui-monospace, monospace; font-size: .75rem; }
th button { all: unset; cursor: pointer; color: var(--link); }
th button:focus-visible, .wide:focus-visible { outline: 2px solid var(--link); }
th button::after { content: " \\2195"; }
[aria-sort=ascending] button::after { content: " \\2191"; }
[aria-sort=descending] button::after { content: " \\2193"; }
.bar { width: 30%; }
.bar span { display: block; height: .9rem; margin-top: .3rem; background: var(--bar); }
figure { margin: .75rem 0 0; padding: 1.75rem .75rem 0 0; font-size: .8125rem;
  overflow-x: clip; }
.plot { position: relative; height: 14rem; margin-bottom: 1.6rem; }
.plot svg { display: block; width: 100%; height: 100%; overflow: visible; }
.plot rect { fill: var(--bar); } .plot .over { fill: var(--lost); }
.plot path { stroke: var(--line); fill: none; vector-effect: non-scaling-stroke; }
.plot .limit { stroke: var(--lost); stroke-dasharray: 4 3; }
.plot span { position: absolute; white-space: nowrap; color: var(--muted); line-height: 1; }
.plot .y { right: calc(100% + .5rem); transform: translateY(-50%); }
.plot .x { top: calc(100% + .4rem); transform: translateX(-50%); }
.plot .mark { bottom: calc(100% + .3rem); color: var(--lost); font-weight: 600; }
figcaption { font-size: .875rem; }
@media (max-width: 40rem) { .plot .minor { display: none; } table { font-size: .875rem; }
  th, td { padding-right: .5rem; }
  .plain :is(td, th):first-child { min-width: 5.5rem; } }
@media print { [role=region] { max-height: none; } }
"""

# Without it, the tables stay in the order in which they were written.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    const isNumber = head.className === "number";
    const value = (row) => {
      const text = row.cells[column].textContent;
      return isNumber ? parseFloat(text.replace(/[^0-9.]/g, "")) : text;
    };
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const isDown = before === null ? isNumber : before === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
      const compare = isNumber ? (a, b) => a - b : new Intl.Collator("en").compare;
      const rows = Array.from(body.rows, (row) => [value(row), row]);
      rows.sort((a, b) => (isDown ? compare(b[0], a[0]) : compare(a[0], b[0])));
      body.replaceChildren(...rows.map((pair) => pair[1]));
    });
  });
}
"""
SCRIPT_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# A browser loads nothing for the page, and runs no other script.
POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_HASH}'; "
    "base-uri 'none'; form-action 'none'"
)

# The size of plots in the units of their coordinates; they are stretched to the page.
WIDTH, HEIGHT = 1000.0, 200.0


class Markup(str):
    """A text that is HTML already."""


class Column(NamedTuple):
    """A column of a table: its title, its class in the style, and the state of its order."""

    title: str
    kind: str = "text"
    order: str = ""


def make_page(title: str, sections: Sequence[str]) -> str:
    """Return a page, which is also well-formed XML."""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>",
            *sections,
            f"</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def escape(value: object) -> Markup:
    """Return a text from outside, or a number, for HTML."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Markup(f"{value:,}")
    return Markup(html.escape(shown(value)))


def share_of(part: float, whole: float) -> Markup:
    """Return a share in percent, with more digits if it is close to nothing or to all.

    Example:
        >>> share_of(1, 3), share_of(1, 3000), share_of(1, 10**6), share_of(3, 3)
        ('33.3&#160;%', '0.03&#160;%', 'under 0.01&#160;%', '100&#160;%')
    """
    percent = 100 * part / whole if whole else 0.0
    rest = min(percent, 100 - percent)
    if 0 < rest < 0.01:
        return Markup(f"{'under 0.01' if percent < 50 else 'over 99.99'}&#160;%")
    return Markup(f"{percent:.{0 if rest == 0 else 2 if rest < 0.95 else 1}f}&#160;%")


def html_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    name: str = "",
    strong: int | None = None,
) -> str:
    """Return a table.

    Args:
        columns: The columns; no line has titles if the first has none.
        rows: The values of each row.
        name: What the table has, if it is long: it is sortable then, and scrolls by itself.
        strong: The row to emphasize.
    """

    def cell(tag: str, column: Column, value: object) -> str:
        attributes = f'class="{column.kind}"'
        if tag == "th":
            attributes += ' scope="col"'
            attributes += f' aria-sort="{column.order}"' if column.order else ""
        return f"<{tag} {attributes}>{escape(value)}</{tag}>"

    lines = [f'<table class="{"sortable" if name else "plain"}">']
    if columns[0].title:
        heads = "".join(cell("th", column, column.title) for column in columns)
        lines.append(f"<thead><tr>{heads}</tr></thead>")
    lines.append("<tbody>")
    for number, row in enumerate(rows):
        cells = "".join(
            cell("td", column, value) for column, value in zip(columns, row, strict=True)
        )
        kind = "strong" if number == strong else "plain"
        lines.append(f'<tr class="{kind}">{cells}</tr>')
    lines.append("</tbody></table>")
    label = f' tabindex="0" role="region" aria-label="{escape(name)}"' if name else ""
    return "\n".join([f'<div class="wide"{label}>', *lines, "</div>"])


def html_histogram(
    edges: Sequence[int],
    numbers: Sequence[int],
    unit: str,
    of: str,
    is_log: bool = False,
    limit: tuple[int, str] | None = None,
) -> str:
    """Return a histogram.

    Args:
        edges: The edges of the bins.
        numbers: How many values are in each bin.
        unit: What the values are, such as "residues".
        of: What has these values, such as "sequences".
        is_log: Whether the scale of values is logarithmic.
        limit: The last value before an edge where the color changes, and what follows it.
    """

    def scale(value: float) -> float:
        return math.log(value) if is_log else float(value - edges[0])

    begin, end = scale(edges[0]), scale(edges[-1])
    begin, end = begin - 0.02 * (end - begin), end + 0.02 * (end - begin)

    def place(value: float) -> float:
        return (scale(value) - begin) / (end - begin)

    at = list(map(place, edges))
    widths = [right - left for left, right in itertools.pairwise(at)]
    # Bins that are wider than others, since edges are whole numbers, would stand out.
    usual = statistics.median(widths)
    heights = [number * usual / width for number, width in zip(numbers, widths, strict=True)]
    top = 1.05 * max(heights)
    parts, texts = [], []
    levels = ticks(0, top, 4)
    for value in levels:
        rest = 1 - value / top
        parts.append(f'<path d="M0 {HEIGHT * rest:.1f}H{WIDTH:.0f}"/>')
        texts.append(f'<span class="y" style="top:{100 * rest:.1f}%">{value:,}</span>')
    marks = ticks(edges[0], edges[-1], 5, is_log)
    # A bar is above the whole number that it stands for.
    half = 0.0 if is_log else 0.5
    for value in marks:
        kind = "x minor" if len(marks) > 6 and str(value)[0] != "1" else "x"
        left = 100 * place(value + half)
        texts.append(f'<span class="{kind}" style="left:{left:.1f}%">{value:,}</span>')
    for number, first, last, left, width, height in zip(
        numbers, edges, edges[1:], at, widths, heights, strict=False
    ):
        if number:
            # A single sequence is visible among thousands.
            tall = max(HEIGHT * height / top, 2.0)
            over = ' class="over"' if limit and first > limit[0] else ""
            values = f"{first:,}" + (f" to {last - 1:,}" if last - first > 1 else "")
            parts.append(
                f'<rect{over} x="{WIDTH * left:.1f}" y="{HEIGHT - tall:.1f}" '
                f'width="{max(WIDTH * width - 1, 1):.1f}" height="{tall:.1f}">'
                f"<title>{values} {unit}: {number:,} {of}</title></rect>"
            )
    if limit:
        right = max(place(limit[0] + 1), 0.0)
        parts.append(f'<path class="limit" d="M{WIDTH * right:.1f} 0V{HEIGHT:.0f}"/>')
        side = f"left:{100 * right:.1f}%" if right < 0.5 else f"right:{100 - 100 * right:.1f}%"
        texts.append(
            f'<span class="mark" style="{side}">longer than {limit[0]:,}: {limit[1]}</span>'
        )
    note = f"; {unit} on a logarithmic scale" if is_log else ""
    return (
        f'<figure style="padding-left:{0.55 * len(f"{levels[-1]:,}") + 0.8:.1f}rem">'
        f'<div class="plot"><svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" '
        f'preserveAspectRatio="none" role="img" aria-label="Histogram of {of} by {unit}">'
        f"{''.join(parts)}</svg>{''.join(texts)}</div>"
        f"<figcaption>Number of {of} by {unit}{note}</figcaption></figure>"
    )

"""The page about a plan: its numbers, and that it is valid and needs nothing else."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run
from fasta import fasta
from report_pages import (
    LENGTHS,
    UNIPROT,
    cards_of,
    pack,
    pack_table,
    parse,
    report,
    tables_of,
    text_of,
)

from virnucpro.data import GreedyPacker
from virnucpro.jobs.report_page import STYLE, html_histogram, share_of


def padding_of(sizes: list[int], number: int) -> str:
    """Return the share of padding in batches of a number of sequences each, in order."""
    batches = [sizes[i : i + number] for i in range(0, len(sizes), number)]
    computed = sum(len(batch) * max(batch) for batch in batches)
    return share_of(computed - sum(sizes), computed).replace("&#160;", " ")


def test_padding_comes_first(tmp_path: Path) -> None:
    page = report(pack(tmp_path, LENGTHS, "--max-tokens", 4096))
    sizes = [min(length, 1022) + 2 for length in LENGTHS]
    plan = GreedyPacker(4096).pack_lengths(LENGTHS)
    own = share_of(1 - plan.efficiency, 1).replace("&#160;", " ")
    cards = cards_of(page)
    assert list(cards) == [
        "Padding avoided, against batches of 8",
        "Padding avoided, against batches of 16",
        "Residues truncated",
        "Batches",
    ]
    for number in (8, 16):
        value = cards[f"Padding avoided, against batches of {number}"][1]
        assert value == f"{padding_of(sizes, number)} → {own}"
    rows = {row[0]: row[1:] for row in tables_of(page)["Padding, compared"]}
    assert rows["This plan"] == [f"{len(plan)}", f"{4096 * len(plan):,}", own]
    assert rows["Padded, 8 sequences, in order of the input"][0] == f"{-(-len(LENGTHS) // 8)}"
    assert [*rows][3:] == [
        "Padded, sorted by length, up to 4,096 tokens",
        "Packed by Next-Fit Decreasing",
        "This plan",
    ]


def test_more_padding_than_in_padded_batches_is_said(tmp_path: Path) -> None:
    page = report(pack(tmp_path, [600] * 16, "--max-tokens", 1000))
    cards = cards_of(page)
    assert cards["Padding, against batches of 16"][1] == "0 % → 39.8 %"


@pytest.mark.parametrize(
    ("lengths", "options", "expected"),
    [
        ([500, 20], {}, {"Residues lost": ("good", "0", "none truncated, none dropped")}),
        (
            [2000, 20],
            {},
            {"Residues truncated": ("bad", "48.4 %", "978 residues in 1 of 2 sequences")},
        ),
        (
            [1022] * 99 + [1023],
            {},
            {"Residues truncated": ("warn", "under 0.01 %", "1 residues in 1 of 100 sequences")},
        ),
        (
            [2000, 20],
            {"overlong": "drop"},
            {"Residues dropped": ("bad", "99.0 %", "2,000 residues in 1 of 2 sequences")},
        ),
        (
            [0, 20, 2000],
            {"empty": "drop"},
            {
                "Residues truncated": ("bad", "48.4 %", "978 residues in 1 of 3 sequences"),
                "Sequences dropped": ("warn", "33.3 %", "1 of 3 sequences, no residues"),
            },
        ),
        (
            [2000, 20],
            {"overlong": "split"},
            {"Residues lost": ("good", "0", "none truncated, none dropped")},
        ),
    ],
)
def test_what_was_lost_comes_next(
    lengths: list[int],
    options: dict[str, Any],
    expected: dict[str, tuple[str, str, str]],
    tmp_path: Path,
) -> None:
    ids = [f"s{i}" for i in range(len(lengths))]
    cards = cards_of(report(pack_table(tmp_path, ids, lengths, **options)))
    assert dict([*cards.items()][2:-1]) == expected


def test_dropped_sequences_of_unknown_length(tmp_path: Path) -> None:
    path = tmp_path / "plan.arrow"
    GreedyPacker(4096, overlong="drop").pack_lengths([20, 3000, 900]).save(path)
    cards = cards_of(report(path))
    note = "1 of 3 sequences, number of residues not known"
    assert cards["Sequences dropped"] == ("bad", "33.3 %", note)


def test_sequences_that_lost_residues_are_listed(tmp_path: Path) -> None:
    ids = ["P12345", "sp|Q9Y6K9-2|NEMO_HUMAN", "tr|A0A024B7W1|X_Y", "<b>", "p12345", "short"]
    plan = pack_table(tmp_path, ids, [1100, 1200, 3000, 2000, 1200, 30])
    page = report(plan)
    rows = tables_of(page)["Sequences that lost residues"]
    assert rows == [
        ["ID", "Residues", "Lost", "Share", "Row"],
        ["tr|A0A024B7W1|X_Y", "3,000", "1,978", "65.9 %", "2"],
        ["<b>", "2,000", "978", "48.9 %", "3"],
        ["sp|Q9Y6K9-2|NEMO_HUMAN", "1,200", "178", "14.8 %", "1"],
        ["p12345", "1,200", "178", "14.8 %", "4"],
        ["P12345", "1,100", "78", "7.1 %", "0"],
    ]
    links = [link.attrib["href"] for link in parse(page).iter("a")]
    assert links == [f"{UNIPROT}{name}/entry" for name in ("A0A024B7W1", "Q9Y6K9", "P12345")]


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_a_thousand_sequences_are_listed_at_most(overlong: str, tmp_path: Path) -> None:
    lengths = [2000 + (7 * i) % 1500 for i in range(1500)]
    plan = pack_table(tmp_path, [f"s{i}" for i in range(1500)], lengths, overlong=overlong)
    page = report(plan)
    assert "The 1,000 longest of 1,500; the table scrolls. The limit is 1,022 residues" in page
    rows = tables_of(page)["Sequences that lost residues"][1:]
    kept = 1022 if overlong == "truncate" else 0
    order = sorted(range(1500), key=lambda row: (-lengths[row], row))[:1000]
    assert [int(row[4].replace(",", "")) for row in rows] == order
    assert [row[2] for row in rows] == [f"{lengths[row] - kept:,}" for row in order]


def test_files_are_named_if_there_are_several(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.fa").write_bytes(fasta([(name, "M" * 2000)]))
    plan = tmp_path / "plan.parquet"
    assert run("pack", tmp_path / "a.fa", tmp_path / "b.fa", "-o", plan).returncode == 0
    tables = tables_of(report(plan))
    files = [str(tmp_path / "a.fa"), str(tmp_path / "b.fa")]
    assert [row[-1] for row in tables["Sequences that lost residues"]] == ["File", *files]
    (_, first, _) = tables["Inputs"]
    assert first[0].startswith(f"{tmp_path / 'a.fa'}SHA-256 ")
    assert first[1:] == ["1", f"{(tmp_path / 'a.fa').stat().st_size:,}"]


def bars_of(page: str) -> list[list[tuple[str, bool]]]:
    """Return the title of each bar, and whether it is marked, by histogram."""
    return [
        [(text_of(bar), bar.get("class") == "over") for bar in plot.iter("rect")]
        for plot in parse(page).iter("svg")
    ]


def test_lengths_are_shown_up_to_the_longest(tmp_path: Path) -> None:
    lengths = [0, 13, 35_000, *range(20, 1500, 3), 1022, 1023]
    page = report(pack_table(tmp_path, list(map(str, lengths)), lengths))
    bars, _ = bars_of(page)
    marked = 0
    for title, is_marked in bars:
        begin, end, number = re.fullmatch(
            r"([\d,]+)(?: to ([\d,]+))? residues: ([\d,]+) sequences", title
        ).groups()  # type: ignore[union-attr]
        first = int(begin.replace(",", ""))
        last = int((end or begin).replace(",", ""))
        inside = [length for length in lengths if first <= length <= last]
        assert int(number.replace(",", "")) == len(inside)
        assert is_marked == (first > 1022)
        assert is_marked == (last > 1022)
        marked += is_marked * len(inside)
    assert marked == sum(length > 1022 for length in lengths)
    assert ">longer than 1,022: truncated</span>" in page
    middle = f"median {np.median(lengths):,.0f}, mean {np.mean(lengths):,.1f}"
    assert f"<p>Smallest 0, {middle}, largest 35,000 residues.</p>" in page


def test_each_sequence_is_counted_once_if_it_was_split(tmp_path: Path) -> None:
    lengths = [20, 3000, 900, 0]
    page = report(pack(tmp_path, lengths, "--overlong", "split", "--overlap", 9))
    bars, _ = bars_of(page)
    assert [(title.split(": ")[1], is_marked) for title, is_marked in bars] == [
        *(("1 sequences", False), ("1 sequences", False), ("1 sequences", True)),
    ]
    assert ">longer than 1,022: split</span>" in page
    assert "Fragments of split sequences count as sequences." in page
    rows = {row[0]: row[1] for row in tables_of(page)["Padding, compared"]}
    assert rows["Padded, 8 sequences, in order of the input"] == "1"
    assert "Sequences that lost residues" not in page
    totals = dict(tables_of(page)["Totals"])
    assert (totals["Sequences"], totals["Split"], totals["Fragments"]) == ("4", "1", "3")


def test_bars_of_single_lengths(tmp_path: Path) -> None:
    page = report(pack_table(tmp_path, list("abcd"), [1021, 1022, 1022, 1023]))
    assert bars_of(page)[0] == [
        ("1,021 residues: 1 sequences", False),
        ("1,022 residues: 2 sequences", False),
        ("1,023 residues: 1 sequences", True),
    ]
    page = report(pack_table(tmp_path, list("ab"), [1021, 1022]))
    assert not any(is_marked for _, is_marked in bars_of(page)[0])
    assert 'class="mark"' not in page


def test_wider_bins_are_no_peaks() -> None:
    plot = html_histogram([1, 2, 4, 6], [10, 20, 0], "residues", "sequences")
    heights = re.findall('<rect [^>]* height="([^"]*)"', plot)
    assert len(heights) == 2
    assert len(set(heights)) == 1


def test_padding_without_dropped_sequences(tmp_path: Path) -> None:
    lengths = [50, 5000, 30, 0, 900, 0, 7, 200, 10, 20, 2000, 80]
    plan = pack_table(tmp_path, list("abcdefghijkl"), lengths, overlong="drop", empty="drop")
    page = report(plan)
    sizes = [length + 2 for length in lengths if 0 < length <= 1022]
    value = cards_of(page)["Padding avoided, against batches of 8"][1]
    assert value.startswith(padding_of(sizes, 8))
    rows = tables_of(page)["Sequences that lost residues"][1:]
    assert [row[:3] for row in rows] == [["b", "5,000", "5,000"], ["k", "2,000", "2,000"]]


def test_padding_of_split_and_dropped_sequences(tmp_path: Path) -> None:
    """Batches have the fragments in order, and no dropped sequences."""
    lengths = [50, 0, 30, 250, 7, 0, 99, 12, 60, 210, 5]
    ids = list(map(str, lengths))
    plan = pack_table(
        tmp_path, ids, lengths, 200, max_sequence_length=98, overlong="split", empty="drop"
    )
    page = report(plan)
    pieces = [50, 30, 98, 98, 54, 7, 98, 1, 12, 60, 98, 98, 14, 5]
    value = cards_of(page)["Padding avoided, against batches of 8"][1]
    assert value.startswith(padding_of([piece + 2 for piece in pieces], 8))


def test_fill_and_the_least_full_batches(tmp_path: Path) -> None:
    tables = tables_of(report(pack(tmp_path, [98, 98, 97, 90, 50, 20, 10], "--max-tokens", 100)))
    assert [row[:3] for row in tables["Fill of batches"][1:]] == [
        ["100 %", "2", "40.0 %"],
        ["99.9 to 100 %", "0", "0 %"],
        ["99 to 99.9 %", "1", "20.0 %"],
        ["95 to 99 %", "0", "0 %"],
        ["75 to 95 %", "2", "40.0 %"],
        ["50 to 75 %", "0", "0 %"],
        ["below 50 %", "0", "0 %"],
    ]
    assert tables["Least full batches"][1:3] == [
        ["4", "3", "86", "86.0 %"],
        ["3", "1", "92", "92.0 %"],
    ]


@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        ([5], {}),
        ([0, 0], {}),
        ([0, 0], {"empty": "drop"}),
        ([2000, 3000], {"overlong": "drop"}),
        ([20, 3000], {"overlong": "drop"}),
        ([2000, 3000], {}),
        ([7] * 50, {"multiple_of": 8}),
        ([1, 2, 4_000_000_000], {}),
        ([2**50], {"max_sequences_per_batch": 1}),
    ],
)
def test_odd_plans_have_a_page(tmp_path: Path, lengths: list[int], options: dict[str, Any]) -> None:
    ids = [f"s{i}" for i in range(len(lengths))]
    parse(report(pack_table(tmp_path, ids, lengths, **options)))


def test_lengths_that_are_all_above_the_limit(tmp_path: Path) -> None:
    page = report(pack_table(tmp_path, ["a", "b"], [2000, 3000]))
    bars, _ = bars_of(page)
    assert all(is_marked for _, is_marked in bars)
    assert 'class="mark" style="left:0.0%"' in page


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_saved_plans_have_a_page_without_lengths(tmp_path: Path, suffix: str) -> None:
    plan = tmp_path / f"plan{suffix}"
    for lengths in ([20, 3000, 900], []):
        GreedyPacker(4096).pack_lengths(lengths).save(plan)
        page = report(plan)
        assert len(bars_of(page)) == (1 if lengths else 0)
        assert ["Sequences", f"{len(lengths)}"] in tables_of(page)["Totals"]
        assert "Sequences that lost residues" not in page
        assert "<p>The plan was saved without the names of its inputs.</p>" in page
        assert ["method", "not known"] in tables_of(page)["Parameters"]


def test_a_negative_length_is_named(tmp_path: Path) -> None:
    plan = pack(tmp_path, [20, 30])
    table = pq.read_table(plan)
    place = table.schema.get_field_index("length")
    table = table.set_column(place, table.schema.field(place), pa.array([-20, 30], pa.int64()))
    pq.write_table(table, plan)
    result = run("report", plan, "-o", tmp_path / "page.html")
    assert result.returncode == 1
    assert "plan.parquet: damaged: a length is negative" in result.stderr


def test_date_is_that_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    plan = pack(tmp_path, LENGTHS)
    os.utime(plan, (0, 1_700_000_000))
    page = report(plan)
    assert "Plan file of 2023-11-14 22:13 UTC; report by virnucpro " in page
    assert report(plan) == page
    os.utime(plan, (0, 0))
    assert "Plan file" not in report(plan)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert report(plan) == page
    for text in ("-1", "now", "9" * 13, ""):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
        result = run("report", plan, "-o", tmp_path / "page.html")
        assert result.returncode == 1
        assert f"SOURCE_DATE_EPOCH must be a number of seconds (got {text!r})" in result.stderr


def luminance(color: str) -> float:
    """Return the relative luminance of a color, as the guidelines WCAG 2 define it."""
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first: str, second: str) -> float:
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_colors_have_enough_contrast() -> None:
    light, dark = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in STYLE.split("@media")[:2]
    )
    assert light.keys() == dark.keys()
    for colors in (light, dark):
        texts = [*itertools.product(("ink", "muted"), ("page", "card")), ("link", "page")]
        texts += [("lost", "page")]
        for kind in ("good", "warn", "bad"):
            texts += [(text, f"{kind}-card") for text in (kind, "ink", "muted")]
        for text, ground in texts:
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
        assert contrast(colors["bar"], colors["page"]) >= 3


# Sorts by two columns in turn, and says what the reader then has.


def test_reports_replace_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.html").write_bytes(fasta([("a", "MK")]))
    assert run("pack", "in.html", "-o", "in.parquet").returncode == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    result = run("report", "../in.parquet", "-o", "../in.html")
    assert result.returncode == 1
    assert "is also an input" in result.stderr
    assert Path("../in.html").read_bytes().startswith(b">a")

"""The page about a plan: its numbers, and that a browser shows it without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from command import run
from fasta import fasta
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.data import GreedyPacker
from virnucpro.jobs.report import count_next_fit_decreasing
from virnucpro.kernel.limits import Limits

BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)


def make_report(folder: Path, lengths: list[int], *options: object) -> str:
    path, plan, page = folder / "a.fa", folder / "plan.parquet", folder / "report.html"
    path.write_bytes(fasta((f"<s{i}&>", "M" * n) for i, n in enumerate(lengths)))
    assert run("pack", path, "-o", plan, *options).returncode == 0
    result = run("report", plan, "-o", page)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == f"Report written to {page}\n"
    return page.read_text(encoding="utf-8")


LENGTHS = [30, 2000, *range(20, 1500, 3)]


def test_page_has_the_numbers_and_no_external_content(tmp_path: Path) -> None:
    page = make_report(tmp_path, LENGTHS)
    assert f"<dt>Sequences</dt><dd>{len(LENGTHS)}</dd>" in page
    cut = [length for length in LENGTHS if length > 1022]
    assert f"<dt>Truncated</dt><dd>{len(cut)}</dd>" in page
    assert f"maximum 1,022 (longer sequences: {len(cut)}, up to 2,000)" in page
    assert (
        '<td>&lt;s1&amp;&gt;</td><td class="number">2,000</td><td class="number">978</td>' in page
    )
    assert page.count("<svg") == 3
    without_names = page.replace("http://www.w3.org/", "").replace("http://purl.org/", "")
    without_names = without_names.replace("http://creativecommons.org/", "")
    for outside in ("http:", "https:", "<script", "<link", "@import", "url(http"):
        assert outside not in without_names
    for part in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part[: part.index("</svg>")] + "</svg>")
    again = make_report(tmp_path, LENGTHS)
    assert again == page


@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        ([5], []),
        ([0, 0], []),
        ([2000, 3000], ["--overlong", "drop"]),
        ([20, 3000], ["--overlong", "drop"]),
        ([20, 3000], ["--overlong", "split", "--overlap", "9"]),
        ([7] * 50, []),
    ],
)
def test_odd_plans_have_a_page(tmp_path: Path, lengths: list[int], options: list[str]) -> None:
    page = make_report(tmp_path, lengths, *options)
    assert page.count("<svg") == 3


def test_each_sequence_is_counted_once_if_it_was_split(tmp_path: Path) -> None:
    page = make_report(tmp_path, [20, 3000, 900], "--overlong", "split")
    for name, value in (("Sequences", 3), ("Split", 1), ("Fragments", 3)):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in page
    assert "maximum 1,022 (longer sequences: 1, up to 3,000)" in page
    assert "<p>No sequences were truncated.</p>" in page


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_saved_plans_have_a_page_without_lengths(tmp_path: Path, suffix: str) -> None:
    plan, page = tmp_path / f"plan{suffix}", tmp_path / "report.html"
    for lengths in ([20, 3000, 900], []):
        GreedyPacker(4096).pack_lengths(lengths).save(plan)
        assert run("report", plan, "-o", page).returncode == 0
        text = page.read_text(encoding="utf-8")
        assert text.count("<svg") == 2
        assert f"<dt>Sequences</dt><dd>{len(lengths)}</dd>" in text
        assert "Longest truncated sequences" not in text
        assert "<p>The plan was saved without the names of its inputs.</p>" in text


MATPLOTLIBRC = """
font.size: 30
figure.facecolor: red
svg.fonttype: path
svg.hashsalt: other
axes.grid: True
_internal.classic_mode: True
text.usetex: True
text.usetex: True
lines.linewidth: thick
unknown: 1
toolbar: toolmanager
nonsense
"""


def report_in(folder: Path, plan: Path, **environment: str) -> tuple[int, str, str]:
    """Return the status, the messages and the page of a report written in a folder."""
    page = folder / "page.html"
    page.unlink(missing_ok=True)
    command = [sys.executable, "-m", "virnucpro", "report", str(plan), "-o", page.name]
    result = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert result.stdout == ""
    return result.returncode, result.stderr, page.read_text("utf-8") if page.exists() else ""


@pytest.mark.process
def test_no_matplotlibrc_changes_the_page(tmp_path: Path) -> None:
    page = make_report(tmp_path, LENGTHS)
    plan = tmp_path / "plan.parquet"
    with mpl.rc_context({"font.size": 30, "axes.grid": True, "svg.hashsalt": "other"}):
        assert run("report", plan, "-o", tmp_path / "report.html").returncode == 0
        assert mpl.rcParams["font.size"] == 30
    assert (tmp_path / "report.html").read_text("utf-8") == page
    present, absent = tmp_path / "present", tmp_path / "absent"
    present.mkdir()
    absent.mkdir()
    (present / "matplotlibrc").write_text(MATPLOTLIBRC)
    expected = 0, "Report written to page.html\n", page
    assert report_in(present, plan) == expected
    assert report_in(absent, plan, MATPLOTLIBRC=str(present)) == expected
    (present / "matplotlibrc").write_bytes(b"font.size: \xff\n")
    status, message, nothing = report_in(present, plan)
    assert (status, message.count("\n"), nothing) == (1, 1, "")
    assert message.startswith(
        "virnucpro: error: matplotlib cannot be imported with the present matplotlibrc"
    )


@pytest.mark.process
@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_browser_shows_it(tmp_path: Path) -> None:
    make_report(tmp_path, LENGTHS)
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,2000"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--screenshot={tmp_path / 'page.png'}"),
        (tmp_path / "report.html").as_uri(),
    ]
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    from matplotlib.image import imread

    picture = imread(tmp_path / "page.png")
    assert picture.shape[:2] == (2000, 1000)
    blue = (np.abs(picture[..., :3] - [0x3B / 255, 0x82 / 255, 0xB6 / 255]) < 0.02).all(-1)
    # Bars of two histograms and a line.
    assert blue.sum() > 5000


@given(
    st.lists(st.integers(0, 20), max_size=40),
    st.integers(20, 60),
    st.none() | st.integers(1, 5),
)
def test_next_fit_decreasing_is_counted(sizes: list[int], budget: int, most: int | None) -> None:
    batches: list[list[int]] = []
    for size in sorted(sizes, reverse=True):
        full = not batches or sum(batches[-1]) + size > budget or len(batches[-1]) == most
        if full:
            batches.append([])
        batches[-1].append(size)
    limits = Limits(budget, special_tokens=0, max_sequences_per_batch=most)
    counted = np.unique(np.array(sizes, np.int64), return_counts=True)
    assert count_next_fit_decreasing(*counted, limits) == len(batches)

"""Layouts by column generation, against exact answers and the bound that they claim."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import highspy
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from instances import triplets
from reference import check_plan
from strategies import Case, cases

from virnucpro import kernel
from virnucpro.data import GreedyPacker, Layout, PackingPlan
from virnucpro.files.sequences import read_files
from virnucpro.files.verify import verify_plan
from virnucpro.kernel import column_generation
from virnucpro.kernel.limits import Limits


def tight(packer: GreedyPacker) -> GreedyPacker:
    packer.method = "tight"
    return packer


@settings(max_examples=150)
@given(cases())
def test_any_case(case: Case) -> None:
    packer = GreedyPacker(**case.parameters)
    first_fit = packer.pack_lengths(case.lengths)
    # A knapsack of so many tokens is refused with a warning.
    plan = tight(packer).pack_lengths(case.lengths)
    assert len(plan) <= len(first_fit)
    assert first_fit.lower_bound <= plan.lower_bound <= len(plan)
    if len(plan) < len(first_fit):
        check_plan(plan, case.lengths, packer)
    copy = pickle.loads(pickle.dumps(plan))
    assert (copy, copy.lower_bound) == (plan, plan.lower_bound)


def make_counts(limits: Limits, tokens: list[int], sequences: list[int]) -> kernel.TokenCounts:
    return kernel.make_counts(
        limits=limits,
        tokens=np.array(tokens),
        sequences=np.array(sequences),
        num_truncated=0,
        truncated_residues=0,
    )


def worth(pattern: dict[int, int], values: list[int]) -> int:
    return sum(values[size] * number for size, number in pattern.items())


@settings(max_examples=300)
@given(st.data())
def test_most_valuable_batch(data: st.DataObject) -> None:
    """The knapsack against all batches there are."""
    tokens = sorted(data.draw(st.sets(st.integers(1, 12), min_size=1, max_size=4)), reverse=True)
    number = len(tokens)
    sequences = data.draw(st.lists(st.integers(1, 6), min_size=number, max_size=number))
    values = data.draw(st.lists(st.integers(0, 9), min_size=number, max_size=number))
    budget, most = data.draw(st.integers(12, 30)), data.draw(st.integers(1, 8))
    limits = Limits(budget, 12, 0, most)
    counts = make_counts(limits, tokens, sequences)
    first = data.draw(st.integers(0, number - 1))
    best, (offsets, sizes, numbers) = kernel.most_valuable(counts, np.array(values), first, 10)
    every: list[tuple[int, int, int]] = [(0, 0, 0)]
    for size in range(number):
        every = [
            (used + tokens[size] * k, n + k, value + values[size] * k)
            for used, n, value in every
            for k in range(sequences[size] + 1)
            if used + tokens[size] * k <= budget and n + k <= most
        ]
    assert best == max(value for _, _, value in every)
    found = [
        dict(zip(sizes[begin:end].tolist(), numbers[begin:end].tolist(), strict=True))
        for begin, end in itertools.pairwise(offsets)
    ]
    assert (len(found) > 0) == (best > 0)
    for place, pattern in enumerate(found):
        assert all(1 <= n <= sequences[size] for size, n in pattern.items())
        assert sum(tokens[size] * n for size, n in pattern.items()) <= budget
        assert sum(pattern.values()) <= most
        assert worth(pattern, values) == best if place == 0 else 0 < worth(pattern, values) <= best


@given(cases(), st.data())
def test_layout_of_patterns(case: Case, data: st.DataObject) -> None:
    """Patterns of a layout give one with as many batches; without some, all sequences are there."""
    assume(case.lengths)
    packer = GreedyPacker(**case.parameters)
    layout = packer.lay_out(packer.count(case.lengths))
    counts = layout.core.counts
    (offsets, sizes, sequences), number = kernel.patterns_of(layout.core)
    assert number.sum() == layout.num_batches
    core = kernel.layout_of(counts, offsets, sizes, sequences, number)
    assert core.num_batches == layout.num_batches
    keep = data.draw(st.integers(0, len(number)))
    core = kernel.layout_of(
        counts,
        offsets[: keep + 1],
        sizes[: offsets[keep]],
        sequences[: offsets[keep]],
        number[:keep],
    )
    found = Layout(core, layout.limits)
    assert found.num_sequences == len(case.lengths)
    assert found.batch_tokens.sum() == layout.total_tokens
    assert found.assign(np.array(case.lengths)).max() + 1 == found.num_batches


def test_bad_patterns() -> None:
    packer = GreedyPacker(10, special_tokens=0, max_sequences_per_batch=2)
    counts = packer.count([6, 4, 4]).core

    def lay_out(sizes: list[int], sequences: list[int], number: list[int]) -> Any:
        ends = np.array([0, len(sizes)])
        return kernel.layout_of(
            counts, ends, np.array(sizes), np.array(sequences), np.array(number)
        )

    assert lay_out([0, 1], [1, 1], [1]).num_batches == 2
    for arguments, message in (
        (([0, 1], [1, 2], [1]), "too many sequences"),
        (([0], [2], [1]), "not so many sequences"),
        (([1], [1], [3]), "not so many sequences"),
        (([1, 0], [1, 1], [1]), "out of order"),
        (([2], [1], [1]), "out of order"),
        (([-1], [1], [1]), "out of order"),
        (([0], [0], [1]), "out of order"),
        (([0], [1], [0]), "empty"),
        (([0], [1], [1, 1]), "its number of batches"),
    ):
        with pytest.raises(ValueError, match=message):
            lay_out(*arguments)
    wrong = np.array([1, 2])
    with pytest.raises(ValueError, match="offsets, sizes and sequences"):
        kernel.layout_of(counts, wrong, wrong, wrong, wrong)
    with pytest.raises(ValueError, match="one value per size"):
        kernel.most_valuable(counts, np.array([1]), 0, 1)
    with pytest.raises(OverflowError, match="53 bits"):
        kernel.most_valuable(counts, np.array([2**53, 1]), 0, 1)
    with pytest.raises(ValueError, match="fewer batches than its bound"):
        kernel.with_bound(lay_out([0, 1], [1, 1], [1]), 3)


def test_more_than_the_usual_bound_proves() -> None:
    """Three of these never share a batch, which tokens alone do not tell."""
    packer = GreedyPacker(100, 100, special_tokens=0)
    lengths = [34] * 50 + [35] * 50
    first_fit = packer.pack_lengths(lengths)
    plan = tight(packer).pack_lengths(lengths)
    assert (first_fit.lower_bound, first_fit.proven_optimal) == (35, False)
    assert (len(plan), plan.lower_bound, plan.proven_optimal) == (50, 50, True)
    assert plan != first_fit


def test_trillions_and_threads() -> None:
    packer = tight(GreedyPacker(1000, 1000, special_tokens=0))
    counts = packer.count(triplets(501, 3))
    for _ in range(35):
        counts += counts
    layout = packer.lay_out(counts)
    assert layout.num_sequences == 501 * 2**35
    assert layout.lower_bound <= layout.num_batches <= layout.lower_bound * (1 + 1e-6)
    packer.num_threads = 7
    assert packer.lay_out(counts) == layout


def test_too_much_is_left_to_first_fit(caplog: pytest.LogCaptureFixture) -> None:
    lengths = np.random.default_rng(0).integers(300_000, 600_000, 300)
    packer = GreedyPacker(2**20, 2**20, special_tokens=0)
    first_fit = packer.pack_lengths(lengths)
    assert tight(packer).pack_lengths(lengths) == first_fit
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "are too many for method='tight'" in record.message
    assert "(at most 4,096 and 134,217,728): packed by First-Fit" in record.message


def test_budget_beyond_all_steps(caplog: pytest.LogCaptureFixture) -> None:
    size = 2**58
    lengths = [4 * size + 1, 4 * size, 3 * size, 3 * size - 1, 3 * size - 2, 3 * size - 3]
    packer = GreedyPacker(10 * size, 10 * size, special_tokens=0)
    first_fit = packer.pack_lengths(lengths)
    assert tight(packer).pack_lengths(lengths) == first_fit
    assert "are too many for method='tight'" in caplog.records[0].message


def test_counts_beyond_the_solver_s_tolerance() -> None:
    sizes = [1000, 984, 942, 931, 911, 854, 814, 797, 696, 487, 258, 168, 144, 84, 57, 36]
    sequences = [27549449795691, 19008560, 256106, 8794070231825, 86092072150, 26529603, 7325]
    sequences += [485314, 78246, 9069816906742, 460660, 15, 26005066735870, 9, 1199171523]
    sequences += [903228389817]
    counts = make_counts(Limits(1000, 1000, 0, 5), sizes, sequences)
    first_fit = kernel.first_fit_decreasing(counts)
    layout = column_generation.lay_out(counts, 1000)
    assert layout.proven_bound <= layout.num_batches <= first_fit.num_batches


def test_odd_arguments_of_the_kernel() -> None:
    for budget, most in ((2**33 - 1, 2**31 - 1), (2**62, 2**31 - 1), (2**62 - 1, 3)):
        many = make_counts(Limits(budget, 10**6, 0, most), [1], [2**40])
        with pytest.raises(OverflowError):
            kernel.most_valuable(many, np.array([1]), 0, 1)
    for budget, expected in ((6, 15), (5, 10)):
        single = make_counts(Limits(budget, 6, 0), [3, 2, 1], [1, 1, 1])
        assert kernel.most_valuable(single, np.array([5, 5, 5]), 2**64 - 1, 9)[0] == expected


@pytest.mark.parametrize("limit", ["MOST_STEPS_IN_ALL", "MOST_PIVOTS_IN_ALL", "MOST_ROUNDS"])
def test_work_is_limited(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_generation, limit, 1)
    lengths = triplets(501, 1)
    packer = GreedyPacker(1000, 1000, special_tokens=0)
    first_fit = packer.pack_lengths(lengths)
    plan = tight(packer).pack_lengths(lengths)
    check_plan(plan, lengths, packer)
    assert 167 <= plan.lower_bound <= len(plan) <= len(first_fit)


def test_dicts_and_files(tmp_path: Path) -> None:
    packer = tight(GreedyPacker(1000, 1000, special_tokens=0))
    sizes = triplets(60, 2)
    records = [{"id": str(row), "sequence": "M" * size} for row, size in enumerate(sizes)]
    batches = packer.pack_sequences(records)
    assert len(batches) == 20
    assert packer.compute_efficiency(batches) == 1.0
    plan = packer.pack_lengths(sizes)
    plan.save(tmp_path / "plan.arrow")
    assert PackingPlan.load(tmp_path / "plan.arrow") == plan
    assert PackingPlan.load(tmp_path / "plan.arrow").lower_bound == 20


def test_command(tmp_path: Path) -> None:
    table, plan = tmp_path / "a.parquet", tmp_path / "plan.parquet"
    sizes = triplets(501, 501)
    pq.write_table(pa.table({"id": [str(i) for i in range(501)], "length": sizes}), table)
    options = ("--max-tokens", 1000, "--max-length", 1000, "--special-tokens", 0)
    result = run("pack", table, "-o", plan, "--method", "tight", *options)
    assert (result.returncode, result.stdout) == (0, "")
    lines = [line.split() for line in result.stderr.splitlines()]
    assert ["Lower", "bound", "167"] in lines
    (first_fit,) = (int(line[-1]) for line in lines if line[:3] == ["Batches", "by", "FFD"])
    assert first_fit > 180
    totals = json.loads(run("stats", "--json", plan).stdout)["totals"]
    assert totals["first_fit_batches"] == first_fit
    assert totals["lower_bound"] == 167 <= totals["batches"] <= 168
    assert run("verify", plan, table).returncode == 0
    assert run("report", plan, "-o", tmp_path / "a.html").returncode == 0
    assert "First-fit decreasing" in (tmp_path / "a.html").read_text()

    def findings(**totals: Any) -> list[str]:
        found = pq.read_table(plan)
        metadata = json.loads(found.schema.metadata[b"virnucpro"])
        metadata["totals"].update(totals)
        changed = found.replace_schema_metadata({b"virnucpro": json.dumps(metadata)})
        pq.write_table(changed, tmp_path / "changed.parquet")
        return verify_plan(tmp_path / "changed.parquet", read_files([str(table)]))

    assert findings() == []
    assert findings(lower_bound=169) == ["the metadata says lower_bound 169, which cannot be"]
    assert findings(first_fit_batches=190)[0].startswith("the metadata says first_fit_batches 190")


def test_without_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    packer = tight(GreedyPacker(10, special_tokens=0))
    monkeypatch.delitem(sys.modules, "virnucpro.kernel.column_generation")
    monkeypatch.delattr(kernel, "column_generation")
    monkeypatch.setitem(sys.modules, "highspy", None)
    message = r"^method='tight' needs highspy: pip install 'virnucpro\[tight\]'$"
    with pytest.raises(ModuleNotFoundError, match=message) as found:
        packer.pack_lengths([1])
    assert found.value.name == "highspy"


def test_command_asks_for_the_solver_before_it_reads() -> None:
    code = (
        "import sys; sys.modules['highspy'] = None; "
        "sys.argv = ['virnucpro', 'pack', 'none.fa', '-o', 'plan', '--method', 'tight']\n"
        "from virnucpro.__main__ import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == (
        "virnucpro: method='tight' needs highspy: pip install 'virnucpro[tight]'\n"
    )


def test_the_solver_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    tight(GreedyPacker(1000, 1000, special_tokens=0)).pack_lengths(triplets(60, 0))
    assert tuple(capfd.readouterr()) == ("", "")


def test_another_use_of_the_solver_may_have_more_threads() -> None:
    packer = tight(GreedyPacker(1000, 1000, special_tokens=0))
    alone = packer.pack_lengths(triplets(60, 0))
    highspy.Highs.resetGlobalScheduler(True)
    try:
        other = highspy.Highs()  # type: ignore[no-untyped-call]
        other.setOptionValue("threads", 2)
        other.minimize(other.addBinary() + other.addBinary())
        plan = packer.pack_lengths(triplets(60, 0))
    finally:
        highspy.Highs.resetGlobalScheduler(True)
    assert plan == alone
    assert len(plan) == 20


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="method must be 'ffd' or 'tight' \\(got 'best'\\)"):
        GreedyPacker(10, method="best")

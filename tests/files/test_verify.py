"""Faults in plans and their inputs, each of which `verify` names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from command import run
from fasta import fasta
from hypothesis import given
from hypothesis import strategies as st
from plans import (
    OVERLONG,
    SUFFIXES,
    lengths_for,
    make_packer,
    read_table,
    rewrite,
    sequences_of,
    with_summary,
    with_totals,
    with_values,
    write,
    write_table,
)
from strategies import Case, cases

from virnucpro.data import GreedyPacker, pack_files
from virnucpro.files.first_fit import check_first_fit
from virnucpro.files.verify import verify_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@given(
    case=cases(),
    overlong=st.sampled_from(OVERLONG),
    suffix=st.sampled_from(SUFFIXES),
    has_input=st.booleans(),
    data=st.data(),
)
def test_what_is_written_is_verified(
    folder: Path, case: Case, overlong: str, suffix: str, has_input: bool, data: st.DataObject
) -> None:
    """Other plans are not: any two sequences of different batches and sizes exchanged."""
    packer = make_packer(case, overlong)
    lengths = lengths_for(packer, case)
    names = st.lists(st.sampled_from("abc"), min_size=len(lengths), max_size=len(lengths))
    all_sequences = sequences_of(lengths, data.draw(names))
    path = folder / f"plan{suffix}"
    sequences = all_sequences if has_input else None
    plan = write(path, all_sequences, packer)
    assert verify_plan(path, sequences) == []
    table = read_table(path)
    batch, tokens = table["batch"].to_pylist(), table["tokens"].to_pylist()
    if len(plan) >= 2:
        number = st.integers(0, plan.num_sequences - 1)
        one, two = data.draw(number), data.draw(number)
        if batch[one] != batch[two] and tokens[one] != tokens[two]:
            order = pa.array(exchange(list(range(len(batch))), one, two))
            columns = [table[name].take(order) for name in table.column_names[1:]]
            spoilt = pa.table([table["batch"], *columns], schema=table.schema)
            write_table(path, spoilt)
            assert verify_plan(path, sequences) != []
    plan.save(path)
    assert verify_plan(path, sequences) == []


@given(case=cases(), overlong=st.sampled_from(OVERLONG))
def test_tight_plans_are_verified(folder: Path, case: Case, overlong: str) -> None:
    packer = make_packer(case, overlong, method="tight")
    lengths = lengths_for(packer, case)
    sequences = sequences_of(lengths, ["a"] * len(lengths))
    path = folder / "plan.parquet"
    write(path, sequences, packer)
    assert verify_plan(path, sequences) == []


def exchange(values: list[Any], one: int, two: int) -> list[Any]:
    values[one], values[two] = values[two], values[one]
    return values


def move_to_last_batch(batches: list[int]) -> list[int]:
    """The shortest sequence of the first batch goes to the last."""
    batches[batches.index(1) - 1] = batches[-1]
    return batches


def reverse_last_batch(table: Any) -> Any:
    batches = table["batch"].to_pylist()
    begin = batches.index(batches[-1])
    order = [*range(begin), *range(begin, len(batches))[::-1]]
    return table.take(order)


def swap_equal(table: Any) -> Any:
    """Exchange two sequences of equally many tokens."""
    tokens = table["tokens"].to_pylist()
    one = next(i for i in range(len(tokens)) if tokens[i] in tokens[i + 1 :])
    order = exchange(list(range(len(tokens))), one, tokens.index(tokens[one], one + 1))
    columns = [table[name].take(pa.array(order)) for name in table.column_names[1:]]
    return pa.table([table["batch"], *columns], schema=table.schema)


def last(change: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    """Change the last value."""
    return lambda values: [*values[:-1], change(values[-1])]


def swap_batches(table: Any) -> Any:
    """Number the first two batches the other way around."""
    return with_values("batch", lambda v: [{0: 1, 1: 0}.get(b, b) for b in v])(table)


Fault = tuple[Callable[[Any], Any], str]

FAULTS: list[Fault] = [
    (with_values("row", lambda v: [*v[:-1], v[0]]), "more than once (affected sequences: 1)"),
    (with_values("row", lambda v: [*v[:-1], 400]), "row 400 is not in the input (affected"),
    (with_values("row", last(lambda _: -1)), "row -1 is not in the input (affected rows: 1)"),
    (with_values("row", lambda v: [*v[:-1], v[0]]), "is missing (affected sequences: 1)"),
    (lambda table: table.slice(0, 399), "the plan has 399 rows, expected 400"),
    (
        with_values("batch", lambda v: [4 if b == 3 else b for b in v]),
        "batch 3 is missing (missing",
    ),
    (with_values("id", lambda v: ["other", *v[1:]]), "is 'other', expected 's"),
    (with_values("length", last(lambda n: n + 1)), "length of row "),
    (with_values("tokens", last(lambda n: n + 1)), "tokens of row "),
    (with_values("tokens", last(lambda n: n + 1)), "tokens in place 399 is "),
    (with_values("truncated", lambda v: [not v[0], *v[1:]]), "truncated of row "),
    (with_values("file", lambda v: ["b.fa", *v[1:]]), "file of row "),
    (
        with_values("batch", lambda v: [None, *v[1:]]),
        "has no batch, but should not be dropped (affected rows: 1)",
    ),
    (with_values("batch", lambda v: [None, *v[1:]]), "dropped sequences do not come last"),
    (with_values("batch", lambda v: [0] * 40 + v[40:]), "more than 4,096"),
    (with_values("batch", lambda v: [b // 2 for b in v]), "more than 4,096"),
    (with_values("batch", lambda v: [v[-1]] * 21 + v[21:]), "sequences, more than 20"),
    (with_values("batch", lambda v: exchange(v, 0, 399)), "rows are not in order of batches"),
    (swap_batches, "rows are not in order of batches (first after batch 1)"),
    (swap_batches, "batch in place 0 is 1, expected 0"),
    (reverse_last_batch, "are not in order of decreasing length"),
    (with_values("batch", move_to_last_batch), "the plan is not First-Fit Decreasing"),
    (swap_equal, "not in order of IDs"),
    (
        with_values("batch", last(lambda _: 2**31 - 1)),
        "(missing batches: 2,147,483,577)",
    ),
    (with_totals(lower_bound=1), "lower_bound is 1 in the summary, expected"),
    (with_totals(batches=1), "batches is 1 in the summary, expected"),
    (with_totals(read=399), "read is 399 in the summary, expected 400"),
    (with_totals(split=1), "split is 1 in the summary, expected 0"),
    (with_totals(residues_repeated=1), "residues_repeated is 1 in the summary, expected 0"),
    (with_totals(residues_truncated=0), "residues_truncated is 0 in the summary, expected"),
    (with_totals(efficiency=1.0), "efficiency is 1.0 in the summary, expected"),
    (
        with_summary(lambda state: state.update(overlong="drop")),
        "is in a batch, but should be dropped (affected rows: ",
    ),
    (
        with_summary(lambda state: state.update(overlong="error")),
        "has more than 1,022 residues, but the plan was made with --overlong error (affected",
    ),
    (
        with_summary(lambda state: state.update(overlong="split")),
        "has more than 1,022 residues, but the plan was made with --overlong split (affected",
    ),
]

DROP_FAULTS: list[Fault] = [
    (with_values("row", lambda v: exchange(v, 398, 399)), "are not in order of rows"),
    (with_values("batch", last(lambda _: 0)), "is in a batch, but should be dropped"),
    (with_values("batch", last(lambda _: 0)), "dropped is "),
    (with_totals(residues_dropped=0), "residues_dropped is 0 in the summary, expected"),
    (
        with_summary(lambda state: state.update(overlong="truncate")),
        "has no batch, but should not be dropped",
    ),
]

SPLIT_FAULTS: list[Fault] = [
    (with_values("start", lambda v: [v[0] + 1, *v[1:]]), "which is out of place (affected fragm"),
    (with_values("stop", lambda v: [v[0] - 1, *v[1:]]), "which is out of place (affected fragm"),
    (with_values("fragment", lambda v: exchange(v, 0, 1)), "which is out of place (affected frag"),
    (with_summary(lambda state: state.update(overlap=6)), "which is out of place (affected fragm"),
    (with_values("row", lambda v: [1 + v[0], *v[1:]]), "which is out of place (affected fragments"),
    (lambda table: table.slice(0, 541), "the plan has 541 rows, expected 542"),
    (with_totals(dropped=1), "the plan has 542 rows, expected 543"),
    (with_totals(fragments=2), "fragments is 2 in the summary, expected"),
    (with_totals(residues_repeated=0), "residues_repeated is 0 in the summary, expected"),
    (swap_equal, "not in order of IDs"),
]

RESIDUES_FAULTS: list[Fault] = [
    (
        with_values("sequence", last(lambda text: text[:-1] + "A")),
        "are not those of the input (affected rows: 1)",
    ),
    (with_values("sequence", last(lambda text: text[:-1])), "are not those of the input"),
    (with_values("sequence", last(lambda _: None)), "are not those of the input"),
]

ROUNDED_FAULTS: list[Fault] = [
    (with_values("tokens", last(lambda n: n + 8)), "tokens of row "),
    (with_values("tokens", last(lambda n: n - 1)), "tokens of row "),
    (with_values("tokens", last(lambda n: n + 8)), "tokens in place 399 is "),
    (with_values("length", last(lambda n: n + 1)), "length of row "),
    (with_totals(tokens=1), "tokens is 1 in the summary, expected "),
    (with_totals(empty=1), "empty is 1 in the summary, expected 0"),
    (with_totals(residues_kept=1), "residues_kept is 1 in the summary, expected "),
    (
        with_summary(lambda state: state["layout"]["counts"].update(padding_tokens=1400)),
        " tokens, expected ",
    ),
]

PLANS: list[tuple[tuple[str, ...], str, list[Fault]]] = [
    (("--max-sequences", "20"), "plan.parquet", FAULTS),
    (("--overlong", "drop"), "plan.arrow", DROP_FAULTS),
    (("--overlong", "split", "--overlap", "5"), "plan.arrow", SPLIT_FAULTS),
    (("--overlong", "split", "--sequences"), "plan.parquet", RESIDUES_FAULTS),
    (("--multiple-of", "8"), "plan.parquet", ROUNDED_FAULTS),
]
CASES = [(options, name, *fault) for options, name, faults in PLANS for fault in faults]


@pytest.fixture(scope="module")
def proteins(folder: Path) -> Path:
    random = np.random.default_rng(0)
    path = folder / "a.fa"
    lengths = random.integers(1, 1500, 400).tolist()
    path.write_bytes(fasta((f"s{i}", "MK"[i % 2] * n) for i, n in enumerate(lengths)))
    return path


@pytest.mark.parametrize(
    ("options", "name", "change", "message"),
    CASES,
    ids=[f"{case[0][1]}: {case[3]}" for case in CASES],
)
def test_faults_are_named(
    tmp_path: Path,
    proteins: Path,
    options: tuple[str, ...],
    name: str,
    change: Callable[[Any], Any],
    message: str,
) -> None:
    plan = tmp_path / name
    assert run("pack", proteins, "-o", plan, *options).returncode == 0
    for arguments in ((plan, proteins), (plan,)):
        good = run("verify", *arguments)
        assert (good.returncode, good.stderr) == (0, f"{plan}: OK (400 sequences)\n")
    rewrite(plan, change)
    result = run("verify", plan)
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert all(line.startswith(f"virnucpro: error: {plan}: ") for line in lines)
    assert any(message in line for line in lines), result.stderr


def test_a_changed_input_is_named(tmp_path: Path, proteins: Path) -> None:
    plan, path = tmp_path / "plan.parquet", tmp_path / "b.fa"
    content = proteins.read_bytes()
    path.write_bytes(content)
    assert run("pack", path, "-o", plan).returncode == 0
    path.write_bytes(content.replace(b"some protein", b"same protein", 1))
    result = run("verify", plan)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"input {path} has changed: 400 sequences in {len(content):,} bytes" in line
    # A copy under another name is the same input.
    assert run("verify", plan, proteins).returncode == 0
    result = run("verify", plan, path, proteins)
    assert result.returncode == 1
    assert "number of inputs is 2, expected 1" in result.stderr


def test_what_cannot_be_read_is_not_a_wrong_plan(tmp_path: Path, proteins: Path) -> None:
    """Status 2 says that nothing is known of the plan."""
    plan, path = tmp_path / "plan.parquet", tmp_path / "b.fa"
    path.write_bytes(proteins.read_bytes())
    assert run("pack", path, "-o", plan).returncode == 0
    path.unlink()
    stdin = tmp_path / "stdin.parquet"
    write(stdin, sequences_of([5, 6], ["a", "b"]), GreedyPacker(100))
    rewrite(stdin, with_summary(lambda state: state["inputs"][0].update(name="-")))
    (tmp_path / "bad.fa").write_text("MKTAY\n")
    for arguments, message in (
        ([plan], f"{plan}: its input {path} is found neither from this folder nor from that"),
        ([plan, path], f"{path}: no such file"),
        ([plan, tmp_path / "bad.fa"], f"{tmp_path / 'bad.fa'}: "),
        ([stdin], f"{stdin}: its input - is standard input; give the inputs after PLAN"),
        ([tmp_path / "none.parquet"], f"{tmp_path / 'none.parquet'}: no such file"),
        ([tmp_path], f"{tmp_path}: not a plan file (a folder without a file _common_metadata)"),
    ):
        result = run("verify", *arguments)
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"virnucpro: error: {message}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saved_plans_are_verified_as_far_as_they_can_be(tmp_path: Path, suffix: str) -> None:
    plan, path = tmp_path / f"plan{suffix}", tmp_path / "a.fa"
    path.write_bytes(fasta([("a", "M" * 60), ("b", "M" * 90), ("c", "M" * 20), ("d", "MK")]))
    GreedyPacker(82, overlong="drop").pack_lengths([60, 90, 20, 2]).save(plan)
    found = run("verify", plan)
    assert (found.returncode, found.stderr) == (
        0,
        f"{plan}: OK (4 sequences, without its input)\n",
    )
    found = run("verify", plan, path)
    assert (found.returncode, found.stderr) == (0, f"{plan}: OK (4 sequences)\n")
    # For the same batches, but other rows, which a checksum tells in Arrow files.
    rewrite(plan, with_values("row", lambda v: exchange(v, 0, 1)))
    found = run("verify", plan)
    assert found.returncode == (suffix == ".arrow")
    assert ("column 'row' is not the one that was written" in found.stderr) == (suffix == ".arrow")
    found = run("verify", plan, path)
    assert found.returncode == 1
    assert "tokens of row 3 is 62, expected 4 (affected rows: 2)" in found.stderr


def test_saved_fragments_are_compared_with_the_input(tmp_path: Path) -> None:
    plan = tmp_path / "plan.parquet"
    GreedyPacker(52, overlong="split").pack_lengths([30, 40, 115]).save(plan)
    for lengths, is_right in (([30, 40, 115], True), ([40, 30, 115], False)):
        found = verify_plan(plan, sequences_of(lengths, ["a", "b", "c"]))
        assert (found == []) == is_right


def test_rounded_plans_are_verified_as_far_as_they_can_be(tmp_path: Path) -> None:
    plan = tmp_path / "plan.arrow"
    GreedyPacker(52, multiple_of=8, overlong="split").pack_lengths([30, 41, 115]).save(plan)
    assert verify_plan(plan, None) == []
    GreedyPacker(52, multiple_of=8).pack_lengths([30, 41, 115]).save(plan)
    assert verify_plan(plan, None) == []
    for lengths, errors in (([30, 41, 115], []), ([30, 42, 115], ["the layout has 123 tokens"])):
        found = verify_plan(plan, sequences_of(lengths, ["a", "b", "c"]))
        assert [error[:25] for error in found[:1]] == errors
    rewrite(plan, with_totals(tokens=126))
    assert verify_plan(plan, None) == ["tokens is 126 in the summary, expected 123"]


def test_dropped_rows_without_residues(tmp_path: Path) -> None:
    """Plans with residues have none for dropped sequences."""
    plan, path = tmp_path / "plan.parquet", tmp_path / "a.fa"
    path.write_bytes(fasta([("a", "M" * 60), ("b", "MK")]))
    pack_files(path, plan, GreedyPacker(50, overlong="drop"), sequences=True)
    assert read_table(plan)["sequence"].to_pylist() == ["MK", None]
    assert run("verify", plan).returncode == 0
    rewrite(plan, with_values("sequence", last(lambda _: "M")))
    found = run("verify", plan)
    assert found.returncode == 1
    assert "the residues of row 0 are not those of the input" in found.stderr


def test_next_fit_is_not_first_fit() -> None:
    """Next-Fit Decreasing, which some packers call First-Fit Decreasing, does not pass."""
    random = np.random.default_rng(0)
    sizes = -np.sort(-random.integers(3, 1024, 500))
    batch = np.zeros(500, np.int64)
    used = number = 0
    for i, size in enumerate(sizes.tolist()):
        if used + size > 4096:
            number, used = number + 1, 0
        batch[i] = number
        used += size
    assert list(check_first_fit(batch, sizes, 4096, 500)) != []
    plan = GreedyPacker(4096, 4096, special_tokens=0).pack_lengths(sizes)
    first_fit = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    assert list(check_first_fit(first_fit, sizes[plan.indices], 4096, 500)) == []

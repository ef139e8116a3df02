"""Parameters, lengths, IDs, records and arrays that are refused, each with a message."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from proteins import make_records
from reference import batches_of

from virnucpro.data import GreedyPacker


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"max_tokens_per_batch": 2}, ValueError, "room for one residue and 2 special tokens"),
        ({"max_tokens_per_batch": 0}, ValueError, "max_tokens_per_batch must be at least 1"),
        ({"max_tokens_per_batch": 2**62 + 1}, ValueError, "max_tokens_per_batch must be at most"),
        ({"max_tokens_per_batch": 4096.0}, TypeError, "must be an integer .got 4096.0."),
        ({"max_tokens_per_batch": True}, TypeError, "must be an integer .got True."),
        ({"max_tokens_per_batch": "9"}, TypeError, "must be an integer .got '9'."),
        ({"max_sequence_length": 0}, ValueError, "max_sequence_length must be at least 1"),
        ({"max_sequence_length": None}, TypeError, "max_sequence_length must be an integer"),
        ({"special_tokens": -1}, ValueError, "special_tokens must be at least 0"),
        (
            {"overlong": "cut"},
            ValueError,
            "overlong must be 'truncate', 'error', 'drop' or 'split' .got 'cut'.",
        ),
        ({"overlap": 1}, ValueError, "overlap must be 0 unless overlong='split' .got 1."),
        ({"overlap": 1.0, "overlong": "split"}, TypeError, "overlap must be an integer .got 1.0."),
        ({"overlap": -1, "overlong": "split"}, ValueError, "overlap must be at least 0 .got -1."),
        ({"overlap": 1022, "overlong": "split"}, ValueError, "overlap must be at most 1,021"),
        ({"max_sequences_per_batch": 0}, ValueError, "max_sequences_per_batch must be at least 1"),
        ({"max_sequences_per_batch": 2**63}, ValueError, "max_sequences_per_batch must be at most"),
        ({"special_tokens": 2**62}, ValueError, "special_tokens must be at most"),
        ({"special_tokens": 4096}, ValueError, "one residue and 4,096 special tokens .got 4,096."),
        ({"multiple_of": 0}, ValueError, "multiple_of must be at least 1 .got 0."),
        ({"multiple_of": 8.0}, TypeError, "multiple_of must be an integer .got 8.0."),
        (
            {"special_tokens": 4090, "multiple_of": 10},
            ValueError,
            "one residue and 4,090 special tokens, rounded up to a multiple of 10 .got 4,096.",
        ),
        ({"multiple_of": 4097}, ValueError, "rounded up to a multiple of 4,097 .got 4,096."),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1"),
        ({"num_threads": 2**16 + 1}, ValueError, "num_threads must be at most 65,536"),
        ({"method": "best"}, ValueError, "method must be 'ffd' or 'tight' .got 'best'."),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GreedyPacker(**{"max_tokens_per_batch": 4096, **parameters})


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_tokens_per_batch": 1, "max_sequence_length": 1, "special_tokens": 0},
        {"max_tokens_per_batch": 2**62, "max_sequence_length": 2**70},
        {"max_tokens_per_batch": 2**62, "special_tokens": 2**62 - 1},
        {"max_tokens_per_batch": 9, "max_sequences_per_batch": 1, "num_threads": 1},
        {"max_tokens_per_batch": 9, "max_sequences_per_batch": 2**63 - 1, "num_threads": 2**16},
        {"max_tokens_per_batch": 2**62, "multiple_of": 2**62},
        {"max_tokens_per_batch": 3, "multiple_of": 3},
    ],
)
def test_parameters_at_their_bounds(parameters: dict[str, Any]) -> None:
    plan = GreedyPacker(**parameters).pack_lengths([1])
    assert batches_of(plan) == [[0]]
    assert plan.total_tokens == 1 + parameters.get("special_tokens", 2)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([5, 6, -1], ValueError, r"lengths\[2\] is negative \(got -1\)"),
        (np.array([5, -128], np.int8), ValueError, r"lengths\[1\] is negative \(got -128\)"),
        (np.array([[5, 6]]), ValueError, r"lengths must be one-dimensional \(got 2 dimensions\)"),
        (np.array(5), ValueError, r"lengths must be one-dimensional \(got 0 dimensions\)"),
        (np.array([5.0]), TypeError, r"lengths must be integers \(got float64\)"),
        (np.array([True]), TypeError, r"lengths must be integers \(got bool\)"),
        (np.array(["5"]), TypeError, r"lengths must be integers \(got <U1\)"),
        (np.ma.array([5, 6]), TypeError, r"lengths must not be a masked array"),
        (deque([5, True]), TypeError, r"lengths\[1\] must be an integer \(got True\)"),
        ([5, True], TypeError, r"lengths\[1\] must be an integer \(got True\)"),
        ([5, 6.0], TypeError, r"lengths\[1\] must be an integer \(got 6.0\)"),
        ([5, None], TypeError, r"lengths\[1\] must be an integer \(got None\)"),
        (
            [5, [6]],
            TypeError,
            r"lengths\[1\] must be an integer \(got list; .*\[len\(each\) ",
        ),
        ([5, 2**63], ValueError, r"lengths\[1\] does not fit in int64 \(got 9223372036854775808\)"),
        ([5, -(2**63) - 1], ValueError, r"lengths\[1\] does not fit in int64 \(got -922"),
        ([2**63 - 1, -(2**63), 2**64], ValueError, r"lengths\[2\] does not fit in int64"),
        ("MKTAY", TypeError, r"lengths must be a list or an array of integers \(got str\)"),
        (b"MKTAY", TypeError, r"lengths must be a list or an array of integers \(got bytes\)"),
        ({5: 6}, TypeError, r"lengths must be a list or an array of integers \(got dict\)"),
        (None, TypeError, r"lengths must be a list or an array of integers \(got NoneType\)"),
    ],
)
def test_bad_lengths(lengths: Any, error: type, message: str) -> None:
    packer = GreedyPacker(4096)
    for call in (packer.pack_lengths, packer.assign_batches, packer.count):
        with pytest.raises(error, match=message):
            call(lengths)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (["a"], ValueError, r"one ID per sequence \(got 1 for 3 sequences\)"),
        (np.array(["a"]), ValueError, r"one ID per sequence \(got 1 for 3 sequences\)"),
        (["a", "b", 3], TypeError, r"ids\[2\] must be str like ids\[0\] \(got int\)"),
        ([1, "b", 3], TypeError, r"ids\[1\] must be int like ids\[0\] \(got str\)"),
        ([1, True, 3], TypeError, r"ids\[1\] must be int like ids\[0\] \(got bool\)"),
        ([None, "b", "c"], TypeError, r"ids\[0\] must be str or int \(got NoneType\)"),
        ([1.5, 2.5, 3.5], TypeError, r"ids\[0\] must be str or int \(got float\)"),
        (b"abc", TypeError, r"ids must be a list or an array of IDs \(got bytes\)"),
        ([1, 2.5, 3], TypeError, r"ids\[1\] must be int like ids\[0\] \(got float\)"),
        ("abc", TypeError, r"ids must be a list or an array of IDs \(got str\)"),
        (7, TypeError, r"ids must be a list or an array of IDs \(got int\)"),
        (np.array([1.5, 2, 3]), TypeError, r"ids must be str or int \(got float64\)"),
        (np.array([True, False, True]), TypeError, r"ids must be str or int \(got bool\)"),
        (np.array([b"a", b"b", b"c"]), TypeError, r"ids must be str or int \(got \|S1\)"),
        (np.ma.array([1, 2, 3]), TypeError, r"ids must not be a masked array"),
        (np.array([["a"], ["b"], ["c"]]), ValueError, r"ids must be one-dimensional \(got 2 "),
        (np.array(["a", None, "c"], object), TypeError, r"ids\[1\] must be str like ids\[0\]"),
    ],
)
def test_bad_ids(ids: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GreedyPacker(4096).pack_lengths([5, 6, 7], ids)


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        ({"id": "a", 5: 6}, ValueError, r"\[1\] has no 'sequence' \(it has 'id'\)$"),
        ({"sequence": "MK", "n": 5}, ValueError, r"\[1\] has no 'id' \(it has 'sequence', 'n'\)$"),
        ({}, ValueError, r"sequences\[1\] has no 'id' \(it has no keys\)$"),
        ("MK", TypeError, r"sequences\[1\] must be a dict \(got str\)"),
        (
            {"id": "a", "sequence": b"MK"},
            TypeError,
            r"\[1\]\['sequence'\] must be a str \(got bytes\)",
        ),
        ({"id": "a", "sequence": None}, TypeError, r"must be a str \(got NoneType\)"),
        ({"id": 7, "sequence": "MK"}, TypeError, r"sequences\[1\]\['id'\] must be str like"),
    ],
)
def test_bad_records(record: Any, error: type, message: str) -> None:
    packer = GreedyPacker(4096)
    records = [{"id": "b", "sequence": "M"}, record]
    for call in (packer.pack_sequences, packer.sort_by_length):
        with pytest.raises(error, match=message):
            call(records)


class Table(list[str]):
    """Like a data frame, which iterates over the names of its columns."""

    columns = ("id", "sequence")


@pytest.mark.parametrize(
    "sequences",
    [None, 5, "MK", b"MK", Path("proteins.fasta"), {"id": "a", "sequence": "MK"}, Table()],
)
def test_values_that_are_not_lists_of_records(sequences: Any) -> None:
    packer = GreedyPacker(4096)
    wanted = rf"must be a list of dicts \(got {type(sequences).__name__}\)"
    for call in (packer.pack_sequences, packer.sort_by_length):
        with pytest.raises(TypeError, match="^sequences " + wanted):
            call(sequences)
    with pytest.raises(TypeError, match=r"^batches\[1\] " + wanted):
        packer.compute_efficiency([[], sequences])


def test_bad_batches() -> None:
    packer = GreedyPacker(10)
    with pytest.raises(ValueError, match=r"batches\[1\]\[0\] has no 'sequence'"):
        packer.compute_efficiency([make_records([3]), [{"id": "a"}]])
    with pytest.raises(ValueError, match=r"batches\[0\] has 12 tokens, more than the budget of 10"):
        packer.compute_efficiency([make_records([4, 4])])


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ([0, 0, 0], TypeError, r"out must be a plain NumPy array \(got list\)"),
        (
            np.ma.zeros(3, np.int32),
            TypeError,
            r"out must be a plain NumPy array \(got MaskedArray\)",
        ),
        (np.empty(3, np.int16), TypeError, r"out must be int32 or int64 \(got int16\)"),
        (np.empty(3, ">i4"), TypeError, r"out must be int32 or int64 \(got >i4\)"),
        (np.empty(2, np.int32), ValueError, r"the shape of lengths, \(3,\) \(got \(2,\)\)"),
        (np.empty(6, np.int32)[::2], ValueError, r"contiguous, aligned and writeable"),
    ],
)
def test_bad_out(out: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        GreedyPacker(4096).assign_batches([5, 6, 7], out=out)


def test_out_must_not_overlap_lengths_or_be_read_only() -> None:
    packer = GreedyPacker(4096)
    lengths = np.array([5, 6, 7], np.int32)
    with pytest.raises(ValueError, match="out must not overlap lengths"):
        packer.assign_batches(lengths, out=lengths)
    assert lengths.tolist() == [5, 6, 7]
    out = np.empty(3, np.int32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="contiguous, aligned and writeable"):
        packer.assign_batches(lengths, out=out)


def test_counts_of_other_limits_are_refused() -> None:
    counts = GreedyPacker(4096).count([5])
    with pytest.raises(ValueError, match=r"at most 1022 residues .* at most 98 residues"):
        GreedyPacker(100).lay_out(counts)
    with pytest.raises(ValueError, match=r"counts were made with different limits"):
        counts + GreedyPacker(100).count([5])
    with pytest.raises(TypeError, match=r"counts must be TokenCounts \(got list\)"):
        GreedyPacker(100).lay_out([5])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"unsupported operand"):
        counts + 1  # type: ignore[operator]
    layout = GreedyPacker(4096).lay_out(counts)
    with pytest.raises(TypeError, match=r"before must be TokenCounts \(got int\)"):
        layout.assign([5], before=3)  # type: ignore[arg-type]

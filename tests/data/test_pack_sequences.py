"""Records packed as lists of dicts: order, truncation and efficiency."""

from __future__ import annotations

import copy
import logging
import random
from typing import Any

import numpy as np
import pytest
from proteins import make_records, random_lengths
from reference import batches_of

from virnucpro.data import GreedyPacker

LOGGER = "virnucpro.data.packing"
DEFAULT = (
    "; this default is for proteins: for the tokens of documents, use "
    "GreedyPacker.for_documents(4096)"
)


def test_ffd_sorting() -> None:
    batches = GreedyPacker(100).pack_sequences(make_records([10, 50, 30, 40]))
    assert [[len(record["sequence"]) for record in batch] for batch in batches] == [
        [50, 40],
        [30, 10],
    ]


def test_sort_by_length() -> None:
    records = [
        {"id": "b", "sequence": "M" * 2000},
        {"id": "a", "sequence": "M" * 2000},
        {"id": "d", "sequence": ""},
        {"id": "c", "sequence": "M" * 2001},
        {"id": "a", "sequence": "W" * 2000},
    ]
    in_order = GreedyPacker(4096).sort_by_length(records)
    expected = sorted(records, key=lambda record: (-len(record["sequence"]), record["id"]))
    assert [id(record) for record in in_order] == [id(record) for record in expected]
    assert GreedyPacker(4096).sort_by_length([]) == []


def test_deterministic_tiebreaking() -> None:
    records = make_records([30] * 20 + [40] * 20)
    packer = GreedyPacker(100)
    expected = packer.pack_sequences(records)
    for seed in range(10):
        shuffled = random.Random(seed).sample(records, len(records))
        assert packer.pack_sequences(shuffled) == expected


def test_equal_ids_keep_the_order_of_input() -> None:
    records = [{"id": "a", "sequence": sequence} for sequence in ("MK", "MT", "MA")]
    assert GreedyPacker(100).pack_sequences(records) == [records]


def test_token_budget_respected() -> None:
    packer = GreedyPacker(4096)
    lengths = random_lengths(2000).tolist()
    batches = packer.pack_sequences(make_records(lengths))
    tokens = [sum(len(record["sequence"]) + 2 for record in batch) for batch in batches]
    assert max(tokens) <= 4096
    packed = [record["id"] for batch in batches for record in batch]
    assert sorted(packed) == sorted(f"seq{row:03d}" for row in range(2000))


def test_input_is_not_changed() -> None:
    records = make_records([2000, 10, 1022, 1023])
    before = copy.deepcopy(records)
    dicts = list(records)
    batches = GreedyPacker(4096).pack_sequences(records)
    assert records == before
    assert all(one is other for one, other in zip(records, dicts, strict=True))
    packed = {record["id"]: record for batch in batches for record in batch}
    assert packed["seq001"] is records[1]
    assert packed["seq002"] is records[2]
    assert packed["seq000"] == {"id": "seq000", "sequence": "M" * 1022, "truncated": True}


def test_truncation_keeps_the_n_terminal_end() -> None:
    sequence = "".join(random.Random(0).choices("ACDEFGHIKLMNPQRSTVWY", k=1500))
    record = {"id": "x", "sequence": sequence, "organism": "SARS"}
    assert GreedyPacker(4096).pack_sequences([record]) == [
        [{"id": "x", "sequence": sequence[:1022], "organism": "SARS", "truncated": True}]
    ]


def test_truncation_warning(caplog: pytest.LogCaptureFixture) -> None:
    packer = GreedyPacker(4096)
    records = make_records([2048, 10])
    with caplog.at_level(logging.WARNING, LOGGER):
        packer.pack_sequences(records)
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]
    assert caplog.messages == [
        "Sequence seq000 exceeds max_length (2048 > 1022), truncating to its first 1022 residues"
    ]


def test_truncation_warnings_are_limited_per_packer(caplog: pytest.LogCaptureFixture) -> None:
    packer = GreedyPacker(4096)
    with caplog.at_level(logging.DEBUG, LOGGER):
        packer.pack_sequences(make_records([1023] * 70))
        assert [entry.levelname for entry in caplog.records] == ["WARNING"] * 70
        caplog.clear()
        packer.pack_sequences(make_records([1024] * 50))
        levels = [entry.levelname for entry in caplog.records]
        assert levels == ["WARNING"] * 30 + ["DEBUG"] * 20 + ["WARNING"]
        last = caplog.records[-1].getMessage()
        assert last == (
            "50 sequences exceed max_sequence_length (1022), truncating: 100 residues removed, "
            f"0.20 % of all; 120 sequences since this packer was created{DEFAULT}"
        )
        caplog.clear()
        packer.pack_sequences(make_records([10]))
        assert not caplog.records
    with caplog.at_level(logging.WARNING, LOGGER):
        packer.pack_sequences(make_records([1024] * 3))
        assert len(caplog.records) == 1
        caplog.clear()
        GreedyPacker(4096).pack_sequences(make_records([1024] * 100))
        assert all("Sequence seq" in message for message in caplog.messages)
        assert len(caplog.messages) == 100


def test_truncation_of_arrays_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    packer = GreedyPacker(4096)
    for call in (packer.pack_lengths, packer.assign_batches, packer.count):
        caplog.clear()
        with caplog.at_level(logging.WARNING, LOGGER):
            call([2000, 5, 1500])
        (entry,) = caplog.records
        assert entry.getMessage() == (
            "2 of 3 sequences exceed max_sequence_length (1022), truncating: 1,456 residues "
            f"removed, 41.54 % of all{DEFAULT}"
        )


def test_overlong_error() -> None:
    packer = GreedyPacker(4096, overlong="error")
    with pytest.raises(
        ValueError,
        match=r"Sequence seq001 exceeds \w+ \(1023 > 1022\); .* 2 of 3$",
    ):
        packer.pack_sequences(make_records([5, 1023, 4000]))
    with pytest.raises(
        ValueError,
        match=r"lengths\[1\] exceeds max_sequence_length \(1023 > 1022\); .*: 2 of 3$",
    ):
        packer.pack_lengths([5, 1023, 4000])
    with pytest.raises(ValueError, match=r"lengths\[0\] exceeds max_sequence_length .*: 3 of 3$"):
        packer.pack_lengths(np.full(3, 2**63, np.uint64))
    assert len(packer.pack_sequences(make_records([1022]))) == 1
    assert len(packer.sort_by_length(make_records([4000]))) == 1


def test_efficiency_calculation() -> None:
    packer = GreedyPacker(1000)
    assert packer.compute_efficiency([make_records([898])]) == 0.9
    assert packer.compute_efficiency([make_records([898]), make_records([398])]) == 0.65
    assert packer.compute_efficiency([make_records([5000])]) == 1.0
    assert packer.compute_efficiency([]) == 0.0


def test_bos_eos_accounting() -> None:
    packer = GreedyPacker(20)
    assert packer._tokenized_length("MKTAY") == 7  # noqa: SLF001
    assert packer._tokenized_length("M" * 50) == 20  # noqa: SLF001
    # Two sequences of 8 residues take 20 tokens; of 9 they would take 22.
    assert len(packer.pack_sequences(make_records([8, 8]))) == 1
    assert len(packer.pack_sequences(make_records([9, 9]))) == 2
    assert len(GreedyPacker(18, special_tokens=0).pack_sequences(make_records([9, 9]))) == 1


@pytest.mark.parametrize(
    ("lengths", "parameters", "expected"),
    [
        pytest.param([], {"max_tokens_per_batch": 10}, [], id="empty list"),
        pytest.param([5], {"max_tokens_per_batch": 10}, [[0]], id="one sequence"),
        pytest.param([3, 3], {"max_tokens_per_batch": 10}, [[0, 1]], id="exact fit"),
        pytest.param([0, 0, 1], {"max_tokens_per_batch": 5}, [[2, 0], [1]], id="zero length"),
        pytest.param(
            [0, 4, 0], {"max_tokens_per_batch": 4, "special_tokens": 0}, [[1, 0, 2]], id="no tokens"
        ),
        pytest.param(
            [0, 0, 0],
            {"max_tokens_per_batch": 4, "special_tokens": 0, "max_sequences_per_batch": 2},
            [[0, 1], [2]],
            id="no tokens, capped",
        ),
        pytest.param(
            [50, 50],
            {"max_tokens_per_batch": 12, "max_sequence_length": 1022},
            [[0], [1]],
            id="budget smaller than the limit",
        ),
        pytest.param([9, 1], {"max_tokens_per_batch": 3}, [[0], [1]], id="one residue a batch"),
    ],
)
def test_edge_cases(
    lengths: list[int], parameters: dict[str, Any], expected: list[list[int]]
) -> None:
    packer = GreedyPacker(**parameters)
    assert batches_of(packer.pack_lengths(lengths)) == expected
    packed = packer.pack_sequences(make_records(lengths))
    assert [[int(record["id"][3:]) for record in batch] for batch in packed] == expected

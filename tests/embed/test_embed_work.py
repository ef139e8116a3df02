"""The parts of embeddings."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virnucpro.data import GreedyPacker
from virnucpro.files.equal_sequences import find_equal
from virnucpro.files.fasta import ReadChanges
from virnucpro.files.sequences import Sequences
from virnucpro.jobs import embed_work

LIMIT = 40


@settings(max_examples=25)
@given(data=st.data())
def test_parts(data: st.DataObject) -> None:
    """Parts have each row once, and the windows of a sequence in one."""
    lengths = np.array(data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=60)))
    overlong = data.draw(st.sampled_from(["truncate", "split", "drop"]))
    numbers = data.draw(st.lists(st.integers(0, 5), min_size=len(lengths), max_size=len(lengths)))
    sequences = Fake(
        [f"{number}" * length for number, length in zip(numbers, lengths, strict=True)]
    )
    sizes = embed_work.Sizes(100, data.draw(st.sampled_from([0, 10])))
    packer = GreedyPacker(90, LIMIT, overlong=overlong, empty="drop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_work, "MIN_PART_RESIDUES", data.draw(st.integers(1, 2000)))
        most = data.draw(st.integers(100, 10_000))
        patch.setattr(embed_work, "PART_BYTES", most)
        deduplicate = data.draw(st.booleans())
        work = embed_work.plan_work(sequences, packer, deduplicate, sizes, lambda *_: None)
    rows = [work.copies_of(work.rows_of(part))[0] for part in work.parts]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(lengths)))
    assert [part.number for part in work.parts] == list(range(len(work.parts)))
    batches = [part for part in work.parts if not part.is_dropped]
    bounds = [0, *(part.end for part in batches)]
    assert [part.begin for part in batches] == bounds[:-1]
    assert bounds[-1] == work.plan.num_batches
    texts = [sequences.residues[row] for row in work.distinct]
    if deduplicate:
        assert len(set(texts)) == len(texts)
        first = {text: row for row, text in reversed(list(enumerate(sequences.residues)))}
        assert sorted(first.values()) == work.distinct.tolist()
    else:
        assert work.distinct.tolist() == list(range(len(lengths)))
    for part in work.parts:
        copies, places = work.copies_of(work.rows_of(part))
        of = work.distinct[work.rows_of(part)][places]
        assert [sequences.residues[row] for row in copies] == [
            sequences.residues[row] for row in of
        ]
        assert work.bytes_of(part, sizes) >= 100 * len(copies)
    # A part is full at its last batch, or that of its last group.
    for part in batches:
        if overlong != "split" and part.end - part.begin > 1:
            assert work.bytes_of(part._replace(end=part.end - 1), sizes) <= most
    for part in batches:
        for batch in range(part.begin, part.end):
            for record in work.batch(batch):
                assert len(record["sequence"]) + 2 == record["tokens"]


class Fake(Sequences):
    """Sequences in memory."""

    residues: list[str]

    def __init__(self, residues: list[str]) -> None:
        ids = pa.array([f"s{i}" for i in range(len(residues))], pa.large_string())
        super().__init__(ids, np.array(list(map(len, residues))), [], ReadChanges())
        object.__setattr__(self, "residues", residues)

    def read(self, rows: Any) -> list[str]:
        return [self.residues[row] for row in rows.tolist()]


def test_equal_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves of the hashes tell sequences apart, and the first of equal rows is found."""
    hashes = {"A": b"1" * 16, "C": b"1" * 8 + b"2" * 8, "D": b"2" * 8 + b"1" * 8}

    class Hash:
        def __init__(self, text: bytes, digest_size: int) -> None:
            self.text = text[:digest_size].decode()

        def digest(self) -> bytes:
            return hashes[self.text]

    monkeypatch.setattr(hashlib, "blake2b", Hash)
    assert find_equal(Fake(list("CADCADDAC"))).tolist() == [0, 1, 2, 0, 1, 2, 2, 1, 0]

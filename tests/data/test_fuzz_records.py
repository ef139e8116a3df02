"""The inputs that the fuzzer has kept, each failure that it found among them, and random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_records import check
from hypothesis import given
from hypothesis import strategies as st

CORPUS = sorted(Path(__file__).parents[1].glob("corpus/records/*"))


def test_there_is_a_corpus() -> None:
    assert len(CORPUS) > 20


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_kept(path: Path) -> None:
    check(path.read_bytes())


@given(st.binary(max_size=400))
def test_random(data: bytes) -> None:
    check(data)

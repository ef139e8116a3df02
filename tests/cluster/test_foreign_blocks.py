"""Blocks that others made are checked before they are used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from virnucpro.cluster.blocks import Counted, Job, count_block
from virnucpro.cluster.reading import GroupReader, divide_table
from virnucpro.data import GreedyPacker, ReadOptions
from virnucpro.files.inputs import Input


def dictionary(indices: Any, texts: list[str]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), texts, safe=False)


def test_damaged_blocks() -> None:
    job = Job(GreedyPacker(100), "length", "id")
    good = pa.table({"id": ["a"], "more": dictionary([0], ["a"]), "length": [1]})
    counted = count_block(good, 0, job)
    assert isinstance(counted, Counted)
    assert counted.num_packed == 1
    # All columns are moved.
    bad = pa.table({"id": ["a"], "more": dictionary([2**30], ["a"]), "length": [1]})
    found = count_block(bad, 3, job)
    assert isinstance(found, ValueError)
    assert re.fullmatch(r"block 3: its columns: damaged: [^\n]+", str(found))


def test_row_groups_of_much_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("virnucpro.memory", "virnucpro.files.tables"):
        monkeypatch.setattr(f"{module}.available_memory", lambda: 2**27)
    path = tmp_path / "a.parquet"
    ids = dictionary(np.zeros(9999, np.int32), ["x" * 2**20])
    pq.write_table(pa.table({"id": ids, "length": np.ones(9999, np.int8)}), path)
    monkeypatch.chdir(tmp_path)
    (source,) = divide_table(Input("a.parquet", "a.parquet", 1), ReadOptions())
    assert source.groups is not None
    with pytest.raises(MemoryError, match=r"^a\.parquet: column 'id': texts need about 9\.8 GiB"):
        list(GroupReader(source, ReadOptions(), source.groups))

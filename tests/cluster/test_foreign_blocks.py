"""Blocks that others made are checked before they are used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from virnucpro.cluster.ray_data import count_block
from virnucpro.cluster.tables import RowGroup, read_block
from virnucpro.data import GreedyPacker


def dictionary(indices: Any, texts: list[str]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), texts, safe=False)


def test_damaged_blocks() -> None:
    packer = GreedyPacker(100)
    good = pa.table({"id": ["a"], "more": dictionary([0], ["a"]), "length": [1]})
    counted = count_block(good, 0, packer, "length", "id")
    assert isinstance(counted, tuple)
    assert counted[0].num_sequences == 1
    # Ray sorts all columns.
    bad = pa.table({"id": ["a"], "more": dictionary([2**30], ["a"]), "length": [1]})
    found = count_block(bad, 3, packer, "length", "id")
    assert isinstance(found, ValueError)
    assert re.fullmatch(r"block 3: its columns: damaged: [^\n]+", str(found))


def test_row_groups_of_much_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("virnucpro.memory", "virnucpro.files.tables"):
        monkeypatch.setattr(f"{module}.available_memory", lambda: 2**27)
    path = tmp_path / "a.parquet"
    ids = dictionary(np.zeros(9999, np.int32), ["x" * 2**20])
    pq.write_table(pa.table({"id": ids, "length": np.ones(9999, np.int8)}), path)
    with pytest.raises(MemoryError, match=r"^a\.parquet: column 'id': texts need about 9\.8 GiB"):
        read_block([RowGroup("a.parquet", path, 0, 0, 9999)], "id", "length")

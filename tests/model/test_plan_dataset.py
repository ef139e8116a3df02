"""The batches of a plan with residues, read forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from compressed import COMPRESSIONS
from fasta import fasta
from torch.utils.data import DataLoader

from virnucpro.data import (
    GreedyPacker,
    PackedFastaDataset,
    PackedPlanDataset,
    PackingPlan,
    pack_files,
)
from virnucpro.files import plan_reader, plan_writer

Batches = list[list[dict[str, Any]]]


@pytest.fixture(scope="module", params=["truncate", "drop", "split"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    draw = np.random.default_rng(1)
    for name in ("a.fasta", "b.fasta"):
        lengths = draw.integers(0, 120, 150).tolist()
        records = (
            (f"{name}{i}", "".join(draw.choice(list("ACDE"), n))) for i, n in enumerate(lengths)
        )
        (folder / name).write_bytes(fasta(records))
    packer = GreedyPacker(150, 90, overlong=request.param)
    with pytest.MonkeyPatch.context() as patch:
        # Several row groups.
        patch.setattr(plan_writer, "ROW_GROUP_SIZE", 40)
        inputs = [folder / "a.fasta", folder / "b.fasta"]
        pack_files(inputs, folder / "plan.parquet", packer, sequences=True)
    assert pq.ParquetFile(folder / "plan.parquet").num_row_groups > 5
    return folder / "plan.parquet"


def from_fasta(plan: Path) -> Batches:
    dataset = PackedFastaDataset([plan.parent / "a.fasta", plan.parent / "b.fasta"], plan)
    return [dataset[batch] for batch in range(len(dataset))]


@pytest.mark.parametrize("chunk", [1, 7, 2**14])
def test_records_are_those_of_fasta(
    packed: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_reader, "CHUNK", chunk)
    dataset = PackedPlanDataset(packed)
    batches = list(dataset)
    assert batches == from_fasta(packed)
    assert len(batches) == len(dataset) == dataset.summary.totals.batches
    assert batches == list(dataset)


@pytest.mark.parametrize("world_size", [1, 2, 3, 1000])
def test_ranks_share_the_batches(packed: Path, world_size: int) -> None:
    batches = list(PackedPlanDataset(packed))
    for rank in range(min(world_size, 4)):
        share = PackedPlanDataset(packed, rank, world_size)
        assert list(share) == batches[rank::world_size]
        assert len(share) == len(batches[rank::world_size])


@pytest.mark.process
def test_workers_share_the_batches_of_a_rank(packed: Path, request: pytest.FixtureRequest) -> None:
    share = PackedPlanDataset(packed, rank=1, world_size=2)
    # Spawned workers take seconds to start, and do not depend on what the plan holds.
    is_split = "split" in request.node.name
    for method in ["fork", "spawn"] if is_split else ["fork"]:
        loader = DataLoader(share, batch_size=None, num_workers=2, multiprocessing_context=method)
        assert list(loader) == list(PackedPlanDataset(packed))[1::2]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_input(compression: str, tmp_path: Path) -> None:
    content = fasta([("a", "MKTAY" * 30), ("b", "MK"), ("c", "")])
    path, plan = tmp_path / "a.fasta", tmp_path / "plan.parquet"
    path.write_bytes(COMPRESSIONS[compression](content))
    pack_files(path, plan, GreedyPacker(100), sequences=True)
    records = [record for batch in PackedPlanDataset(plan) for record in batch]
    assert [record["sequence"] for record in records] == [("MKTAY" * 30)[:98], "MK", ""]
    # Nothing is left beside the plan.
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.fasta", "plan.parquet"]


def test_plans_that_have_no_sequences(packed: Path, tmp_path: Path) -> None:
    pack_files(packed.parent / "a.fasta", tmp_path / "plan.parquet", GreedyPacker(100))
    with pytest.raises(ValueError, match=r"has no sequences \(make one with .* --sequences"):
        PackedPlanDataset(tmp_path / "plan.parquet")
    with pytest.raises(ValueError, match=r"plan\.arrow: sequences can be stored in Parquet"):
        pack_files(
            packed.parent / "a.fasta", tmp_path / "plan.arrow", GreedyPacker(100), sequences=True
        )
    assert not (tmp_path / "plan.arrow").exists()


def test_ranks_out_of_range(packed: Path) -> None:
    with pytest.raises(ValueError, match=r"rank must be at most 1 .got 2"):
        PackedPlanDataset(packed, 2, 2)
    with pytest.raises(ValueError, match="rank and world_size must be given together"):
        PackedPlanDataset(packed, 0)
    with pytest.raises(TypeError, match=r"must be the path of a plan file \(got PackingPlan\)"):
        PackedPlanDataset(PackingPlan.load(packed))  # type: ignore[arg-type]


@pytest.mark.parametrize("column", ["sequence", "tokens", "batch"])
def test_damaged_batches_are_named(packed: Path, column: str, tmp_path: Path) -> None:
    table = pq.read_table(packed)
    rows = list(range(len(table)))
    # Exchange a value with one of another size.
    rows[0], rows[-1] = rows[-1], rows[0]
    at = table.schema.get_field_index(column)
    damaged = table.set_column(at, table.schema.field(at), table.column(at).take(rows))
    pq.write_table(damaged, tmp_path / "plan.parquet")
    with pytest.raises(ValueError, match=r"damaged: batch .* is not that of the layout"):
        list(PackedPlanDataset(tmp_path / "plan.parquet"))


def test_rows_that_occur_more_than_once_are_an_error(packed: Path, tmp_path: Path) -> None:
    table = pq.read_table(packed)
    name = "fragment" if "fragment" in table.schema.names else "row"
    place = table.schema.get_field_index(name)
    numbers = table[name].to_pylist()
    for changed, message in (
        ([*numbers[1:2], *numbers[1:]], "damaged: a row occurs more than once$"),
        ([-1, *numbers[1:]], "damaged: batch 0 is not that of the layout$"),
        ([10**6, *numbers[1:]], "damaged: batch 0 is not that of the layout$"),
    ):
        column = pa.array(changed, table.schema.field(name).type)
        path = tmp_path / "plan.parquet"
        pq.write_table(table.set_column(place, table.schema.field(name), column), path)
        with pytest.raises(ValueError, match=message):
            list(PackedPlanDataset(path))

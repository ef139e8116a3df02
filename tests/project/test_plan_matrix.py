"""Any plan, by whatever wrote it, in any reader: it works, or says why it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from fasta import fasta
from torch.utils.data import DataLoader

from virnucpro.cluster.pack import pack_files_on_ray
from virnucpro.data import (
    GreedyPacker,
    PackedBatchSampler,
    PackedDataset,
    PackedFastaDataset,
    PackedPlanDataset,
    PackingPlan,
    pack_files,
)

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("local_ray")]

LIMITS = (70, 40)
FASTA = "proteins.fasta"
Records = list[dict[str, Any]]


@pytest.fixture(scope="module")
def records() -> Records:
    draw = np.random.default_rng(3)
    lengths = draw.choice([0, 3, 20, 39, 40, 41, 100], 60).tolist()
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    return [
        {"id": f"id{row % 50}", "sequence": "".join(draw.choice(letters, length))}
        for row, length in enumerate(lengths)
    ]


@pytest.fixture(
    scope="module",
    params=[("truncate", 1), ("drop", 1), ("split", 1), ("truncate", 8), ("split", 8)],
    ids=["truncate", "drop", "split", "truncate, multiple of 8", "split, multiple of 8"],
)
def packer(request: pytest.FixtureRequest) -> GreedyPacker:
    overlong, multiple_of = request.param
    overlap = 7 if overlong == "split" else 0
    return GreedyPacker(*LIMITS, overlong=overlong, overlap=overlap, multiple_of=multiple_of)


def name_of(packer: GreedyPacker) -> str:
    """Return a name for the plans of a packer."""
    return f"{packer.overlong}-{packer.multiple_of}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, records: Records) -> Path:
    """The input."""
    folder = tmp_path_factory.mktemp("input")
    (folder / FASTA).write_bytes(fasta((r["id"], r["sequence"]) for r in records))
    return folder


def expected_plan(packer: GreedyPacker, records: Records) -> PackingPlan:
    lengths = [len(record["sequence"]) for record in records]
    return packer.pack_lengths(lengths, [record["id"] for record in records])


# What writes a plan: a function of the folder, the packer and the plan itself.
Maker = Callable[[Path, GreedyPacker, PackingPlan], Path]


def by_command(name: str, *options: str) -> Maker:
    def make(folder: Path, packer: GreedyPacker, _plan: PackingPlan) -> Path:
        output = folder / f"{name_of(packer)}.{name}"
        budget, length = LIMITS
        limits = ("--max-tokens", budget, "--max-length", length)
        rounding = ("--multiple-of", packer.multiple_of)
        overlong = ("--overlong", packer.overlong, "--overlap", packer.overlap)
        done = run(
            "pack", "-q", folder / FASTA, "-o", output, *limits, *rounding, *overlong, *options
        )
        assert done.returncode == 0, done.stderr
        return output

    return make


def by_function(name: str, **options: Any) -> Maker:
    def make(folder: Path, packer: GreedyPacker, _plan: PackingPlan) -> Path:
        output = folder / f"{name_of(packer)}.{name}"
        pack_files(folder / FASTA, output, packer, **options)
        return output

    return make


def by_save(name: str) -> Maker:
    def make(folder: Path, packer: GreedyPacker, plan: PackingPlan) -> Path:
        output = folder / f"{name_of(packer)}.{name}"
        plan.save(output)
        return output

    return make


def by_ray(folder: Path, packer: GreedyPacker, _plan: PackingPlan) -> Path:
    output = folder / f"{name_of(packer)}.by-ray"
    pack_files_on_ray(folder / FASTA, output, packer)
    return output


MAKERS: dict[str, Maker] = {
    "pack .parquet": by_command("a.parquet"),
    "pack .arrow": by_command("b.arrow"),
    "pack --sequences": by_command("c.parquet", "--sequences"),
    "pack_files .parquet": by_function("d.parquet"),
    "pack_files .arrow": by_function("e.arrow"),
    "save .parquet": by_save("f.parquet"),
    "save .arrow": by_save("g.arrow"),
    "Ray": by_ray,
}


def read_load(path: Path, plan: PackingPlan, _folder: Path, _records: Records) -> None:
    assert PackingPlan.load(path) == plan


def read_stats(path: Path, plan: PackingPlan, _folder: Path, records: Records) -> None:
    shown = run("stats", "--json", path)
    assert shown.returncode == 0, shown.stderr
    totals = json.loads(shown.stdout)["totals"]
    assert (totals["batches"], totals["tokens"]) == (len(plan), plan.total_tokens)
    assert (totals["read"], totals["dropped"]) == (len(records), len(plan.dropped))


def read_verify(path: Path, _plan: PackingPlan, folder: Path, _records: Records) -> None:
    # With the input that the plan names, and with the same sequences in FASTA.
    for inputs in ((), (folder / FASTA,)) if path.is_file() else ((),):
        verified = run("verify", path, *inputs)
        assert verified.returncode == 0, verified.stderr
        assert "OK" in verified.stderr


def read_report(path: Path, plan: PackingPlan, folder: Path, _records: Records) -> None:
    page = folder / "report.html"
    shown = run("report", path, "-o", page)
    assert shown.returncode == 0, shown.stderr
    assert f"<dt>Batches</dt><dd>{len(plan):,}<" in page.read_text(encoding="utf-8")


def check_batches(batches: list[Records], plan: PackingPlan, records: Records) -> None:
    """The records of each batch are those of the plan, cut as it says."""
    assert len(batches) == len(plan)
    for numbers, batch in zip(plan, batches, strict=True):
        for number, record in zip(numbers.tolist(), batch, strict=True):
            row, start, stop = number, 0, plan.limits.max_residues
            if plan.fragments is not None:
                row, start, stop = (int(values[number]) for values in plan.fragments)
            assert record["id"] == records[row]["id"]
            assert record["sequence"] == records[row]["sequence"][start:stop]
            assert record["tokens"] == plan.limits.tokens(len(record["sequence"]))


def read_fasta(path: Path, plan: PackingPlan, folder: Path, records: Records) -> None:
    dataset = PackedFastaDataset(folder / FASTA, path)
    check_batches([dataset[batch] for batch in range(len(dataset))], plan, records)


def read_dataset(path: Path, plan: PackingPlan, _folder: Path, records: Records) -> None:
    dataset = PackedDataset(records, path)
    check_batches([dataset[batch] for batch in range(len(dataset))], plan, records)


def read_forward(path: Path, plan: PackingPlan, _folder: Path, records: Records) -> None:
    check_batches(list(PackedPlanDataset(path)), plan, records)


def read_sampler(path: Path, plan: PackingPlan, _folder: Path, records: Records) -> None:
    shares = [list(PackedBatchSampler(path, rank, 2, even=False)) for rank in range(2)]
    numbers = [rows for pair in zip(*shares, strict=False) for rows in pair]
    numbers += shares[0][len(shares[1]) :]
    assert numbers == [rows.tolist() for rows in plan]
    dataset = PackedDataset(records, path)
    loader = DataLoader(
        dataset.records,
        batch_sampler=PackedBatchSampler(path),
        collate_fn=list,
    )
    check_batches(list(loader), plan, records)


def read_reshuffle(path: Path, plan: PackingPlan, _folder: Path, _records: Records) -> None:
    assert PackingPlan.load(path).reshuffle(5) == plan.reshuffle(5)


def read_shard(path: Path, plan: PackingPlan, _folder: Path, _records: Records) -> None:
    loaded = PackingPlan.load(path)
    for rank in range(3):
        expected = [rows.tolist() for rows in plan.shard(rank, 3)]
        assert [rows.tolist() for rows in loaded.shard(rank, 3)] == expected


READERS = {
    "load": read_load,
    "stats": read_stats,
    "verify": read_verify,
    "report": read_report,
    "PackedFastaDataset": read_fasta,
    "PackedDataset": read_dataset,
    "PackedPlanDataset": read_forward,
    "sampler": read_sampler,
    "reshuffle": read_reshuffle,
    "shard": read_shard,
}


# Readers that do not know `multiple_of`.
@pytest.mark.parametrize("maker", MAKERS)
def test_every_plan_in_every_reader(
    maker: str, packer: GreedyPacker, folder: Path, records: Records
) -> None:
    plan = expected_plan(packer, records)
    path = MAKERS[maker](folder, packer, plan)
    for reader, read in READERS.items():
        if reader == "PackedPlanDataset" and maker != "pack --sequences":
            with pytest.raises(ValueError, match="the plan has no sequences"):
                read(path, plan, folder, records)
        else:
            read(path, plan, folder, records)

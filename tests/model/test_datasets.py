"""Records and batches of FASTA files, shared by workers and ranks."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
import torch
from models import AMINO_ACIDS, fair_esm_converter
from torch.utils.data import DataLoader

import virnucpro.data
from virnucpro.data import (
    GreedyPacker,
    PackedFastaDataset,
    PackingPlan,
    ReadOptions,
    SequenceDataset,
    VarlenCollator,
)

Record = dict[str, Any]
TESTS = Path(__file__).parents[1]
REAL = [
    Path(os.environ.get("VIRNUCPRO_REAL_DATA", ""), f"{name}.faa.gz")
    for name in ("uniprot_viruses", "ecoli_k12")
]


def write_fasta(path: Path, records: list[tuple[str, str]]) -> Path:
    lines = []
    for name, sequence in records:
        lines.append(f">{name} some protein")
        lines += [sequence[i : i + 60] for i in range(0, len(sequence), 60)]
    path.write_text("\n".join(lines) + "\n")
    return path


def proteins(number: int, prefix: str = "s", longest: int = 1300) -> list[tuple[str, str]]:
    draw = random.Random(number)
    return [
        (f"{prefix}{i}", "".join(draw.choices(AMINO_ACIDS, k=draw.randrange(1, longest))))
        for i in range(number)
    ]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """One large file and a small one."""
    small = tmp_path / "small.fa.gz"
    write_fasta(tmp_path / "large.fa", proteins(90, "l"))
    small.write_bytes(gzip.compress(write_fasta(tmp_path / "s.fa", proteins(7)).read_bytes()))
    return [tmp_path / "large.fa", small]


def test_records(files: list[Path]) -> None:
    expected = [
        {"id": name, "sequence": sequence, "file": str(file)}
        for file, part in zip(files, (proteins(90, "l"), proteins(7)), strict=True)
        for name, sequence in part
    ]
    dataset = SequenceDataset(files)
    assert list(dataset) == expected
    assert list(dataset) == expected
    assert list(SequenceDataset(str(files[0]))) == expected[:90]


def test_odd_records(tmp_path: Path) -> None:
    path = tmp_path / "odd.fa"
    path.write_bytes("\ufeff>é x\r\n\r\nmk T*\r\n>\r\n>é\r\nMK".encode())
    assert [(record["id"], record["sequence"]) for record in SequenceDataset(path)] == [
        ("é", "MKT"),
        ("", ""),
        ("é", "MK"),
    ]


def test_max_length(files: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    whole = list(SequenceDataset(files))
    cut = list(SequenceDataset(files, max_length=500))
    too_long = [record for record in whole if len(record["sequence"]) > 500]
    assert 0 < len(too_long) < len(whole)
    for record, expected in zip(cut, whole, strict=True):
        if expected in too_long:
            expected = {**expected, "sequence": expected["sequence"][:500], "truncated": True}
        assert record == expected
    lost = sum(len(record["sequence"]) - 500 for record in too_long)
    assert caplog.messages == [
        f"{len(too_long)} sequences exceed max_length (500), truncating: {lost:,} residues removed"
    ]


@pytest.mark.parametrize(
    ("paths", "error", "message"),
    [
        ([], ValueError, "fasta_files must name at least one file"),
        (["no.fa"], FileNotFoundError, "no.fa: no such file"),
        ([1.5], TypeError, "float"),
        (None, TypeError, r"fasta_files must be a path or a list of paths \(got None\)"),
    ],
)
def test_bad_files(paths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SequenceDataset(paths)


def test_bad_max_length(files: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"max_length must be at least 1 \(got 0\)"):
        SequenceDataset(files, 0)


def share_out(
    tmp_path: Path, world_size: int, numbers: list[str], files: list[Path]
) -> dict[str, list[list[str]]]:
    """Run the ranks of a gloo group; return the IDs of each rank by number of workers."""
    store = tmp_path / f"store{world_size}"
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, "-W", "ignore", str(TESTS / "shares.py")),
                *(str(rank), str(world_size), str(store), *numbers, "--", *map(str, files)),
            ],
            stdout=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world_size
    found = [json.loads(output) for output in outputs]
    return {number: [rank[number] for rank in found] for number in numbers}


@pytest.mark.process
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_workers_and_ranks_share_records(
    tmp_path: Path, files: list[Path], world_size: int
) -> None:
    if "VIRNUCPRO_REAL_DATA" in os.environ:
        files = REAL
    expected = sorted(record["id"] for record in SequenceDataset(files))
    numbers = ["0", "1", "2", "3", "5"]
    # Spawned workers take seconds to start; those of one process are in test_loader.py.
    spawned = ["2s"] if world_size == 3 else []
    shared = share_out(tmp_path, world_size, [*numbers, *spawned], files)
    for packed in [shared.pop(number) for number in spawned]:
        assert sorted(name for rank in packed for batch in rank for name in batch) == expected
        assert len(set(map(len, packed))) == 1
    for found in shared.values():
        assert sorted(name for rank in found for name in rank) == expected
        shares = [len(rank) for rank in found]
        # One record more or less for each worker.
        assert max(shares) - min(shares) <= 5


def test_pickled_with_its_rank(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = SequenceDataset(files)
    whole = list(dataset)
    assert list(pickle.loads(pickle.dumps(dataset))) == whole
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_rank", lambda: 1)
        patch.setattr(torch.distributed, "get_world_size", lambda: 4)
        pickled = pickle.dumps(dataset)
        assert list(dataset) == whole[1::4]
    assert list(pickle.loads(pickled)) == whole[1::4]


def packed_files(tmp_path: Path) -> tuple[list[Path], list[Record]]:
    """A plain file and one in bgzip, with records without residues in all places."""
    first = [("e0", ""), *proteins(30, "a"), ("e1", ""), ("e2", ""), ("x", "MK")]
    second = [*proteins(20, "b"), ("e3", ""), ("x", "MKT" * 700)]
    write_fasta(tmp_path / "first.fa", first)
    write_fasta(tmp_path / "second", second)
    pysam.tabix_compress(str(tmp_path / "second"), str(tmp_path / "second.fa.gz"), force=True)
    files = [tmp_path / "first.fa", tmp_path / "second.fa.gz"]
    return files, list(SequenceDataset(files))


@pytest.mark.process
def test_batches_by_random_access(tmp_path: Path) -> None:
    files, records = packed_files(tmp_path)
    packer = GreedyPacker(2048)
    plan = packer.pack_lengths([len(record["sequence"]) for record in records])
    dataset = PackedFastaDataset(files, plan)
    expected = [
        [
            {
                **packer.pack_sequences([records[row]])[0][0],
                "row": row,
                "tokens": min(len(records[row]["sequence"]), 1022) + 2,
            }
            for row in rows.tolist()
        ]
        for rows in plan
    ]
    assert len(dataset) == len(plan) > 5
    assert [dataset[i] for i in reversed(range(len(plan)))] == expected[::-1]
    assert dataset[-1] == expected[-1]
    with pytest.raises(IndexError):
        dataset[len(plan)]
    assert pickle.loads(pickle.dumps(dataset))[3] == expected[3]
    for context in ("fork", "spawn"):
        loaded: DataLoader[Any] = DataLoader(
            dataset, batch_size=None, num_workers=2, multiprocessing_context=context
        )
        assert list(loaded) == expected
    collate = VarlenCollator(fair_esm_converter(), 2048)
    batches: DataLoader[Any] = DataLoader(dataset, batch_size=None, collate_fn=collate)
    assert [len(b["input_ids"]) for b in batches] == plan.batch_tokens.tolist()


def plan_for(lengths: list[int]) -> Any:
    return GreedyPacker(4096).pack_lengths(lengths)


def test_repeated_ids_are_read_by_their_place(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "a.fa", [("a", "MK"), ("b", "MKT"), ("a", "MKTA")])
    records = PackedFastaDataset(path, plan_for([2, 3, 4]))[0]
    assert [(record["id"], record["sequence"], record["row"]) for record in records] == [
        ("a", "MKTA", 2),
        ("b", "MKT", 1),
        ("a", "MK", 0),
    ]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([2, 3], r"the plan is for 2 sequences, the data set has 3"),
        ([2, 3, 4, 5], r"the plan is for 4 sequences, the data set has 3"),
        (
            [2, 3, 5],
            r"record 3 of .*a.fa \('c', row 2\) has 4 .* 6 tokens; the plan has 7",
        ),
        ([], r"the plan is for 0 sequences, the data set has 3"),
    ],
)
def test_plans_of_other_files_are_refused(tmp_path: Path, lengths: list[int], message: str) -> None:
    path = write_fasta(tmp_path / "a.fa", [("a", "MK"), ("b", "MKT"), ("c", "MKTA")])
    assert len(PackedFastaDataset(path, plan_for([2, 3, 4]))) == 1
    with pytest.raises(ValueError, match=message):
        PackedFastaDataset(path, plan_for(lengths))


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "a.fa", [("a", "MK"), ("b", "MK"), ("c", "MKTA")])
    for rows in ([2, 1, 1], [2, 1, 3], [2, 1, -1]):
        plan = PackingPlan(plan_for([2, 2, 4]), np.array(rows, np.int32))
        with pytest.raises(ValueError, match="damaged: it does not contain each row exactly once"):
            PackedFastaDataset(path, plan)


def test_a_plan_is_checked_for_each_record(tmp_path: Path) -> None:
    """Batches of the same tokens in all are not enough."""
    path = write_fasta(tmp_path / "a.fa", [("a", "MK"), ("b", "MKTA"), ("c", "MKT"), ("d", "MKT")])
    with pytest.raises(ValueError, match=r"record 1 of .*\('a', row 0\) .* has 5 \(4 such"):
        PackedFastaDataset(path, plan_for([3, 3, 2, 4]))
    with pytest.raises(TypeError, match="plan must be a PackingPlan"):
        PackedFastaDataset(path, [[0, 1]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"options must be ReadOptions \(got dict\)"):
        PackedFastaDataset(path, plan_for([2, 4, 3, 3]), {})  # type: ignore[arg-type]


def test_changes_by_reading_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_fasta(tmp_path / "a.fa", [("a", "mk*"), ("b", "MKT*"), ("c", "MK-")])
    said = "sequences were changed while reading: "
    dataset = SequenceDataset(path)
    assert list(dataset) == list(dataset)
    assert len(PackedFastaDataset(path, plan_for([2, 3, 3]))[0]) == 3
    assert (
        caplog.messages
        == [said + "2 stops (*) removed, 2 lower-case residues converted to upper case"] * 2
    )
    caplog.clear()
    options = ReadOptions(strip_stop=False, uppercase=False)
    records = PackedFastaDataset(path, plan_for([3, 4, 3]), options)[0]
    assert [record["sequence"] for record in records] == ["MKT*", "mk*", "MK-"]
    assert sorted(record["sequence"] for record in SequenceDataset(path, options=options)) == [
        "MK-",
        "MKT*",
        "mk*",
    ]
    assert caplog.messages == []
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: not a regular file"):
        SequenceDataset(tmp_path / "pipe")


@pytest.mark.process
def test_batches_from_threads_and_forks(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "a.fa", proteins(2000))
    records = {record["id"]: record["sequence"][:1022] for record in SequenceDataset(path)}
    plan = plan_for([len(record["sequence"]) for record in SequenceDataset(path)])
    dataset = PackedFastaDataset(path, plan)
    with ThreadPoolExecutor(4) as threads:
        batches = list(threads.map(dataset.__getitem__, range(len(dataset))))
    batches.append(dataset[0])
    forked: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for record in itertools.chain(*batches, *forked):
        assert record["sequence"] == records[record["id"]]


def test_real_proteins_by_random_access(tmp_path: Path) -> None:
    if "VIRNUCPRO_REAL_DATA" not in os.environ:
        pytest.skip("VIRNUCPRO_REAL_DATA names no folder")
    path = tmp_path / "ecoli.fa"
    path.write_bytes(gzip.decompress(REAL[1].read_bytes()))
    records = list(SequenceDataset(path))
    plan = GreedyPacker(4096).pack_lengths([len(record["sequence"]) for record in records])
    dataset = PackedFastaDataset(path, plan)
    for batch in np.random.default_rng(0).integers(0, len(plan), 30).tolist():
        for row, record in zip(plan[batch].tolist(), dataset[batch], strict=True):
            assert record["id"] == records[row]["id"]
            assert record["sequence"] == records[row]["sequence"][:1022]


# A package that each extra installs.
PACKAGES = {
    "torch": "torch",
    "torch,cli": "pyarrow",
    "cli": "pyarrow",
    "esm": "pyarrow",
    "ray": "ray",
}


@pytest.mark.process
@pytest.mark.parametrize("name", sorted(virnucpro.data.LAZY.keys() - {"ReadOptions"}))
def test_missing_packages_are_named(name: str) -> None:
    extra = virnucpro.data.LAZY[name][1]
    # The only ones with this extra that do not need pyarrow.
    package = {"Embedder": "torch", "packed_sdpa": "transformers"}.get(name, PACKAGES[extra])
    code = (
        f"import sys; sys.modules[{package!r}] = None\nimport virnucpro.data as data\n"
        f"assert {name!r} in data.__all__ and {name!r} in dir(data)\n"
        f"try: data.{name}\nexcept ModuleNotFoundError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.startswith(f"{name} needs {package}: in a checkout of virnucpro, run ")
    assert f"pip install '.[{extra}]'" in result.stdout


def test_unknown_attributes_are_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        virnucpro.data.nothing  # noqa: B018
    assert virnucpro.data.SequenceDataset is SequenceDataset

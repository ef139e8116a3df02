"""Packing in the workers of DataLoaders; workers that fail, and what loaders leave behind."""

from __future__ import annotations

import gzip
import multiprocessing
import operator
import pickle
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from fasta import fasta
from torch.utils.data import DataLoader
from worker_faults import Faulty, left, letters_converter, memory, possessions

from virnucpro.data import (
    GreedyPacker,
    PackedDataset,
    PackedFastaDataset,
    PackedPlanDataset,
    VarlenCollator,
    create_async_dataloader,
    pack_files,
)
from virnucpro.model.loader import PackedBatches
from virnucpro.model.workers import PickledBatch, SentBatch, WatchedLoader

pytestmark = [
    pytest.mark.process,
    # Python warns of threads of libraries, which do not run when a worker is forked.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]
needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked"
)


@pytest.mark.parametrize(("context", "num_workers"), [("fork", 2), ("spawn", 1)])
def test_packing_in_dataloader_workers(context: str, num_workers: int) -> None:
    # So many are packed on two threads.
    packer = GreedyPacker(4096, num_threads=2)
    rows = 140_000
    records = [
        {"id": f"seq{row % 1000}", "sequence": "M" * (row * row % 101)} for row in range(2 * rows)
    ]
    expected = [packer.pack_sequences(records[:rows]), packer.pack_sequences(records[rows:])]
    loader: DataLoader[dict[str, Any]] = DataLoader(
        records,  # type: ignore[arg-type]
        batch_size=rows,
        collate_fn=packer.pack_sequences,
        num_workers=num_workers,
        multiprocessing_context=context,
    )
    assert list(loader) == expected


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def watched(fault: str, timeout: float = 60) -> WatchedLoader:
    """Return the loader of `create_async_dataloader`, whose workers are forked."""
    batches = PackedBatches(Faulty(fault), VarlenCollator(letters_converter(), 50), buffer_size=10)
    return WatchedLoader(
        batches,
        batch_size=None,
        collate_fn=PickledBatch,  # type: ignore[arg-type]
        num_workers=2,
        multiprocessing_context="fork",
        persistent_workers=True,
        timeout=timeout,
    )


LOST = r"DataLoader worker \(pid.* \d+\) (exited unexpectedly|is killed by signal)"


@needs_fork
@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("raises", ValueError, "worker process 1(.|\n)*ValueError: the original error"),
        (
            "raises a local class",
            RuntimeError,
            "worker process 1(.|\n)*RuntimeError: LocalError: the original error",
        ),
        ("decodes", RuntimeError, "UnicodeDecodeError in DataLoader worker process 1"),
        ("cannot be sent", Exception, "worker process 1(.|\n)*[Cc]an't (pickle|get) local object"),
        ("exits", RuntimeError, LOST),
        ("exits as if all were well", RuntimeError, LOST),
        ("ends", RuntimeError, LOST),
        ("is killed", RuntimeError, LOST),
        ("stalls", RuntimeError, r"timed out after 5 seconds, waiting for worker 1 \(pid \d+\)"),
    ],
)
def test_errors_name_the_worker(
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr("virnucpro.model.workers.CHECK_INTERVAL", 0.5)
    # Nothing else tells of a worker that exits with status 0, or of any on Windows.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    before = possessions()
    loader = watched(fault, timeout=5 if fault == "stalls" else 60)
    begin = time.monotonic()
    with pytest.raises(error, match=message):
        list(loader)
    assert time.monotonic() - begin < 30
    del loader
    assert left(before) == {}


def test_errors_of_spawned_workers() -> None:
    collate = VarlenCollator(letters_converter(), 50)
    loader = create_async_dataloader(Faulty("raises"), collate, num_workers=2, timeout=100)
    message = "worker process 1(.|\n)*ValueError: the original error"
    with pytest.raises(ValueError, match=message):
        list(loader)


def in_part(loader: Any) -> None:
    for _ in loader:
        break


def with_error(loader: Any) -> None:
    def use() -> None:
        for _ in loader:
            raise KeyError

    with pytest.raises(KeyError):
        use()


def in_generator(loader: Any) -> None:
    def batches() -> Generator[Any]:
        yield from loader

    generator = batches()
    next(generator)
    generator.close()


def by_hand(loader: Any) -> None:
    next(iter(loader))


WAYS: list[Callable[[Any], Any]] = [list, in_part, with_error, in_generator, by_hand]


def make_loaders(folder: Path) -> Iterator[Callable[..., DataLoader[Any]]]:
    """Yield functions that make DataLoaders of each kind of data set."""
    path = folder / "a.fa.gz"
    records = [{"id": f"s{n}", "sequence": "MK" * (1 + n % 9)} for n in range(60)]
    path.write_bytes(gzip.compress(fasta((r["id"], r["sequence"]) for r in records)))
    packer = GreedyPacker(30)
    pack_files(path, folder / "plan.arrow", packer)
    pack_files(path, folder / "plan.parquet", packer, sequences=True)
    collate = VarlenCollator(letters_converter(), 30)
    datasets: list[Any] = [
        PackedDataset(records, packer.pack_lengths([len(r["sequence"]) for r in records])),
        PackedFastaDataset(path, folder / "plan.arrow"),
        PackedPlanDataset(folder / "plan.parquet"),
    ]
    for dataset in datasets:
        yield lambda of=dataset, **more: DataLoader(
            of,
            batch_size=None,
            collate_fn=collate,
            num_workers=2,
            multiprocessing_context="fork",
            timeout=60,
            **more,
        )
    yield lambda **_: watched("nothing")


@needs_fork
@pytest.mark.parametrize("number", [5, pytest.param(200, marks=pytest.mark.long)])
def test_epochs_that_end_early_leave_nothing(tmp_path: Path, own_folder: Path, number: int) -> None:
    for make in make_loaders(tmp_path):
        before = possessions()
        loader = make(persistent_workers=True)
        list(loader)
        during, used = possessions(), memory()
        for epoch in range(number):
            WAYS[epoch % len(WAYS)](loader)
            assert left(during) == {}
        assert memory() - used < 2**24
        del loader
        assert left(before) == {}
        for way in WAYS:
            way(make())
            assert left(before) == {}
    assert list(own_folder.glob("pymp*")) == []


def test_batches_are_sent_as_bytes() -> None:
    """Tensors in shared memory would leave a folder if a worker ended while it sent them."""
    records = [{"id": "a", "sequence": "MKM", "labels": [1, 2, 3]}]
    batch = VarlenCollator(letters_converter(), 50)(records)
    assert type(batch) is dict
    sent = bytes(ForkingPickler.dumps(SentBatch(batch)))
    assert b"torch.multiprocessing" in bytes(ForkingPickler.dumps(batch))
    assert b"torch.multiprocessing" not in sent
    received = pickle.loads(sent)
    assert type(received) is dict
    assert received.keys() == batch.keys()
    assert received["cu_seqlens"] is received["cu_seq_lens_q"]
    for name, value in batch.items():
        equal = torch.equal if isinstance(value, torch.Tensor) else operator.eq
        assert equal(value, received[name])

"""How batches travel from the workers of a DataLoader, and which worker an error is of."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from virnucpro.text import shown

# Seconds between two looks whether all workers are alive.
CHECK_INTERVAL = 5.0
# The types of the tensors of a batch.
TYPES = (torch.int64, torch.int32, torch.bool)


class SentBatch(dict[str, Any]):
    """A batch in a worker, which sends it as bytes; it is received as a dict of tensors.

    A DataLoader sends tensors through shared memory, with a file and a connection for each. For
    tensors as small as those of a batch, sending their bytes takes a fraction of that time. A
    worker that ends while it sends such a file may also crash, or leave a folder behind.
    """

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        tensors = {
            name: value
            for name, value in self.items()
            if isinstance(value, torch.Tensor) and value.is_cpu and value.dtype in TYPES
        }
        # What is in the batch under several names is sent once.
        arrays = {id(value): value.numpy() for value in tensors.values()}
        sent = {name: arrays.get(id(value), value) for name, value in self.items()}
        return receive, (sent, list(tensors))


def receive(batch: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return a batch that was sent, with these values as tensors."""
    tensors = {id(batch[name]): torch.from_numpy(batch[name]) for name in names}
    return {**batch, **{name: tensors[id(batch[name])] for name in names}}


def in_worker(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch as a `SentBatch` if this process is a worker, and unchanged otherwise."""
    return batch if get_worker_info() is None else SentBatch(batch)


class PickledBatch:
    """A batch that is pickled when it is made, so that what cannot be sent is an error there.

    Otherwise, a thread of the worker pickles it, and its errors reach no one.
    """

    def __init__(self, batch: dict[str, Any]) -> None:
        self.data = bytes(ForkingPickler.dumps(SentBatch(batch)))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return pickle.loads, (self.data,)


@contextmanager
def sendable_errors() -> Iterator[None]:
    """In a worker, raise RuntimeError for an error whose class cannot be sent."""
    try:
        yield
    except Exception as error:
        if get_worker_info() is None:
            raise
        try:
            pickle.dumps(type(error))
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {shown(error)}") from error
        raise


class WatchedLoader(DataLoader[Any]):
    """A DataLoader whose errors name the worker that died, within seconds, or that is late.

    By itself, with a timeout, it does not look for workers that died until the time is over, except
    where a signal tells it: not on Windows, in other threads, or for exit status 0.
    """

    def _get_iterator(self) -> Any:
        if self.num_workers == 0:
            return super()._get_iterator()
        self.check_worker_number_rationality()
        return WatchedIterator(self)


class WatchedIterator(_MultiProcessingDataLoaderIter):
    """The iterator of a `WatchedLoader` with workers."""

    def _next_data(self) -> Any:
        try:
            return super()._next_data()  # type: ignore[no-untyped-call]
        except Exception as error:
            # A frame in its traceback refers to the error, and others to this iterator. This cycle
            # would keep the workers after the loader is deleted; the message has the traceback.
            raise error.with_traceback(None)  # noqa: B904

    def _get_data(self) -> Any:
        """Return what a worker sends next.

        Raises:
            RuntimeError: A worker has died, or none has sent anything within the timeout.
        """
        if self._timeout == 0:
            return super()._get_data()  # type: ignore[no-untyped-call]
        end = time.monotonic() + self._timeout
        while (left := end - time.monotonic()) > 0:
            left = min(left, CHECK_INTERVAL)
            is_sent, data = self._try_get_data(left)  # type: ignore[no-untyped-call]
            if is_sent:
                return data
        late = {info[0] for info in self._task_info.values() if len(info) == 1}
        names = [
            f"{number} (pid {worker.pid})"
            for number, worker in enumerate(self._workers)
            if number in late or not late
        ]
        raise RuntimeError(
            f"DataLoader timed out after {self._timeout:g} seconds, waiting for worker "
            f"{', '.join(names)}"
        )


def hide_cuda(_worker: int) -> None:
    """Hide the GPUs from a worker, to leave their memory to the process that runs the model."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

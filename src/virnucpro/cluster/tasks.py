"""Tasks on the blocks of Ray data sets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockAccessor
from ray.exceptions import RayTaskError

# Row numbers, while rows are sorted.
ROW_COLUMN = "virnucpro.row"
# Errors that may not recur when a task is retried.
RETRY_EXCEPTIONS = [MemoryError, OSError]


def execute(ds: ray.data.Dataset) -> list[Any]:
    """Execute a data set and return references to its blocks, in order."""
    options = ds.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        refs: list[Any] = ds.to_arrow_refs()
        return refs
    finally:
        options.preserve_order = before


def map_blocks(
    function: Callable[..., Any], blocks: list[Any], arguments: Iterable[tuple[Any, ...]]
) -> list[Any]:
    """Start a task per block: a function of the block, its number and more arguments.

    Returns references to the results. Ray runs a task on the machine that has its block, and reruns
    it if its worker is lost.
    """
    task = remote_task(function)
    pairs = zip(blocks, arguments, strict=False)
    return [task.remote(block, number, *more) for number, (block, more) in enumerate(pairs)]


def spread(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Start a task per tuple of arguments, on all machines; return references to the results."""
    task = remote_task(function).options(scheduling_strategy="SPREAD")
    return [task.remote(*values) for values in arguments]


@cache
def remote_task(function: Callable[..., Any]) -> Any:
    """Return the function as a task; cached, since Ray sends each new task to all workers."""
    return ray.remote(retry_exceptions=RETRY_EXCEPTIONS)(function)


@contextmanager
def raise_causes() -> Iterator[None]:
    """Raise the error of a failed task itself; Ray adds long tracebacks to it."""
    try:
        yield
    except RayTaskError as error:
        raise error.cause from None


def as_table(block: Any) -> pa.Table:
    """Return a block as a table; Ray may also store blocks as DataFrames."""
    return BlockAccessor.for_block(block).to_arrow()


def count_rows(block: Any, _: int) -> int:
    """Return the number of rows of a block."""
    return int(BlockAccessor.for_block(block).num_rows())


def single_threaded(value: Any) -> Any:
    """Return a copy of a packer or layout that uses one thread, since a task has one core."""
    value = copy.copy(value)
    value.num_threads = 1
    return value

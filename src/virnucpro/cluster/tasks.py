"""Tasks on Ray, and the exchange of rows between tasks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data.block import BlockAccessor
from ray.exceptions import RayTaskError

# Errors that may not recur when a task is retried.
RETRY_EXCEPTIONS = [MemoryError, OSError]
# Times that a task is run again when its worker or machine is lost.
MAX_RETRIES = 10


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


def start(
    function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], **options: Any
) -> list[Any]:
    """Start a task per tuple of arguments; return references to the results.

    Arguments that are references are replaced by their values before the task takes a core, so
    tasks that are run again because a machine was lost cannot wait for each other. Ray prefers the
    machine that has most of them.
    """
    task = remote_task(function).options(**options)
    return [task.remote(*values) for values in arguments]


def start_spread(function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Start a task per tuple of arguments on all machines, which yield their results one by one.

    Returns generators of references to the results.
    """
    options = {"scheduling_strategy": "SPREAD", "num_returns": "streaming"}
    return start(function, arguments, **options)


@cache
def remote_task(function: Callable[..., Any]) -> Any:
    """Return the function as a task; cached, since Ray sends each new task to all workers."""
    return ray.remote(retry_exceptions=RETRY_EXCEPTIONS, max_retries=MAX_RETRIES)(function)


def split_parts(
    function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], num_parts: int
) -> list[list[Any]]:
    """Start a task per tuple of arguments, which returns a list; return references to its items."""
    if num_parts == 1:
        # Ray would store the list instead of its item.
        calls = ((function, *values) for values in arguments)
        return [[ref] for ref in start(only_part, calls, name=function.__name__)]
    return start(function, arguments, num_returns=num_parts)


def only_part(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the only item of the list that a function returns."""
    (part,) = function(*arguments)
    return part


def join_parts(
    arguments: Iterable[tuple[Any, ...]], parts: list[list[Any]]
) -> list[tuple[Any, ...]]:
    """Return the arguments of tasks that each take one part of the results of all tasks.

    The references in `parts` are removed from it, so that Ray frees each part once it was used.
    """
    found = [
        (*values, *(of_task[number] for of_task in parts))
        for number, values in enumerate(arguments)
    ]
    parts.clear()
    return found


@contextmanager
def raise_causes() -> Iterator[None]:
    """Raise the error of a failed task itself; Ray adds long tracebacks to it."""
    try:
        yield
    except RayTaskError as error:
        cause: BaseException = error
        # Of a task that lacks an argument, the cause is the error of the task that failed.
        while isinstance(cause, RayTaskError):
            cause = cause.cause
        raise cause from None


def as_table(block: Any) -> pa.Table:
    """Return a block as a table; Ray may also store blocks as DataFrames."""
    return BlockAccessor.for_block(block).to_arrow()


def concatenate(tables: Iterable[pa.Table]) -> pa.Table:
    """Return tables as one, as Ray does it for blocks whose types differ."""
    tables = list(tables)
    with_rows = [table for table in tables if table.num_rows] or tables[:1]
    builder = BlockAccessor.for_block(with_rows[0]).builder()
    for table in with_rows:
        builder.add_block(table)
    return builder.build()


def take(table: pa.Table, rows: NDArray[Any]) -> pa.Table:
    """Return rows of a table, as Ray does it for tensors too."""
    return BlockAccessor.for_block(table).take(pa.array(rows))


def slices(table: pa.Table, ends: Iterable[int]) -> list[pa.Table]:
    """Return the parts of a table that end at these rows."""
    edges = itertools.pairwise([0, *map(int, ends)])
    return [table.slice(begin, end - begin) for begin, end in edges]


def single_threaded(value: Any) -> Any:
    """Return a copy of a packer or layout that uses one thread, since a task has one core."""
    value = copy.copy(value)
    value.num_threads = 1
    return value

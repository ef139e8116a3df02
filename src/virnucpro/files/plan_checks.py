"""Checks of the rows of plan files."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.layout import Layout
from virnucpro.data.overlong import Fragments
from virnucpro.text import shown

# Batches that are compared at a time.
CHUNK = 2**14


def as_numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of integers, with -1 for nulls."""
    numbers: NDArray[Any] = (column.fill_null(-1) if column.null_count else column).to_numpy()
    return numbers


def compare_layout(table: pa.Table, layout: Layout) -> Iterator[str]:
    """Yield the differences between the columns `batch` and `tokens` and those of the layout."""
    offsets = kernel.batch_offsets(layout.core)
    for name in [name for name in ("batch", "tokens") if name in table.schema.names]:
        found = as_numbers(table[name])
        # In pieces, since the numbers expected take as much memory as those found.
        for first in range(0, layout.num_batches, CHUNK):
            last = min(first + CHUNK, layout.num_batches)
            if name == "tokens":
                expected = kernel.tokens_of_batches(layout.core, first, last)
            else:
                expected = np.repeat(np.arange(first, last), np.diff(offsets[first : last + 1]))
            is_wrong = found[offsets[first] : offsets[last]] != expected
            if is_wrong.any():
                at = int(np.argmax(is_wrong))
                place = int(offsets[first]) + at
                yield f"{name} in place {place:,} is {found[place]:,}, expected {expected[at]:,}"
                break


def check_numbers(path: str | PathLike[str], name: str, numbers: NDArray[Any]) -> None:
    """Raise ValueError unless numbers are those from 0 to their number, each once."""
    seen = np.zeros(len(numbers), np.bool_)
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(numbers)):
        numbers = numbers[(numbers >= 0) & (numbers < len(numbers))]
    seen[numbers] = True
    if not seen.all():
        raise ValueError(
            f"{shown(path)}: damaged: {name} {np.argmin(seen):,} is missing "
            f"(missing numbers: {np.count_nonzero(~seen):,})"
        )


def make_fragments(
    path: str | PathLike[str],
    layout: Layout,
    num_rows: int,
    dropped: NDArray[Any],
    numbers: NDArray[Any],
    rows: NDArray[Any],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
) -> Fragments:
    """Return the fragments of a plan, given their numbers and their columns by slot.

    Raises:
        ValueError: They are not in order of rows and positions, do not have the tokens of the
            layout, or do not make up all rows but those that were dropped.
    """
    check_numbers(path, "fragment", numbers)
    tokens = kernel.tokens_of_batches(layout.core, 0, layout.num_batches)
    sizes, limits = stops - starts, layout.limits
    is_wrong = (sizes < 0) | (sizes > limits.max_residues) | (limits.tokens(sizes) != tokens)
    values = []
    for column in (rows, starts, stops):
        by_number = np.empty(len(numbers), np.int64)
        by_number[numbers] = column
        values.append(by_number)
    fragments = Fragments(*values)
    steps = np.diff(fragments.rows)
    is_first = np.append(True, steps > 0)
    follows = ~is_first[1:]
    found = np.sort(np.append(fragments.rows[is_first[: len(numbers)]], dropped))
    if (
        len(numbers) == 0
        or is_wrong.any()
        or len(found) != num_rows
        or (found != np.arange(num_rows)).any()
        or (steps < 0).any()
        or (fragments.starts[is_first] != 0).any()
        or (np.diff(fragments.starts)[follows] <= 0).any()
        or (fragments.starts[1:] > fragments.stops[:-1])[follows].any()
    ):
        raise ValueError(f"{shown(path)}: damaged: its fragments do not make up the sequences")
    return fragments

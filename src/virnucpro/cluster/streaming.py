"""Packing of Ray data sets that are read twice, since they are larger than the object store."""

from __future__ import annotations

import bisect
import functools
import itertools
import logging
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray

from virnucpro.cluster.blocks import NEW_COLUMNS
from virnucpro.cluster.row_keys import find_rows, key_columns
from virnucpro.cluster.stretches import (
    Stretch,
    add_up,
    describe_pieces,
    list_pieces,
    make_stretch,
)
from virnucpro.cluster.tasks import raise_causes, remote_task, single_threaded, start
from virnucpro.data.layout import Layout, TokenCounts
from virnucpro.data.overlong import warn_of_truncation
from virnucpro.data.packing import GreedyPacker
from virnucpro.files.tables import lengths_of
from virnucpro.text import quoted, shown

logger = logging.getLogger(__name__)

# Rows whose lengths are one object, 2 MB; finding their batches takes 10 ms.
STRETCH_ROWS = 2**20
# Stretches whose counts one task adds up; from 4,096 stretches on, the root of their number.
GROUP_STRETCHES = 64


@dataclass(frozen=True)
class CountedDataset:
    """A Ray data set that `count_dataset` has read once, without its rows.

    Attributes:
        total: The counts of all rows, for ``GreedyPacker.lay_out``.
        index: Reference to the index of the lengths in the object store.
        length_column: The column with the lengths.
        row_column: The column with the row numbers, if they are not found by path and hash.
    """

    total: TokenCounts
    index: Any
    length_column: str
    row_column: str | None

    def assigner(self, layout: Layout) -> Callable[[Any], Any]:
        """Return a function for `map_batches` that adds `batch`, `slot` and `tokens` to rows.

        The columns are those of `pack_dataset`. The function takes and returns an Arrow table, a
        DataFrame or a dict of arrays, of any rows in any order. No result depends on other calls.

        Args:
            layout: What ``GreedyPacker.lay_out`` returns for `total`.

        Raises:
            ValueError: The layout was made from other counts. The function raises it if a column is
                missing, or has the name of a new column.
            RuntimeError: Raised by the function: the data set changed after it was counted. The
                message gives the path and the row.

        Cost: O(1) per row, 0.2 us, and 1 ms per call; 20 ms each time that the rows of a task go on
        to another million.
        """
        if layout.core.counts != self.total.core:
            raise ValueError(f"the layout is not one of these counts: {self.total} (got {layout})")
        return RowAssigner(
            self.index, ray.put(single_threaded(layout)), self.length_column, self.row_column
        )


class RowAssigner:
    """The function that `CountedDataset.assigner` returns."""

    def __init__(self, index: Any, layout: Any, length_column: str, row_column: str | None) -> None:
        self.arguments = (index, layout, length_column, row_column)
        self.reader: StretchReader | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.arguments

    def __call__(self, batch: Any) -> Any:
        """Return a batch of rows with the columns `batch`, `slot` and `tokens`."""
        index, layout, length_column, row_column = self.arguments
        names = batch.column_names if isinstance(batch, pa.Table) else list(batch)
        check_new_columns(names)
        table = batch
        if not isinstance(batch, pa.Table):
            needed = [name for name in (length_column, *key_columns(row_column)) if name in names]
            table = pa.table({name: pa.array(batch[name]) for name in needed})
        lengths = lengths_of(table, length_column)
        runs, rows = find_rows(table, row_column)
        if self.reader is None:
            self.reader = StretchReader(ray.get(index), ray.get(layout))
        added = dict(zip(NEW_COLUMNS, self.reader.assign(runs, rows, lengths), strict=True))
        if isinstance(batch, pa.Table):
            for name, values in added.items():
                batch = batch.append_column(name, pa.array(values))
            return batch
        return {**batch, **added} if isinstance(batch, Mapping) else batch.assign(**added)


@dataclass(frozen=True)
class Index:
    """Where to find the stretch of a row.

    Attributes:
        paths: The paths of all files, in order, large strings.
        files: The file of the first row of each stretch, int64.
        rows: Its number there, int64.
        group_stretches: How many stretches a group has.
        groups: References to the groups: the counts before the group, a reference to the counts
            before and the digest of each stretch, and references to the stretches.
    """

    paths: Any
    files: NDArray[np.int64]
    rows: NDArray[np.int64]
    group_stretches: int
    groups: list[Any]


class StretchReader:
    """Finds the batches of rows by the lengths that were counted. Keeps two stretches."""

    def __init__(self, index: Index, layout: Layout) -> None:
        self.index = index
        self.layout = layout
        self.load = functools.lru_cache(maxsize=2)(self._load)
        self.load_group = functools.lru_cache(maxsize=2)(self._load_group)

    def assign(
        self,
        runs: list[tuple[str, int, int]],
        rows: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
        """Return the batches, slots and tokens of rows; see `RowAssigner`."""
        dtype = np.int64 if self.layout.num_sequences >= 2**31 else np.int32
        batches, slots = np.empty(len(rows), dtype), np.empty(len(rows), dtype)
        for path, begin, end in runs:
            file, stretches = self.find(path, rows[begin:end])
            low, high = stretches.min(), stretches.max()
            for number in [low] if low == high else np.unique(stretches):
                chosen: Any = slice(begin, end)
                if low != high:
                    chosen = begin + np.flatnonzero(stretches == number)
                stretch, *found = self.load(int(number))
                places = stretch.find(file, rows[chosen])
                if len(unknown := np.flatnonzero(places < 0)):
                    raise changed(path, rows[chosen][unknown[0]], "was not counted")
                counted = stretch.lengths[places]
                if len(other := np.flatnonzero(counted != lengths[chosen])):
                    row, old, new = (v[other[0]] for v in (rows[chosen], counted, lengths[chosen]))
                    raise changed(path, row, f"has length {new:,}, but {old:,} was counted")
                batches[chosen], slots[chosen] = (values[places] for values in found)
        return batches, slots, self.layout.limits.tokens(lengths)

    def find(self, path: str, rows: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
        """Return the number of a file, and the stretches that have its rows if any has."""
        index = self.index
        file = bisect.bisect_left(index.paths, path, key=lambda value: value.as_py())
        if file == len(index.paths) or index.paths[file].as_py() != path:
            raise RuntimeError(
                f"the data set changed after it was counted: {quoted(path)} was not read then"
            )
        low, high = np.searchsorted(index.files, [file, file + 1])
        stretches = low + np.searchsorted(index.rows[low:high], rows, "right") - 1
        return file, np.maximum(stretches, 0)

    def _load(self, number: int) -> tuple[Stretch, NDArray[Any], NDArray[Any]]:
        """Return a stretch, and the batches and slots of its rows."""
        group, place = divmod(number, self.index.group_stretches)
        base, summed, stretches = self.load_group(group)
        before, digest = summed[place]
        stretch = ray.get(stretches[place])
        if stretch.digest() != digest:
            # Ray recomputes a stretch if its machine is lost.
            raise RuntimeError("the data set changed after it was counted, and is now read again")
        if base is not None:
            before = base if before is None else base + before
        lengths = stretch.lengths
        return stretch, self.layout.assign(lengths, before), self.layout.slots(lengths, before)

    def _load_group(self, number: int) -> tuple[TokenCounts | None, list[Any], list[Any]]:
        base, summed, stretches = ray.get(self.index.groups[number])
        return base, ray.get(summed), stretches


def changed(path: str, row: int, what: str) -> RuntimeError:
    """Return the error for a row that is not as it was counted."""
    place = f"{quoted(path)}: " if path else ""
    return RuntimeError(f"the data set changed after it was counted: {place}row {row:,} {what}")


def check_new_columns(names: list[str]) -> None:
    """Raise ValueError if a column has the name of one that is added."""
    for name in NEW_COLUMNS:
        if name in names:
            raise ValueError(f"column {quoted(name)} already exists")


def count_dataset(
    ds: ray.data.Dataset,
    packer: GreedyPacker,
    *,
    length_column: str = "length",
    row_column: str | None = None,
) -> CountedDataset:
    """Count a Ray data set for packing, of which only the lengths are read and kept.

    With the counts, a second read of the same data set adds the batch of each row as it streams
    by: lazily, in parallel and without state, so blocks of any sizes in any order, and tasks that
    Ray reruns, give the same result. The batches are exactly those that `packer` makes of all
    lengths as one array on one machine, in order of the paths of the files and, within a file, of
    its rows.

    Ray does not read rows in this order, nor in the same one with other columns. Rows are therefore
    known by the columns that ``read_parquet(include_paths=True, include_row_hash=True)`` adds, from
    which the row in the file is computed. They may pass through `filter`, `map_batches` and others
    that keep these columns; for `read_parquet` alone, Ray reads no other column than these and
    `length_column`.

    A changed length, a new row or a new file is an error in the second read. Rows that it lacks or
    repeats cannot be noticed there: compare the number of rows written with
    ``layout.num_sequences``. Nor can rows whose other columns changed.

    Args:
        ds: The data set, one row per sequence. It is executed once.
        packer: The packer. Each task uses one thread.
        length_column: The column with the length of each sequence in residues, integers.
        row_column: For other data than Parquet: a column with a number of each row, from 0 and
            unique, but not necessarily consecutive. Equally long sequences are in its order. Blocks
            must have separate ranges of numbers.

    Returns:
        The counted data set, with the counts for ``GreedyPacker.lay_out``, and `assigner`.

    Raises:
        ValueError: The packer has overlong="drop" or "split", or empty="drop"; there are no rows; a
            column is missing, has nulls or has the name of a new column; a row occurs twice; or
            lengths are not integers, negative, or too long with overlong="error". The message gives
            the path and the row.
        OverflowError: The total number of tokens does not fit in 64 bits.

    Cost: O(n) in tasks, 0.1 us per row without reading. The object store keeps 2 bytes per row, 4
    if lengths exceed 65,535, and up to 16 more if rows were filtered. The driver needs 1 KB per
    file, block and million of rows, and O(sqrt(n) * distinct sizes).

    Example:
        >>> import pyarrow as pa, pyarrow.parquet, ray, tempfile
        >>> from virnucpro.data import GreedyPacker, count_dataset
        >>> folder = tempfile.mkdtemp()
        >>> pa.parquet.write_table(pa.table({"length": [30, 60, 60]}), f"{folder}/a.parquet")
        >>> ds = ray.data.read_parquet(folder, include_paths=True, include_row_hash=True)
        >>> packer = GreedyPacker(100)
        >>> counted = count_dataset(ds, packer)
        >>> layout = packer.lay_out(counted.total)
        >>> packed = ds.map_batches(counted.assigner(layout), batch_format="pyarrow")
        >>> packed.to_pandas()["batch"].tolist()
        [0, 0, 1]
    """
    check_packer(packer)
    ds = select_keys(ds, length_column, row_column)
    counting = single_threaded(packer)
    # Whole blocks, so that Ray joins this to the task that reads them.
    pieces = ds.map_batches(
        list_pieces,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={
            "packer": counting,
            "length_column": length_column,
            "row_column": row_column,
        },
    )
    blocks = pieces.to_arrow_refs()
    described = ray.get(start(describe_pieces, ((block,) for block in blocks)))
    if not sum(table.num_rows for table in described):
        raise ValueError("the data set has no rows")
    paths, sorted_pieces = sort_pieces(described, row_column)
    total, index = index_pieces(counting, blocks, paths, sorted_pieces)
    logger.info("Counted %s files: %s", f"{len(paths):,}", total)
    warn_of_truncation(total, packer.describe_default())
    return CountedDataset(total, ray.put(index), length_column, row_column)


def check_packer(packer: GreedyPacker) -> None:
    """Raise ValueError or TypeError unless each row is packed as a whole."""
    # Check the parameters, which may have been changed.
    _ = packer.limits
    for name in ("overlong", "empty"):
        value = getattr(packer, name)
        if value in ("drop", "split"):
            raise ValueError(f"{name}={quoted(value)} is not supported here; use pack_dataset")


def select_keys(
    ds: ray.data.Dataset, length_column: str, row_column: str | None
) -> ray.data.Dataset:
    """Return a data set with the columns that are counted; with all of them if Ray knows none.

    Raises ValueError if it lacks one, or has one of the new columns.
    """
    schema = ds.schema(fetch_if_missing=False)
    if schema is None:
        return ds
    check_new_columns(schema.names)
    needed = [length_column, *key_columns(row_column)]
    for name in needed:
        if name not in schema.names:
            advice = ""
            if row_column is None and name != length_column:
                advice = (
                    "; read Parquet with include_paths=True and include_row_hash=True, or give "
                    "row_column"
                )
            raise ValueError(
                f"no column {quoted(name)} (it has {shown(', '.join(schema.names))}){advice}"
            )
    return ds.select_columns(needed)


def sort_pieces(
    described: list[pa.Table], row_column: str | None
) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """Return the paths of all files in order, and columns of the pieces in order of their keys.

    These are the number of the `file`, the numbers of the `first` and the `last` row there,
    `num_rows`, and where the piece is: the `block`, and the `place` in it.

    Raises ValueError or OverflowError for the first invalid piece.
    """
    table = pa.concat_tables(described)
    sizes = [part.num_rows for part in described]
    column = {name: table[name].to_pylist() for name in ("path", "error")}
    paths = sorted(set(column["path"]))
    numbers = {path: number for number, path in enumerate(paths)}
    pieces = {name: table[name].to_numpy() for name in ("first", "last", "num_rows")}
    pieces["file"] = np.array([numbers[path] for path in column["path"]], np.int64)
    pieces["block"] = np.repeat(np.arange(len(sizes)), sizes)
    pieces["place"] = np.concatenate([np.arange(size) for size in sizes]).astype(np.int64)
    order = np.lexsort((pieces["first"], pieces["file"]))
    for number in order.tolist():
        if column["error"][number] is not None:
            raise pickle.loads(column["error"][number])
    pieces = {name: values[order] for name, values in pieces.items()}
    same = pieces["file"][1:] == pieces["file"][:-1]
    if len(twice := np.flatnonzero(same & (pieces["first"][1:] <= pieces["last"][:-1]))):
        piece = int(twice[0])
        before, after = (
            f"rows {pieces['first'][n]:,} to {pieces['last'][n]:,}" for n in (piece, piece + 1)
        )
        what = quoted(row_column or paths[pieces["file"][piece]])
        raise ValueError(f"{what}: {before} and {after} occur in two blocks")
    return paths, pieces


def index_pieces(
    packer: GreedyPacker,
    blocks: list[Any],
    paths: list[str],
    pieces: dict[str, NDArray[np.int64]],
) -> tuple[TokenCounts, Index]:
    """Gather the rows of pieces into stretches; return the sum of their counts, and the index."""
    ends = np.cumsum(pieces["num_rows"])
    starts = ends - pieces["num_rows"]
    num_rows = int(ends[-1])
    columns = list(zip(*(pieces[n].tolist() for n in ("file", "block", "place")), strict=True))
    make = remote_task(make_stretch).options(num_returns=2)
    stretches, counted = [], []
    for begin in range(0, num_rows, STRETCH_ROWS):
        end = min(begin + STRETCH_ROWS, num_rows)
        low, high = np.searchsorted(ends, begin, "right"), np.searchsorted(starts, end, "left")
        used: dict[int, int] = {}
        parts = []
        for piece in range(low, high):
            file, block, place = columns[piece]
            first = int(starts[piece])
            argument = used.setdefault(block, len(used))
            parts.append((file, argument, place, max(begin - first, 0), end - first))
        stretch, counts = make.remote(packer, parts, *(blocks[block] for block in used))
        stretches.append(stretch)
        counted.append(counts)
    size = max(GROUP_STRETCHES, math.isqrt(len(stretches)))
    add = remote_task(add_up).options(num_returns=3)
    groups = [slice(first, first + size) for first in range(0, len(stretches), size)]
    added = [add.remote(*counted[group]) for group in groups]
    with raise_causes():
        totals = ray.get([total for total, _, _ in added])
        keys = np.concatenate(ray.get([keys for _, _, keys in added]))
    *before, total = itertools.accumulate(totals)
    # Raises OverflowError here, rather than when the counts are sent.
    _ = total.total_tokens
    stored = [
        ray.put((base, summed, stretches[group]))
        for base, (_, summed, _), group in zip([None, *before], added, groups, strict=True)
    ]
    return total, Index(pa.array(paths, pa.large_string()), keys[:, 0], keys[:, 1], size, stored)

"""The lengths of counted rows, kept in stretches in the object store, in order of their keys."""

from __future__ import annotations

import hashlib
import itertools
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data.block import BlockAccessor

from virnucpro.cluster.row_keys import find_rows
from virnucpro.data.layout import TokenCounts
from virnucpro.data.packing import GreedyPacker
from virnucpro.files.tables import lengths_of
from virnucpro.text import quoted

# At most so many pieces of a run of rows, since the driver knows each. A run is cut at its largest
# gaps, as the rows in between may be in another block.
MAX_PIECES = 1024
# The columns of a table of pieces, a row each.
PIECES = pa.schema(
    [
        ("path", pa.large_string()),
        ("first", pa.int64()),
        ("last", pa.int64()),
        ("num_rows", pa.int64()),
        # Rows that follow each other: int64 pairs of the first and of its place in the piece.
        ("segments", pa.large_binary()),
        # Unsigned integers of a width in bytes.
        ("lengths", pa.large_binary()),
        ("width", pa.int8()),
        # The error that the rows cause, if any, as a pickle.
        ("error", pa.large_binary()),
    ]
)


@dataclass(frozen=True)
class Stretch:
    """Some rows in order of their files and numbers.

    Attributes:
        files: The file of each segment, which is rows of a file that follow each other, int64.
        firsts: The number of its first row there, int64.
        starts: The place of this row in the stretch, and the number of rows, int64 [segments + 1].
        lengths: The length of each row in residues, unsigned integers.
    """

    files: NDArray[np.int64]
    firsts: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[Any]

    def find(self, file: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of rows of a file in the stretch, -1 for those that it lacks."""
        low, high = np.searchsorted(self.files, [file, file + 1])
        segments = low + np.searchsorted(self.firsts[low:high], rows, "right") - 1
        inside = segments >= low
        segments[~inside] = 0
        places: NDArray[np.int64] = self.starts[segments] + (rows - self.firsts[segments])
        inside &= places < self.starts[segments + 1]
        places[~inside] = -1
        return places

    def digest(self) -> bytes:
        """Return a hash of the rows; O(n), 1 ms for a million rows of 2 bytes."""
        parts = (self.files, self.firsts, self.starts, self.lengths)
        hashed = hashlib.blake2b(digest_size=16)
        for part in parts:
            hashed.update(np.ascontiguousarray(part).data.cast("B"))
        return hashed.digest()


def list_pieces(
    table: pa.Table, packer: GreedyPacker, length_column: str, row_column: str | None
) -> pa.Table:
    """Return the keys and lengths of the rows of a table in pieces, each with rows in order."""
    runs: list[tuple[str, int, int]] = []
    found: list[dict[str, Any]] = []
    try:
        runs, rows = find_rows(table, row_column)
        for path, begin, end in runs:
            run = table.slice(begin, end - begin)
            found.extend(cut_run(run, path, rows[begin:end], packer, length_column))
    except (ValueError, OverflowError) as error:
        # Ray adds long tracebacks to errors that are raised.
        path = runs[0][0] if runs else ""
        found = [{"path": path, "first": 0, "last": 0, "num_rows": 0, "error": pickle.dumps(error)}]
    return pa.Table.from_pylist(found, PIECES)


def cut_run(
    table: pa.Table,
    path: str,
    rows: NDArray[np.int64],
    packer: GreedyPacker,
    length_column: str,
) -> Iterable[dict[str, Any]]:
    """Yield the pieces of a run of rows of a file."""
    place = f"{quoted(path)}: " if path else ""
    try:
        lengths = lengths_of(table, length_column, int(rows[0]))
        _ = packer.count_silently(lengths).total_tokens
    except (ValueError, OverflowError) as error:
        raise type(error)(f"{place}{error}") from error
    if (np.diff(rows) <= 0).any():
        order = np.argsort(rows, kind="stable")
        rows, lengths = rows[order], lengths[order]
    steps = np.diff(rows)
    if len(repeated := np.flatnonzero(steps == 0)):
        raise ValueError(f"{place}row {rows[repeated[0]]:,} occurs twice")
    gaps = np.flatnonzero(steps > 1) + 1
    if len(gaps) >= MAX_PIECES:
        largest = np.argpartition(-steps[gaps - 1], MAX_PIECES - 1)[: MAX_PIECES - 1]
        cuts = np.sort(gaps[largest])
    else:
        cuts = gaps
    for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        inside = gaps[np.searchsorted(gaps, begin, "right") : np.searchsorted(gaps, end)]
        places = np.concatenate([[begin], inside])
        dtype = np.min_scalar_type(int(lengths[begin:end].max()))
        yield {
            "path": path,
            "first": int(rows[begin]),
            "last": int(rows[end - 1]),
            "num_rows": int(end - begin),
            "segments": np.stack([rows[places], places - begin], 1).tobytes(),
            "lengths": lengths[begin:end].astype(dtype).tobytes(),
            "width": dtype.itemsize,
        }


def describe_pieces(block: Any) -> pa.Table:
    """Return what the driver needs to know of the pieces of a block."""
    table = BlockAccessor.for_block(block).to_arrow()
    # A block without rows may lack the columns.
    table = table if table.num_rows else PIECES.empty_table()
    return table.select(["path", "first", "last", "num_rows", "error"])


def read_piece(table: pa.Table, row: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the row numbers and the lengths of a piece."""
    fields = table.slice(row, 1).to_pylist()[0]
    lengths = np.frombuffer(fields["lengths"], f"u{fields['width']}")
    firsts, places = np.frombuffer(fields["segments"], np.int64).reshape(-1, 2).T
    sizes = np.diff(np.append(places, len(lengths)))
    return np.repeat(firsts - places, sizes) + np.arange(len(lengths)), lengths


def make_stretch(
    packer: GreedyPacker, parts: list[tuple[int, int, int, int, int]], *blocks: Any
) -> tuple[Stretch, tuple[TokenCounts, bytes, tuple[int, int]]]:
    """Return a stretch, its counts, its digest, and the file and the number of its first row.

    Args:
        packer: The packer that counts.
        parts: For each part of the stretch: the number of its file, of its block in `blocks`, of
            its piece there, and where it begins and ends in the piece.
        blocks: Tables of pieces.
    """
    tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
    files, firsts, sizes, lengths = [], [], [], []
    for file, block, piece, begin, end in parts:
        rows, values = read_piece(tables[block], piece)
        rows = rows[begin:end]
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        files.append(np.full(len(starts), file))
        firsts.append(rows[starts])
        sizes.append(np.diff(np.append(starts, len(rows))))
        lengths.append(values[begin:end])
    stretch = Stretch(
        np.concatenate(files),
        np.concatenate(firsts),
        np.concatenate([[0], np.cumsum(np.concatenate(sizes))]),
        np.concatenate(lengths),
    )
    counts = packer.count_silently(stretch.lengths)
    return stretch, (counts, stretch.digest(), (int(stretch.files[0]), int(stretch.firsts[0])))


def add_up(
    *counted: tuple[TokenCounts, bytes, tuple[int, int]],
) -> tuple[TokenCounts, list[tuple[TokenCounts | None, bytes]], NDArray[np.int64]]:
    """Return the sum of counts; the counts before each stretch, with its digest; and the keys.

    The keys are the file and the number of the first row of each stretch, int64 [stretches, 2].
    """
    sums = list(itertools.accumulate(counts for counts, _, _ in counted))
    digests = [digest for _, digest, _ in counted]
    keys = np.array([key for _, _, key in counted], np.int64)
    return sums[-1], list(zip([None, *sums], digests, strict=False)), keys

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__version__: str

Lengths = NDArray[np.integer[Any]]
Rows = NDArray[np.signedinteger[Any]]
# A pair is of offsets and the texts in UTF-8 between them.
Utf8 = tuple[NDArray[np.int64], NDArray[np.uint8]]
Ids = tuple[str, ...] | Utf8 | NDArray[np.int64] | NDArray[np.str_] | None

# Offsets, and the sizes and sequences between them.
Patterns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

Record = TypeVar("Record")

class TokenCounts:
    @property
    def max_length(self) -> int: ...
    @property
    def special_tokens(self) -> int: ...
    @property
    def tokens(self) -> NDArray[np.int64]: ...
    @property
    def sequences(self) -> NDArray[np.int64]: ...
    @property
    def num_truncated(self) -> int: ...
    @property
    def truncated_tokens(self) -> int: ...
    @property
    def num_sequences(self) -> int: ...
    @property
    def total_tokens(self) -> int: ...
    def __add__(self, other: TokenCounts, /) -> TokenCounts: ...
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]: ...

class Layout:
    @property
    def max_tokens_per_batch(self) -> int: ...
    @property
    def max_sequences_per_batch(self) -> int | None: ...
    @property
    def num_batches(self) -> int: ...
    @property
    def proven_bound(self) -> int: ...
    @property
    def counts(self) -> TokenCounts: ...
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]: ...

def count(
    lengths: Lengths, max_length: int, special_tokens: int, num_threads: int
) -> TokenCounts: ...
def first_fit_decreasing(
    counts: TokenCounts, max_tokens_per_batch: int, max_sequences_per_batch: int | None
) -> Layout: ...
def layout_of(
    counts: TokenCounts,
    max_tokens_per_batch: int,
    max_sequences_per_batch: int | None,
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    sequences: NDArray[np.int64],
    num_batches: NDArray[np.int64],
    proven_bound: int,
) -> Layout: ...
def patterns_of(layout: Layout) -> tuple[Patterns, NDArray[np.int64]]: ...
def knapsack_steps(
    counts: TokenCounts, max_tokens_per_batch: int, max_sequences_per_batch: int | None
) -> int: ...
def most_valuable(
    counts: TokenCounts,
    values: NDArray[np.int64],
    max_tokens_per_batch: int,
    max_sequences_per_batch: int | None,
    least: int,
    first_size: int,
    most: int,
) -> tuple[int, Patterns]: ...
def lower_bound(layout: Layout) -> int: ...
def batch_tokens(layout: Layout) -> NDArray[np.int64]: ...
def assign_batches(
    layout: Layout, lengths: Lengths, before: TokenCounts, out: Rows, num_threads: int
) -> None: ...
def assign_slots(
    layout: Layout, lengths: Lengths, before: TokenCounts, out: Rows, num_threads: int
) -> None: ...
def list_rows(
    layout: Layout, lengths: Lengths, ids: Ids, num_threads: int
) -> tuple[Rows, NDArray[np.int64]]: ...
def shuffle_rows(layout: Layout, rows: Rows, seed: int, num_threads: int) -> Rows: ...
def make_counts(
    max_length: int,
    special_tokens: int,
    tokens: NDArray[np.int64],
    sequences: NDArray[np.int64],
    num_truncated: int,
    truncated_tokens: int,
) -> TokenCounts: ...
def make_layout(
    max_tokens_per_batch: int,
    max_sequences_per_batch: int,
    num_batches: int,
    proven_bound: int,
    counts: TokenCounts,
    first_run: NDArray[np.int64],
    runs: NDArray[np.int64],
) -> Layout: ...
def read_records(records: list[Any]) -> tuple[tuple[str, ...], NDArray[np.int64]] | None: ...
def count_record_tokens(records: list[Any], max_length: int, special_tokens: int) -> int | None: ...
def gather(
    records: list[Record], indices: Rows, offsets: NDArray[np.int64]
) -> list[list[Record]]: ...

class FastaScanner:
    def feed(self, piece: bytes | bytearray | memoryview | NDArray[np.uint8]) -> None: ...
    def finish(self) -> None: ...
    # Offsets of IDs, IDs, lengths, and where records begin in the text.
    def take_lengths(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]: ...
    # ID and residues, which are there if they are kept.
    def take_records(self) -> list[tuple[str, str]]: ...
    # Line, record, its ID and the reason.
    @property
    def fault(self) -> tuple[int, int, bytes, str] | None: ...
    # Stops, lower case, gaps and insertions.
    @property
    def changes(self) -> tuple[int, int, int, int]: ...

def make_scanner(
    strip_stop: bool, uppercase: bool, drop_gaps: bool, keep_residues: bool
) -> FastaScanner: ...

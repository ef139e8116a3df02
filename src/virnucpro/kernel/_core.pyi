from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernel.arguments import OrderedIds
from virnucpro.kernel.limits import Limits

__version__: str

Lengths = NDArray[np.integer[Any]]
Rows = NDArray[np.signedinteger[Any]]

# Offsets, and the sizes and numbers of sequences of all patterns, concatenated.
Patterns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]

Record = TypeVar("Record")

@final
class TokenCounts:
    @property
    def tokens(self) -> NDArray[np.int64]: ...
    @property
    def sequences(self) -> NDArray[np.int64]: ...
    @property
    def num_truncated(self) -> int: ...
    @property
    def truncated_residues(self) -> int: ...
    @property
    def padding_tokens(self) -> int: ...
    @property
    def num_sequences(self) -> int: ...
    @property
    def total_tokens(self) -> int: ...
    @property
    def max_tokens_per_batch(self) -> int: ...
    # 2**63 - 1 if there is no limit.
    @property
    def max_sequences_per_batch(self) -> int: ...
    def with_limits(self, limits: Limits) -> TokenCounts: ...
    def __add__(self, other: TokenCounts, /) -> TokenCounts: ...

@final
class Layout:
    @property
    def counts(self) -> TokenCounts: ...
    @property
    def num_batches(self) -> int: ...
    @property
    def proven_bound(self) -> int: ...
    @property
    def first_run(self) -> NDArray[np.int64]: ...
    # One array per field.
    @property
    def runs(self) -> dict[str, NDArray[np.int64]]: ...

def count(lengths: Lengths, limits: Limits, num_threads: int) -> TokenCounts: ...
def subset(counts: TokenCounts, sequences: NDArray[np.int64]) -> TokenCounts: ...
def make_counts(
    *,
    limits: Limits,
    tokens: NDArray[np.int64],
    sequences: NDArray[np.int64],
    num_truncated: int,
    truncated_residues: int,
    padding_tokens: int = 0,
) -> TokenCounts: ...

# As make_counts, of sizes in any order, those of equal sizes added up.
def counts_from_pairs(
    *,
    limits: Limits,
    tokens: NDArray[np.int64],
    sequences: NDArray[np.int64],
    num_truncated: int,
    truncated_residues: int,
    padding_tokens: int = 0,
) -> TokenCounts: ...
def first_fit_decreasing(counts: TokenCounts) -> Layout: ...
def patterns_with_reservation(counts: TokenCounts, max_parts: int = ...) -> Layout: ...

# The counts of joint sizes, and the first original size of each.
def coarsen(
    counts: TokenCounts, unit: int, max_sizes: int, round_down: bool
) -> tuple[TokenCounts, NDArray[np.int64]]: ...

# Patterns of original sizes, the number of batches of each, and the sequences that remain.
def refine(
    counts: TokenCounts,
    first_size: NDArray[np.int64],
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    sequences: NDArray[np.int64],
    num_batches: NDArray[np.int64],
) -> tuple[Patterns, NDArray[np.int64], NDArray[np.int64]]: ...
def layout_from_patterns(
    counts: TokenCounts,
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    sequences: NDArray[np.int64],
    num_batches: NDArray[np.int64],
) -> Layout: ...
def patterns_of(layout: Layout) -> tuple[Patterns, NDArray[np.int64]]: ...
def pricing_steps(counts: TokenCounts) -> int: ...
def price_patterns(
    counts: TokenCounts, duals: NDArray[np.int64], first_size: int, max_patterns: int
) -> tuple[int, Patterns]: ...

# The batch of each sequence; the open ones, with their tokens and sequences, come first.
def place(
    tokens: NDArray[np.int64],
    sequences: NDArray[np.int64],
    sizes: NDArray[np.int64],
    limits: Limits,
) -> NDArray[np.int64]: ...
def make_layout(
    *,
    counts: TokenCounts,
    num_batches: int,
    proven_bound: int,
    first_run: NDArray[np.int64],
    runs: dict[str, NDArray[np.int64]],
) -> Layout: ...
def with_bound(layout: Layout, proven_bound: int) -> Layout: ...
def lower_bound(layout: Layout) -> int: ...
def batch_tokens(layout: Layout) -> NDArray[np.int64]: ...
def batch_offsets(layout: Layout) -> NDArray[np.int64]: ...
def tokens_of_batches(layout: Layout, first: int, last: int) -> NDArray[np.int64]: ...
def assign_batches(
    layout: Layout, lengths: Lengths, before: TokenCounts | None, out: Rows, num_threads: int
) -> None: ...
def assign_slots(
    layout: Layout, lengths: Lengths, before: TokenCounts | None, out: Rows, num_threads: int
) -> None: ...

# The batches and the slots of sequences, given by size and number among those of their size.
def place_ranks(
    layout: Layout, tokens: Rows, ranks: Rows, num_threads: int
) -> tuple[Rows, Rows]: ...
def list_rows(
    layout: Layout, lengths: Lengths, ids: OrderedIds | None, num_threads: int
) -> tuple[Rows, NDArray[np.int64]]: ...

# A hash of each text, texts[offsets[i]:offsets[i + 1]] in UTF-8.
def hash_texts(offsets: NDArray[np.int64], texts: NDArray[np.uint8]) -> NDArray[np.uint64]: ...
def shuffle_rows(layout: Layout, rows: Rows, seed: int, num_threads: int) -> Rows: ...

# None unless all records are plain. With a limit, longer records are replaced by truncated copies.
def read_records(
    records: list[Any], limit: int | None
) -> tuple[tuple[str, ...], NDArray[np.int64]] | None: ...

# With and without padding.
def count_record_tokens(records: list[Any], limits: Limits) -> tuple[int, int] | None: ...

# Moves the records; None replaces them in their list.
def gather(
    records: list[Record], indices: Rows, offsets: NDArray[np.int64]
) -> list[list[Record]]: ...

@final
class FastaScanner:
    def feed(self, piece: bytes | bytearray | memoryview | NDArray[np.uint8]) -> None: ...
    def finish(self) -> None: ...
    # Offsets of IDs, concatenated IDs, lengths, and offsets of records in the text.
    def take_lengths(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]: ...
    # ID and residues of each record; needs `keep_residues`.
    def take_records(self) -> list[tuple[str, str]]: ...
    # Line, record, ID of the record, and reason.
    @property
    def fault(self) -> tuple[int, int, bytes, str] | None: ...
    # Numbers of stops, lower-case letters, gaps and insertions.
    @property
    def changes(self) -> tuple[int, int, int, int]: ...

def make_scanner(
    strip_stop: bool, uppercase: bool, drop_gaps: bool, keep_residues: bool
) -> FastaScanner: ...

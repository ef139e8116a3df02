"""Reading and validation of records: dicts with an `id` and a `sequence`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.kernel.arguments import OrderedIds, check_ids, check_list
from virnucpro.kernel.limits import Limits
from virnucpro.text import quoted, shown

Record = dict[str, Any]


def read_records(
    records: list[Any], name: str, limit: int | None = None
) -> tuple[OrderedIds, NDArray[np.int64]]:
    """Return the IDs, in the form that the kernel sorts, and the lengths of records.

    If there is a limit, longer sequences are truncated in copies of their records, which replace
    them in the list; the lengths are those before. Errors refer to the records by `name`.
    """
    plain = kernel.read_records(records, limit)
    if plain is not None:
        return plain
    ids, sequences = [], []
    for row, record in enumerate(records):
        ids.append(check_value(record, "id", name, row))
        sequences.append(check_sequence(record, name, row))
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    ordered = check_ids(ids, len(ids), f"{name}[{{}}]['id']".format)
    for row in () if limit is None else np.flatnonzero(lengths > limit).tolist():
        part = sequences[row][:limit]
        records[row] = {**records[row], "sequence": part, "truncated": True}
    return ordered, lengths


def compute_efficiency(batches: Iterable[Iterable[Record]], limits: Limits) -> float:
    """Return the efficiency of batches; see `GreedyPacker.compute_efficiency`."""
    budget = limits.max_tokens_per_batch
    total = 0
    num_batches = 0
    for num_batches, batch in enumerate(batches, start=1):
        name = f"batches[{num_batches - 1}]"
        tokens, real = count_tokens(check_list(batch, name, "a list of dicts"), name, limits)
        if tokens > budget:
            raise ValueError(f"{name} has {tokens:,} tokens, more than the budget of {budget:,}")
        total += real
    return total / (num_batches * budget) if num_batches else 0.0


def count_tokens(records: list[Any], name: str, limits: Limits) -> tuple[int, int]:
    """Return the total number of tokens of records, with and without padding.

    Errors refer to the records by `name`.
    """
    tokens = kernel.count_record_tokens(records, limits)
    if tokens is not None:
        return tokens
    lengths = [len(check_sequence(record, name, row)) for row, record in enumerate(records)]
    kept = sum(min(length, limits.max_residues) for length in lengths)
    return sum(map(limits.tokens, lengths)), kept + limits.special_tokens * len(lengths)


def check_value(record: Any, key: str, name: str, row: int) -> Any:
    """Return the value of a key, after checking that the record is a dict and has the key."""
    if not isinstance(record, dict):
        raise TypeError(f"{name}[{row}] must be a dict (got {type(record).__name__})")
    try:
        if key in record:
            return record[key]
    except KeyError:
        # Comparing keys may run user code that changes the record.
        pass
    keys = ", ".join(repr(other) for other in tuple(record) if type(other) is str)
    raise ValueError(f"{name}[{row}] has no {quoted(key)} (it has {shown(keys or 'no keys')})")


def check_sequence(record: Any, name: str, row: int) -> str:
    """Return the sequence of a record, after checking that it is a str."""
    sequence = check_value(record, "sequence", name, row)
    if not isinstance(sequence, str):
        raise TypeError(f"{name}[{row}]['sequence'] must be a str (got {type(sequence).__name__})")
    return sequence

"""Records and their tokens, of which batches are made; what records bring along is checked here."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.records import Record
from virnucpro.model.vocabulary import Tokens, Vocabulary, offsets_of

# What losses leave out.
NO_LABEL = -100

# What is read of a record; all else that it has is carried along, and may not be named as what a
# batch has of its own.
READ = frozenset({"id", "sequence", "truncated", "labels", "tokens"})
OWN = frozenset(
    {
        *("input_ids", "position_ids", "cu_seqlens", "max_seqlen", "sequence_ids"),
        *("num_sequences", "token_budget", "special_tokens", "truncated", "num_unknown", "labels"),
        *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
    }
)


class TokenizedRecords(NamedTuple):
    """Records and their tokens, of which batches are made.

    Attributes:
        records: Dicts with `id` and `sequence`.
        names: All keys of the records.
        input_ids: All tokens, those of each record between its special tokens, signed integers
            [tokens].
        offsets: Where each record begins in `input_ids`, and the end, int64 [n + 1].
        whole: Tokens of each record before it was truncated, without special tokens, int64 [n].
        truncated: Whether a record is truncated, bool [n].
        num_unknown: Unknown residues of each record, int64 [n]; None if there are none.
        num_before: Special tokens before the tokens of a record.
        num_special: All special tokens of a record.
    """

    records: list[Record]
    names: list[str]
    input_ids: NDArray[np.signedinteger[Any]]
    offsets: NDArray[np.int64]
    whole: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    num_unknown: NDArray[np.int64] | None
    num_before: int
    num_special: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each record without special tokens, int64 [n]."""
        return self.offsets[1:] - self.offsets[:-1] - self.num_special

    def choose(self, rows: NDArray[np.integer[Any]]) -> TokenizedRecords:
        """Return some of the records, in the order of `rows`."""
        begins = self.offsets[rows]
        lengths = self.offsets[rows + 1] - begins
        offsets = offsets_of(lengths)
        places = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
        return self._replace(
            records=[self.records[row] for row in rows.tolist()],
            input_ids=self.input_ids.take(places),
            offsets=offsets,
            whole=self.whole[rows],
            truncated=self.truncated[rows],
            num_unknown=None if self.num_unknown is None else self.num_unknown[rows],
        )

    def carried(self) -> dict[str, list[Any]]:
        """Return what records have beside what is read of them: a value of each, by key."""
        names = [name for name in self.names if name not in READ]
        return {name: [record.get(name) for record in self.records] for name in names}

    def labels(self) -> NDArray[np.int64] | None:
        """Return the label of each token, int64 [tokens]; None if no record has labels."""
        if "labels" not in self.names:
            return None
        gathered = np.full(len(self.input_ids), NO_LABEL, np.int64)
        begins = (self.offsets[:-1] + self.num_before).tolist()
        for record, begin, length, number in zip(
            self.records, begins, self.lengths.tolist(), self.whole.tolist(), strict=True
        ):
            labels = check_labels(record, number)[:length]
            gathered[begin : begin + len(labels)] = labels
        return gathered


def join(
    records: list[Record], names: list[str], tokens: Tokens, vocabulary: Vocabulary
) -> TokenizedRecords:
    """Return records, of which `names` are all keys, with their tokens."""
    num_before = len(vocabulary.before)
    num_special = num_before + len(vocabulary.after)
    ids, offsets, whole, num_unknown, _, _ = tokens
    truncated = whole > offsets[1:] - offsets[:-1] - num_special
    if "truncated" in names:
        truncated |= [bool(record.get("truncated")) for record in records]
    return TokenizedRecords(
        records, names, ids, offsets, whole, truncated, num_unknown, num_before, num_special
    )


def find_names(records: list[Record]) -> list[str]:
    """Return all keys of records, none of which may be one of the batch's own."""
    names = list(dict.fromkeys(chain.from_iterable(records)))
    for name in names:
        if name in OWN and name not in READ:
            record = next(record for record in records if name in record)
            raise ValueError(
                f"record {record['id']!r} has a key {name!r}, which the batch has of its own"
            )
    return names


def check_counts(records: list[Record], num_tokens: NDArray[np.int64]) -> None:
    """Require of records that come with what a plan counted to have as many tokens."""
    for record, number in zip(records, num_tokens.tolist(), strict=True):
        planned = record.get("tokens")
        if planned is not None and planned != number:
            raise ValueError(
                f"record {record['id']!r} has {number:,} tokens, but its plan counted {planned}; "
                "the plan was made with another limit or budget than the collator's, or for "
                "another tokenizer"
            )


def check_labels(record: Record, num_tokens: int) -> NDArray[np.integer[Any]]:
    """Return the labels of a record, one for each token before it was truncated here."""
    if record.get("labels") is None:
        return np.empty(0, np.int64)
    labels = np.asarray(record["labels"])
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise TypeError(
            f"labels of record {record['id']!r} must be integers in one dimension "
            f"(got {labels.dtype} {list(labels.shape)})"
        )
    if labels.dtype.kind == "u" and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"labels of record {record['id']!r} do not fit in int64")
    is_whole = record.get("truncated") and len(labels) > num_tokens
    if len(labels) != num_tokens and not is_whole:
        raise ValueError(
            f"record {record['id']!r} has {len(labels):,} labels for {num_tokens:,} tokens "
            "(without special tokens)"
        )
    return labels.astype(np.int64)

"""Records with their tokens, from which batches are made; their labels and other values."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.records import Record, read_records
from virnucpro.kernel.arguments import OrderedIds
from virnucpro.kernel.limits import Limits
from virnucpro.model.vocabulary import Tokens, Vocabulary, offsets_of
from virnucpro.text import quoted

# The label that losses of PyTorch ignore.
NO_LABEL = -100

# The keys that are read from a record. Its other keys are passed through to the batch, and must
# differ from the batch's own keys.
RECORD_KEYS = frozenset({"id", "sequence", "truncated", "labels", "tokens"})
BATCH_KEYS = frozenset(
    {
        *("input_ids", "position_ids", "cu_seqlens", "max_seqlen", "sequence_ids"),
        *("num_sequences", "num_tokens", "token_budget", "special_tokens", "multiple_of"),
        *("truncated", "num_unknown", "labels"),
        *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
    }
)


class TokenizedRecords(NamedTuple):
    """Records with their tokens, from which batches are made.

    Attributes:
        records: Dicts with `id` and `sequence`.
        keys: All keys of the records.
        input_ids: Tokens of all records, each with its special tokens, concatenated: signed
            integers [tokens].
        offsets: Boundaries of the records in `input_ids`, int64 [n + 1].
        full_lengths: Number of tokens of each record before truncation, without special tokens,
            int64 [n].
        truncated: Whether each record was truncated, bool [n].
        num_unknown: Number of unknown residues of each record, int64 [n]; None if there are none.
        num_before: Number of special tokens before the tokens of a record.
        num_special: Number of special tokens of a record in total.
    """

    records: list[Record]
    keys: list[str]
    input_ids: NDArray[np.signedinteger[Any]]
    offsets: NDArray[np.int64]
    full_lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    num_unknown: NDArray[np.int64] | None
    num_before: int
    num_special: int

    @classmethod
    def from_tokens(
        cls, records: list[Record], keys: list[str], tokens: Tokens, vocabulary: Vocabulary
    ) -> TokenizedRecords:
        """Return records with their tokens; `keys` are all keys of the records."""
        num_before = len(vocabulary.before)
        num_special = num_before + len(vocabulary.after)
        truncated = tokens.full_lengths > np.diff(tokens.offsets) - num_special
        if "truncated" in keys:
            truncated |= [bool(record.get("truncated")) for record in records]
        return cls(
            records,
            keys,
            tokens.ids,
            tokens.offsets,
            tokens.full_lengths,
            truncated,
            tokens.num_unknown,
            num_before,
            num_special,
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each record without special tokens, int64 [n]."""
        return np.diff(self.offsets) - self.num_special

    def take(self, rows: NDArray[np.integer[Any]]) -> TokenizedRecords:
        """Return the records at `rows`, in this order."""
        begins = self.offsets[rows]
        lengths = self.offsets[rows + 1] - begins
        offsets = offsets_of(lengths)
        indices = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
        return self._replace(
            records=[self.records[row] for row in rows.tolist()],
            input_ids=self.input_ids.take(indices),
            offsets=offsets,
            full_lengths=self.full_lengths[rows],
            truncated=self.truncated[rows],
            num_unknown=None if self.num_unknown is None else self.num_unknown[rows],
        )

    @classmethod
    def concatenate(cls, parts: list[TokenizedRecords]) -> TokenizedRecords:
        """Return the records of all parts, in order."""
        records = list(chain.from_iterable(part.records for part in parts))
        unknown = [
            np.zeros(len(part.records), np.int64) if part.num_unknown is None else part.num_unknown
            for part in parts
        ]
        has_unknown = any(part.num_unknown is not None for part in parts)
        return parts[0]._replace(
            records=records,
            keys=list(dict.fromkeys(chain.from_iterable(records))),
            input_ids=np.concatenate([part.input_ids for part in parts]),
            offsets=offsets_of(np.concatenate([np.diff(part.offsets) for part in parts])),
            full_lengths=np.concatenate([part.full_lengths for part in parts]),
            truncated=np.concatenate([part.truncated for part in parts]),
            num_unknown=np.concatenate(unknown) if has_unknown else None,
        )

    def extra_values(self) -> dict[str, list[Any]]:
        """Return the values passed through to the batch, by key; None if a record lacks the key."""
        keys = [key for key in self.keys if key not in RECORD_KEYS]
        return {key: [record.get(key) for record in self.records] for key in keys}

    def labels(self) -> NDArray[np.int64] | None:
        """Return the label of each token, int64 [tokens]; None if no record has labels."""
        if "labels" not in self.keys:
            return None
        all_labels = np.full(len(self.input_ids), NO_LABEL, np.int64)
        begins = (self.offsets[:-1] + self.num_before).tolist()
        lengths, full_lengths = self.lengths.tolist(), self.full_lengths.tolist()
        for record, begin, length, full_length in zip(
            self.records, begins, lengths, full_lengths, strict=True
        ):
            labels = check_labels(record, full_length)[:length]
            all_labels[begin : begin + len(labels)] = labels
        return all_labels


def check_records(records: list[Any]) -> OrderedIds:
    """Return the IDs of records with a `sequence`, in the form that the kernel sorts.

    Raises:
        ValueError: A record has no `id` or no `sequence`.
        TypeError: A record is not a dict, a `sequence` is not a str, or IDs have mixed types.
    """
    try:
        return read_records(records, "records")[0]
    except ValueError as error:
        if any("input_ids" in record for record in records if isinstance(record, dict)):
            raise ValueError(
                f"{error}: VarlenCollator tokenizes sequences; for input_ids, use PackedStream or "
                "PackedDataset with a collate function such as transformers' "
                "DataCollatorWithFlattening"
            ) from None
        raise


def check_keys(records: list[Record]) -> list[str]:
    """Return all keys of records; raise if one of them is reserved for the batch."""
    keys = list(dict.fromkeys(chain.from_iterable(records)))
    for key in keys:
        if key in BATCH_KEYS and key not in RECORD_KEYS:
            record = next(record for record in records if key in record)
            raise ValueError(
                f"record {quoted(record['id'])} has a key {quoted(key)}, which is reserved for "
                "the batch"
            )
    return keys


def check_counts(records: list[Record], num_tokens: NDArray[np.int64], limits: Limits) -> None:
    """Raise if a record's number of tokens differs from the number in its plan (`tokens`)."""
    for record, number in zip(records, num_tokens.tolist(), strict=True):
        planned = record.get("tokens")
        if planned is not None and planned != number:
            raise ValueError(
                f"record {quoted(record['id'])} has {number:,} tokens, but its plan counted "
                f"{quoted(planned)}; the plan is for another tokenizer, or has different limits "
                f"from the collator (max_sequence_length={limits.max_sequence_length}, "
                f"special_tokens={limits.special_tokens}, multiple_of={limits.multiple_of})"
            )


def check_labels(record: Record, num_tokens: int) -> NDArray[np.integer[Any]]:
    """Return the labels of a record, one per token before truncation here."""
    if record.get("labels") is None:
        return np.empty(0, np.int64)
    labels = np.asarray(record["labels"])
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise TypeError(
            f"labels of record {quoted(record['id'])} must be integers in one dimension "
            f"(got {labels.dtype} {list(labels.shape)})"
        )
    if labels.dtype.kind == "u" and labels.size and labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"labels of record {quoted(record['id'])} do not fit in int64")
    # A record truncated elsewhere may have the labels of the full sequence.
    is_full = record.get("truncated") and len(labels) > num_tokens
    if len(labels) != num_tokens and not is_full:
        raise ValueError(
            f"record {quoted(record['id'])} has {len(labels):,} labels for {num_tokens:,} tokens "
            "(without special tokens)"
        )
    return labels.astype(np.int64)

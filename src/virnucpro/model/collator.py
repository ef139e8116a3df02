"""`VarlenCollator`: packed tensors of batches of records, in the layout of varlen attention."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from virnucpro.data.records import Record
from virnucpro.kernel.arguments import check_integer
from virnucpro.kernel.limits import Limits
from virnucpro.model.batches import MAX_TOKENS, PaddedShape, make_batch, num_parts, pad_batch
from virnucpro.model.tokenized_records import (
    TokenizedRecords,
    check_counts,
    check_keys,
    check_records,
)
from virnucpro.model.vocabulary import Tokens, padding_token, read_vocabulary
from virnucpro.model.workers import in_worker
from virnucpro.text import quoted, shown

logger = logging.getLogger(__name__)

DEFAULT_BUDGET = 4096

# Maximum number of unknown texts that are counted separately, and that a message names.
MAX_TEXTS = 1000
MAX_NAMED = 10


class VarlenCollator:
    """Turns the records of a batch into packed tensors: concatenated sequences, without padding.

    With `pad_to_budget`, all batches have tensors of the same shapes, as captured and compiled
    models need; what is added is little, since packed batches are nearly full.

    A callable for ``DataLoader(collate_fn=...)``. It takes a list of records, dicts with `id` and
    `sequence` (or a single record), and returns a dict of

    - ``input_ids``: int64 [tokens], each sequence with its special tokens (BOS, EOS);
    - ``position_ids``: int64 [tokens], from 0 in each sequence;
    - ``cu_seqlens``: int32 [n + 1], the boundaries of the n sequences;
    - ``max_seqlen``: int, the number of tokens of the longest sequence;
    - ``sequence_ids``: list, the `id` of each record;
    - ``num_sequences``: int, n;
    - ``num_tokens``: int, the number of tokens without padding;
    - ``multiple_of``: int, `multiple_of`;
    - ``truncated``: bool [n], whether each sequence was truncated, here or before (its record has
      ``truncated=True``);
    - ``num_unknown``: int, the number of residues that are not in the tokenizer's vocabulary;
    - ``token_budget``: int, `max_tokens_per_batch`;
    - ``special_tokens``: tuple, how many special tokens precede and follow the residues of each
      sequence;
    - ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q``, ``max_length_k``: the boundaries and
      ``max_seqlen`` under the names that Hugging Face models use; see `model_inputs`;
    - ``labels``, if records have them: int64 [tokens], -100 at special tokens and for records
      without labels. A record's `labels` are integers, one per token without special tokens, and
      are truncated with its tokens. If it has ``truncated=True``, they may be the labels of the
      full sequence;
    - every other key of the records: a list of n values, None for records without this key.

    If a record has `tokens`, the number of tokens that a plan counted for it (with special tokens),
    its actual number must be the same. An empty list gives an empty dict. Records are not changed
    and keep their order.

    If each letter is a token, as for ESM-2, tokens are looked up in a table: each letter of the
    vocabulary becomes the tokenizer's own token, and any other residue one ``<unk>``, so that
    residues and tokens stay aligned. A special token spelled out, such as ``<mask>``, is one token.
    With other vocabularies, the tokenizer encodes each full sequence.

    With `pad_to_budget`, ``input_ids``, ``position_ids`` and ``labels`` have `max_tokens_per_batch`
    tokens, rounded down to a multiple of `multiple_of`, ``cu_seqlens`` has a constant length, and
    ``max_seqlen`` is that of the longest sequence that the limits allow. Tokens after those of the
    n sequences are padding, with the label -100: sequences of their own, which no other sequence
    attends to, and then empty sequences. With `multiple_of`, each sequence is followed by its
    padding, a sequence of its own that may be empty: ``cu_seqlens`` then has the boundaries of both
    in turn, int32 [2 n + 1] or more.

    Args:
        batch_converter: A batch converter of fair-esm (``alphabet.get_batch_converter()``) or a
            tokenizer of Hugging Face transformers.
        max_tokens_per_batch: The token budget of a batch, including special tokens. If None, that
            of the plan for batches of `PackedDataset` and the like, and 4,096 for others.
        max_sequence_length: Maximum tokens kept per sequence, from its start, without special
            tokens. A truncated sequence keeps its EOS.
        unknown: How to handle residues that become ``<unk>``: "warn" logs one WARNING, at the first
            batch that has any; "error" raises an error; "ignore" only counts them. An ``<unk>``
            spelled out in a sequence is not counted. If the tokenizer does not have an unknown
            token, the residues that it skips are counted instead.
        pad_to_budget: Whether to add padding, so that all batches have the same shapes.
        max_sequences: Maximum sequences per batch. If None, with `pad_to_budget`, the most of any
            batch of the plan for batches of `PackedDataset` and the like, and for others as many as
            fit with one residue each.
        multiple_of: Each sequence and the padding that is added after it have a multiple of this
            many tokens, which the budget counts. If None, that of the plan for batches of
            `PackedDataset` and the like, and 1 for others.

    Attributes:
        unknown_residues: Number of occurrences of each unknown residue in all batches so far, a
            Counter; under the empty text if the tokenizer does not report them. Workers of a
            DataLoader have their own copies; use ``num_unknown`` of the batches instead.
        num_residues: Number of residues in all batches so far, or of tokens if residues are not
            tokens.
        token_budget: `max_tokens_per_batch` as passed or set later; None if neither.

    Raises:
        ValueError: The records have more tokens than the budget or are more than `max_sequences`,
            or, with `pad_to_budget`, any batch of their plan is; a record lacks `id` or `sequence`,
            does not have one label per token or as many tokens as planned, has a key that is
            reserved for the batch, or, with unknown="error", has an unknown residue. A parameter is
            out of range, or the tokenizer truncates sequences at their start.
        TypeError: `batch_converter` has another type, a record is not a dict, or its `labels` are
            not integers.

    Example:
        >>> from types import SimpleNamespace
        >>> from virnucpro.data import VarlenCollator
        >>> letters = {"<cls>": 0, "<eos>": 2, "<unk>": 3, "K": 15, "M": 20}
        >>> alphabet = SimpleNamespace(
        ...     tok_to_idx=letters, unk_idx=3, cls_idx=0, eos_idx=2, prepend_bos=True,
        ...     append_eos=True, use_msa=False, encode=None)
        >>> collate = VarlenCollator(SimpleNamespace(alphabet=alphabet))
        >>> batch = collate([{"id": "a", "sequence": "MKJ"}, {"id": "b", "sequence": "M"}])
        >>> batch["input_ids"]
        tensor([ 0, 20, 15,  3,  2,  0, 20,  2])
        >>> batch["cu_seqlens"]
        tensor([0, 5, 8], dtype=torch.int32)
        >>> collate.unknown_residues, collate.num_residues
        (Counter({'J': 1}), 4)
    """

    def __init__(
        self,
        batch_converter: Any,
        max_tokens_per_batch: int | None = None,
        max_sequence_length: int = 1022,
        *,
        unknown: str = "warn",
        pad_to_budget: bool = False,
        max_sequences: int | None = None,
        multiple_of: int | None = None,
    ) -> None:
        self.vocabulary = read_vocabulary(batch_converter)
        self.padding_token = padding_token(batch_converter)
        self.unknown = unknown
        self.token_budget = max_tokens_per_batch
        self.max_sequence_length = max_sequence_length
        self.pad_to_budget = pad_to_budget
        self.max_sequences = max_sequences
        self.multiple_of = multiple_of
        self.unknown_residues: Counter[str] = Counter()
        self.num_residues = 0
        self.limits()

    @property
    def max_tokens_per_batch(self) -> int:
        """The token budget of a batch; 4,096 by default."""
        return DEFAULT_BUDGET if self.token_budget is None else self.token_budget

    @max_tokens_per_batch.setter
    def max_tokens_per_batch(self, budget: int) -> None:
        self.token_budget = budget

    @property
    def special_tokens(self) -> int:
        """Number of special tokens of each sequence."""
        return len(self.vocabulary.before) + len(self.vocabulary.after)

    @property
    def has_table(self) -> bool:
        """Whether each residue is a token."""
        return self.vocabulary.letter_ids is not None

    def __call__(self, records: Sequence[Record] | Record) -> dict[str, Any]:
        """Return the tensors of a batch, as described for the class.

        Cost: O(tokens), or that of the tokenizer if residues are not tokens.
        """
        limits = self.limits(planned=getattr(records, "limits", None))
        records = [records] if isinstance(records, dict) else list(records)
        if not records:
            return {}
        if isinstance(records[0], list):
            raise TypeError(
                "records[0] must be a dict (got list): a data set of whole batches needs a "
                "DataLoader with batch_size=None"
            )
        tokenized = self.tokenize(records, limits)
        num_truncated = np.count_nonzero(tokenized.full_lengths > limits.max_residues)
        if num_truncated:
            logger.warning(
                "%s of %s sequences exceed %s (%d), truncating",
                f"{num_truncated:,}",
                f"{len(records):,}",
                limits.bound,
                limits.max_residues,
            )
        total = int(limits.tokens(tokenized.lengths).sum())
        name = f"a batch of {len(records):,} records, the first {quoted(records[0]['id'])}, has"
        check_size(name, total, len(records), limits)
        return in_worker(self.to_batch(tokenized, limits))

    def limits(self, token_budget: int | None = None, planned: Limits | None = None) -> Limits:
        """Check the parameters, which may have been changed, and return the limits of a batch.

        Args:
            token_budget: Replaces the collator's own budget, unless None.
            planned: The limits that all batches of a plan keep, for what the collator leaves open.

        Raises:
            ValueError: A parameter is out of range, or batches of the plan exceed a limit.
            TypeError: A parameter has the wrong type.
        """
        if self.unknown not in ("warn", "error", "ignore"):
            raise ValueError(
                f"unknown must be 'warn', 'error' or 'ignore' (got {quoted(self.unknown)})"
            )
        budget = self.token_budget if token_budget is None else token_budget
        max_sequences, multiple_of = self.max_sequences, self.multiple_of
        if budget is None:
            budget = DEFAULT_BUDGET if planned is None else planned.max_tokens_per_batch
        if multiple_of is None:
            multiple_of = 1 if planned is None else planned.multiple_of
        budget = check_integer(budget, "max_tokens_per_batch", 1, MAX_TOKENS)
        if max_sequences is not None:
            max_sequences = check_integer(max_sequences, "max_sequences", 1, MAX_TOKENS)
        elif self.pad_to_budget and planned is not None:
            max_sequences = planned.max_sequences_per_batch
        limits = Limits(
            budget, self.max_sequence_length, self.special_tokens, max_sequences, multiple_of
        )
        if self.pad_to_budget and max_sequences is None:
            limits = replace(limits, max_sequences_per_batch=budget // limits.tokens(1))
        if self.pad_to_budget and planned is not None:
            most = planned.max_sequences_per_batch or 0
            name = "batches of the plan have up to"
            check_size(name, planned.max_tokens_per_batch, most, limits)
        return limits

    def tokenize(self, records: list[Record], limits: Limits) -> TokenizedRecords:
        """Return the records with their truncated tokens, from which batches are made."""
        check_records(records)
        return self.tokenize_checked(records, check_keys(records), limits)

    def tokenize_checked(
        self, records: list[Record], keys: list[str], limits: Limits
    ) -> TokenizedRecords:
        """Return the result of `tokenize` for records that were checked, and all their keys."""
        tokens = self.vocabulary.tokenize([record["sequence"] for record in records], limits)
        if "tokens" in keys:
            num_tokens = np.diff(tokens.offsets)
            check_counts(records, limits.tokens(num_tokens - self.special_tokens), limits)
        self._count_unknown(records, tokens)
        return TokenizedRecords.from_tokens(records, keys, tokens, self.vocabulary)

    def to_batch(self, tokenized: TokenizedRecords, limits: Limits) -> dict[str, Any]:
        """Return the tensors of tokenized records, as described for the class."""
        batch = make_batch(
            tokenized.input_ids.astype(np.int64, copy=False),
            tokenized.offsets.astype(np.int32),
            [record["id"] for record in tokenized.records],
            limits.max_tokens_per_batch,
            (len(self.vocabulary.before), len(self.vocabulary.after)),
            tokenized.truncated,
            0 if tokenized.num_unknown is None else int(tokenized.num_unknown.sum()),
            tokenized.labels(),
            tokenized.extra_values(),
            limits.multiple_of,
            self.padding_token,
        )
        if not self.pad_to_budget:
            return batch
        assert limits.max_sequences_per_batch is not None
        shape = PaddedShape(
            limits.usable_tokens,
            limits.max_sequences_per_batch,
            limits.tokens(limits.max_residues),
            num_parts(limits.multiple_of),
        )
        return pad_batch(batch, shape, self.padding_token)

    def _count_unknown(self, records: list[Record], tokens: Tokens) -> None:
        is_first = not self.unknown_residues
        num_residues = len(tokens.ids) - self.special_tokens * len(records)
        self.num_residues += num_residues
        for text, number in tokens.unknown.items():
            counts = self.unknown_residues
            is_separate = text in counts or len(counts) < MAX_TEXTS
            counts[text if is_separate else ""] += number
        first = tokens.first_unknown
        if first is None or self.unknown == "ignore":
            return
        if self.unknown == "error":
            text = "some text"
            if first.position is not None:
                text = f"{quoted(first.text)} at position {first.position:,}, counted from 0,"
            raise ValueError(
                f"record {quoted(records[first.sequence]['id'])}: {text} is not in the tokenizer's "
                "vocabulary"
            )
        if is_first:
            number = sum(tokens.unknown.values())
            if self.vocabulary.skips_unknown:
                num_residues += number
            logger.warning(
                "%s of %s %s (%s) are not in the tokenizer's vocabulary and %s%s; "
                "later ones are counted in each batch (num_unknown)",
                f"{number:,}",
                f"{num_residues:,}",
                "residues" if self.has_table else "tokens",
                f"{number / num_residues:.2%}",
                self.vocabulary.unknown_outcome,
                format_texts(tokens.unknown),
            )


def check_size(name: str, num_tokens: int, num_sequences: int, limits: Limits) -> None:
    """Raise ValueError if a batch, or one that may come, exceeds the limits."""
    budget, max_sequences = limits.max_tokens_per_batch, limits.max_sequences_per_batch
    if num_tokens > budget:
        raise ValueError(f"{name} {num_tokens:,} tokens, more than the budget of {budget:,}")
    if max_sequences is not None and num_sequences > max_sequences:
        raise ValueError(
            f"{name} {num_sequences:,} sequences, more than max_sequences ({max_sequences:,})"
        )


def format_texts(unknown: Mapping[str, int]) -> str:
    """Return unknown texts with their counts, most frequent first, for a message."""
    named = [
        f"{shown(text if text.strip() else repr(text))} ({number:,})"
        for text, number in Counter(unknown).most_common(MAX_NAMED)
        if text
    ]
    more = ", ..." if len(unknown) > MAX_NAMED else ""
    return f": {', '.join(named)}{more}" if named else ""

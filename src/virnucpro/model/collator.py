"""Packed tensors of batches of records, in the layout of varlen attention, and their unpacking."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.data.records import Record, read_records
from virnucpro.kernel.arguments import check_integer
from virnucpro.kernel.limits import Limits
from virnucpro.model.tokenized_records import TokenizedRecords, check_counts, check_keys
from virnucpro.model.vocabulary import Tokens, read_vocabulary
from virnucpro.model.workers import in_worker
from virnucpro.text import quoted, shown

logger = logging.getLogger(__name__)

# Boundaries are int32.
MAX_TOKENS = 2**31 - 1

DEFAULT_BUDGET = 4096

# Maximum number of unknown texts that are counted separately, and that a message names.
MAX_TEXTS = 1000
MAX_NAMED = 10


class VarlenCollator:
    """Turns the records of a batch into packed tensors: concatenated sequences, without padding.

    A callable for ``DataLoader(collate_fn=...)``. It takes a list of records, dicts with `id` and
    `sequence` (or a single record), and returns a dict of

    - ``input_ids``: int64 [tokens], each sequence with its special tokens (BOS, EOS);
    - ``position_ids``: int64 [tokens], from 0 in each sequence;
    - ``cu_seqlens``: int32 [n + 1], the boundaries of the n sequences;
    - ``max_seqlen``: int, the number of tokens of the longest sequence;
    - ``sequence_ids``: list, the `id` of each record;
    - ``num_sequences``: int, n;
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

    Args:
        batch_converter: A batch converter of fair-esm (``alphabet.get_batch_converter()``) or a
            tokenizer of Hugging Face transformers.
        max_tokens_per_batch: The token budget of a batch, including special tokens; 4,096 if None.
        max_sequence_length: Maximum tokens kept per sequence, from its start, without special
            tokens. A truncated sequence keeps its EOS.
        unknown: How to handle residues that become ``<unk>``: "warn" logs one WARNING, at the first
            batch that has any; "error" raises an error; "ignore" only counts them. An ``<unk>``
            spelled out in a sequence is not counted. If the tokenizer does not have an unknown
            token, the residues that it skips are counted instead.

    Attributes:
        unknown_residues: Number of occurrences of each unknown residue in all batches so far, a
            Counter; under the empty text if the tokenizer does not report them. Workers of a
            DataLoader have their own copies; use ``num_unknown`` of the batches instead.
        num_residues: Number of residues in all batches so far, or of tokens if residues are not
            tokens.
        token_budget: `max_tokens_per_batch` as passed or set later; None if neither.

    Raises:
        ValueError: The records have more tokens than the budget; a record lacks `id` or `sequence`,
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
    ) -> None:
        self.vocabulary = read_vocabulary(batch_converter)
        self.unknown = unknown
        self.token_budget = max_tokens_per_batch
        self.max_sequence_length = max_sequence_length
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
        limits = self.limits()
        records = [records] if isinstance(records, dict) else list(records)
        if not records:
            return {}
        if isinstance(records[0], list):
            raise TypeError(
                "records[0] must be a dict (got list): a data set of whole batches needs a "
                "DataLoader with batch_size=None"
            )
        tokenized = self.tokenize(records, limits)
        total = len(tokenized.input_ids)
        if total > limits.max_tokens_per_batch:
            raise ValueError(
                f"a batch of {len(records):,} records, the first {quoted(records[0]['id'])}, has "
                f"{total:,} tokens, more than the budget of {limits.max_tokens_per_batch:,}"
            )
        return in_worker(self.to_batch(tokenized, limits))

    def limits(self, token_budget: int | None = None) -> Limits:
        """Check the parameters, which may have been changed, and return the limits of a batch.

        `token_budget`, unless None, replaces the collator's own budget.
        """
        if self.unknown not in ("warn", "error", "ignore"):
            raise ValueError(
                f"unknown must be 'warn', 'error' or 'ignore' (got {quoted(self.unknown)})"
            )
        budget = self.max_tokens_per_batch if token_budget is None else token_budget
        check_integer(budget, "max_tokens_per_batch", 1, MAX_TOKENS)
        return Limits(budget, self.max_sequence_length, self.special_tokens)

    def tokenize(self, records: list[Record], limits: Limits) -> TokenizedRecords:
        """Return the records with their truncated tokens, from which batches are made."""
        read_records(records, "records")
        tokens = self.vocabulary.tokenize([record["sequence"] for record in records], limits)
        keys = check_keys(records)
        if "tokens" in keys:
            check_counts(records, np.diff(tokens.offsets))
        self._count_unknown(records, tokens)
        num_truncated = np.count_nonzero(tokens.full_lengths > limits.max_residues)
        if num_truncated:
            logger.warning(
                "%s of %s sequences exceed max_length (%d), truncating",
                f"{num_truncated:,}",
                f"{len(records):,}",
                limits.max_residues,
            )
        return TokenizedRecords.from_tokens(records, keys, tokens, self.vocabulary)

    def to_batch(self, tokenized: TokenizedRecords, limits: Limits) -> dict[str, Any]:
        """Return the tensors of tokenized records, as described for the class."""
        return make_batch(
            tokenized.input_ids.astype(np.int64, copy=False),
            tokenized.offsets.astype(np.int32),
            [record["id"] for record in tokenized.records],
            limits.max_tokens_per_batch,
            (len(self.vocabulary.before), len(self.vocabulary.after)),
            tokenized.truncated,
            0 if tokenized.num_unknown is None else int(tokenized.num_unknown.sum()),
            tokenized.labels(),
            tokenized.extra_values(),
        )

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


def format_texts(unknown: Mapping[str, int]) -> str:
    """Return unknown texts with their counts, most frequent first, for a message."""
    named = [
        f"{shown(text if text.strip() else repr(text))} ({number:,})"
        for text, number in Counter(unknown).most_common(MAX_NAMED)
        if text
    ]
    more = ", ..." if len(unknown) > MAX_NAMED else ""
    return f": {', '.join(named)}{more}" if named else ""


def make_batch(
    input_ids: NDArray[np.int64],
    cu_seqlens: NDArray[np.int32],
    sequence_ids: list[Any],
    token_budget: int,
    special_tokens: tuple[int, int] = (1, 1),
    truncated: NDArray[np.bool_] | None = None,
    num_unknown: int = 0,
    labels: NDArray[np.int64] | None = None,
    extra_values: dict[str, list[Any]] | None = None,
) -> dict[str, Any]:
    """Return a batch as described for `VarlenCollator`, from the values that determine it."""
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    position_ids = np.arange(len(input_ids)) - np.repeat(cu_seqlens[:-1], lengths)
    boundaries = torch.from_numpy(cu_seqlens)
    max_seqlen = int(lengths.max())
    if truncated is None:
        truncated = np.zeros(len(sequence_ids), np.bool_)
    batch = {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        "cu_seqlens": boundaries,
        "max_seqlen": max_seqlen,
        "sequence_ids": sequence_ids,
        "num_sequences": len(sequence_ids),
        "truncated": torch.from_numpy(truncated),
        "num_unknown": num_unknown,
        "token_budget": token_budget,
        "special_tokens": special_tokens,
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": max_seqlen,
        "max_length_k": max_seqlen,
        **(extra_values or {}),
    }
    if labels is not None:
        batch["labels"] = torch.from_numpy(labels)
    return batch


class Unpacked(NamedTuple):
    """The output of a model for each of the n sequences of a batch, in batch order.

    Attributes:
        sequence_ids: The ID of each sequence.
        states: For each sequence, the states of its residues, [residues, hidden].
        embeddings: The mean state of each sequence, float32 or wider [n, hidden]; NaN for a
            sequence without residues.
    """

    sequence_ids: list[Any]
    states: tuple[torch.Tensor, ...]
    embeddings: torch.Tensor


def unpack(
    hidden_states: torch.Tensor,
    batch: dict[str, Any] | torch.Tensor,
    sequence_ids: Sequence[Any] | None = None,
    num_before: int = 1,
    num_after: int = 1,
) -> Unpacked:
    """Return the states of each sequence's residues and their mean, without special tokens.

    Args:
        hidden_states: The output of a model for a packed batch, [tokens, hidden] or
            [1, tokens, hidden].
        batch: The batch of a `VarlenCollator`, which determines all other arguments; or the
            boundaries of the n sequences, integers [n + 1].
        sequence_ids: The ID of each sequence. Required with boundaries.
        num_before: Number of special tokens before the residues of a sequence (BOS). Used only with
            boundaries.
        num_after: Number of special tokens after the residues of a sequence (EOS); 0 for ESM-1.
            Used only with boundaries.

    Raises:
        ValueError: The shapes do not match, or `sequence_ids` is missing.

    Cost: one copy of the hidden states; `states` are views of it.

    Example:
        >>> import torch
        >>> from virnucpro.data import unpack
        >>> states = torch.tensor([[0.0], [1.0], [3.0], [0.0], [0.0], [5.0], [0.0]])
        >>> unpacked = unpack(states, torch.tensor([0, 4, 7]), ["a", "b"])
        >>> unpacked.embeddings
        tensor([[2.],
                [5.]])
    """
    if isinstance(batch, dict):
        cu_seqlens, sequence_ids = batch["cu_seqlens"], batch["sequence_ids"]
        num_before, num_after = batch["special_tokens"]
    else:
        cu_seqlens = batch
    if sequence_ids is None:
        raise ValueError("sequence_ids must be given with boundaries")
    if hidden_states.ndim == 3 and len(hidden_states) == 1:
        hidden_states = hidden_states[0]
    if hidden_states.ndim != 2:
        raise ValueError(
            "hidden_states must be [tokens, hidden] or [1, tokens, hidden] "
            f"(got {list(hidden_states.shape)})"
        )
    boundaries = cu_seqlens.to(hidden_states.device, torch.int64)
    lengths = boundaries.diff() - num_before - num_after
    if len(lengths) != len(sequence_ids):
        raise ValueError(
            f"sequence_ids must have one ID per sequence (got {len(sequence_ids)} for "
            f"{len(lengths)} sequences)"
        )
    if len(lengths) == 0:
        raise ValueError("cu_seqlens must have at least one sequence")
    if boundaries[0] != 0 or boundaries[-1] != len(hidden_states) or (lengths < 0).any():
        raise ValueError(
            f"cu_seqlens must increase from 0 to {len(hidden_states):,}, the number of tokens in "
            f"hidden_states, with {num_before + num_after} special tokens in each sequence"
        )
    is_residue = torch.ones(len(hidden_states), dtype=torch.bool, device=hidden_states.device)
    for index in range(num_before):
        is_residue[boundaries[:-1] + index] = False
    for index in range(num_after):
        is_residue[boundaries[1:] - 1 - index] = False
    residues = hidden_states[is_residue]
    wide = residues.to(torch.promote_types(residues.dtype, torch.float32))
    embeddings = torch.segment_reduce(wide, "mean", lengths=lengths, axis=0)
    return Unpacked(list(sequence_ids), residues.split_with_sizes(lengths.tolist()), embeddings)

"""Batches of records as packed tensors, in the layout of variable-length attention, and back."""

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
from virnucpro.model.tokenized_records import TokenizedRecords, check_counts, find_names, join
from virnucpro.model.vocabulary import Tokens, read_vocabulary

logger = logging.getLogger(__name__)

# Boundaries are int32.
MOST_TOKENS = 2**31 - 1

DEFAULT_BUDGET = 4096

# Unknown texts that are counted one by one, and those that a message names.
MOST_TEXTS = 1000
MOST_NAMED = 10


class VarlenCollator:
    """Turns the records of a batch into packed tensors: sequences end to end, without padding.

    A callable for ``DataLoader(collate_fn=...)``. It takes a list of records, dicts with `id` and
    `sequence` (or one record), and returns a dict of

    - ``input_ids``: int64 [tokens], each sequence between its special tokens (BOS, EOS);
    - ``position_ids``: int64 [tokens], from 0 in each sequence;
    - ``cu_seqlens``: int32 [n + 1], where each sequence begins, and the end;
    - ``max_seqlen``: int, tokens of the longest sequence;
    - ``sequence_ids``: list, the `id` of each of the n records;
    - ``num_sequences``: int, n;
    - ``truncated``: bool [n], whether a sequence was truncated, here or by what made the record
      (``truncated=True`` in it);
    - ``num_unknown``: int, residues that are not in the tokenizer's vocabulary;
    - ``token_budget``: int, `max_tokens_per_batch`;
    - ``special_tokens``: how many special tokens each sequence has before its residues and after;
    - ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q``, ``max_length_k``: the same boundaries
      under the names that Hugging Face models take; see `model_inputs`;
    - ``labels``, if records have them: int64 [tokens], -100 at special tokens and where a record
      has none. A record's `labels` are integers, one for each token without special tokens, and
      truncated as its tokens are; where it says ``truncated=True`` they may be those of the whole.
    - Every other key of a record is carried along: a list of n values under its name, None where a
      record lacks it.

    A record's `tokens`, what a plan counted for it with special tokens, is compared with what it
    has. An empty list gives an empty dict. Records are not changed, and stay in their order.

    Where each letter is a token, as for ESM-2, tokens are looked up in a table: the tokenizer's own
    for each letter that it knows, and one ``<unk>`` for each residue that it does not know, so
    that residues and tokens stay aligned. A special token that is spelled out, such as ``<mask>``,
    is one token. Sequences of other vocabularies go through the tokenizer, whole.

    Args:
        batch_converter: A batch converter of fair-esm (``alphabet.get_batch_converter()``) or a
            tokenizer of Hugging Face transformers.
        max_tokens_per_batch: The budget in tokens, special tokens included; 4,096 if None.
        max_sequence_length: Tokens kept of a sequence, the first ones, without special tokens. A
            sequence that is truncated keeps its EOS.
        unknown: What to do about residues that become ``<unk>``: "warn" logs one WARNING, at the
            first batch that has any; "error" refuses them; "ignore" only counts them. An ``<unk>``
            that is spelled out is none. With a tokenizer that has no unknown token, these are the
            residues that it leaves out.

    Attributes:
        unknown_residues: How often each unknown residue occurred in all batches so far, a Counter;
            the empty text counts those that the tokenizer does not tell. Workers of a DataLoader
            have copies; there ``num_unknown`` of the batches tells.
        num_residues: Residues of all batches so far; tokens where these are not residues.
        given_budget: `max_tokens_per_batch` as it was given, or set later; None if it was not.

    Raises:
        ValueError: The records have more tokens than the budget; a record lacks its `id` or
            `sequence`, has not one label for each token, not as many tokens as were planned, a key
            that the batch has of its own, or under unknown="error" an unknown residue. A parameter
            is out of range, or the tokenizer truncates sequences at their beginning.
        TypeError: `batch_converter` is neither of the two, a record is no dict, or its `labels` are
            not integers.

    Example:
        >>> from types import SimpleNamespace
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
        self.given_budget = max_tokens_per_batch
        self.max_sequence_length = max_sequence_length
        self.unknown_residues: Counter[str] = Counter()
        self.num_residues = 0
        self.limits()

    @property
    def max_tokens_per_batch(self) -> int:
        """The budget in tokens; 4,096 where nobody gave one."""
        return DEFAULT_BUDGET if self.given_budget is None else self.given_budget

    @max_tokens_per_batch.setter
    def max_tokens_per_batch(self, budget: int) -> None:
        self.given_budget = budget

    @property
    def special_tokens(self) -> int:
        """Tokens that each sequence has beside its residues."""
        return len(self.vocabulary.before) + len(self.vocabulary.after)

    @property
    def has_table(self) -> bool:
        """Whether each residue is a token."""
        return self.vocabulary.of_letter is not None

    def __call__(self, records: Sequence[Record] | Record) -> dict[str, Any]:
        """Return the tensors of a batch; the class tells which.

        Cost: O(tokens); without a table, that of the tokenizer.
        """
        limits = self.limits()
        records = [records] if isinstance(records, dict) else list(records)
        if not records:
            return {}
        tokenized = self.tokenize(records, limits)
        total = len(tokenized.input_ids)
        if total > limits.max_tokens_per_batch:
            raise ValueError(
                f"a batch of {len(records):,} records, the first {records[0]['id']!r}, has "
                f"{total:,} tokens, more than the budget of {limits.max_tokens_per_batch:,}"
            )
        return self.to_batch(tokenized, limits)

    def limits(self, token_budget: int | None = None) -> Limits:
        """Check the parameters, which may have been changed, and return the limits of a batch.

        The budget is the collator's own, unless one is given.
        """
        if self.unknown not in ("warn", "error", "ignore"):
            raise ValueError(f"unknown must be 'warn', 'error' or 'ignore' (got {self.unknown!r})")
        budget = self.max_tokens_per_batch if token_budget is None else token_budget
        check_integer(budget, "max_tokens_per_batch", 1, MOST_TOKENS)
        return Limits(budget, self.max_sequence_length, self.special_tokens)

    def tokenize(self, records: list[Record], limits: Limits) -> TokenizedRecords:
        """Return the records with the tokens that are kept of each, to make batches of."""
        limit = limits.max_residues
        read_records(records, "records")
        tokens = self.vocabulary.tokenize([record["sequence"] for record in records], limit)
        names = find_names(records)
        if "tokens" in names:
            check_counts(records, np.diff(tokens.offsets))
        self._count_unknown(records, tokens)
        num_truncated = np.count_nonzero(tokens.whole > limit)
        if num_truncated:
            logger.warning(
                "%s of %s sequences exceed max_length (%d), truncating",
                f"{num_truncated:,}",
                f"{len(records):,}",
                limit,
            )
        return join(records, names, tokens, self.vocabulary)

    def to_batch(self, tokenized: TokenizedRecords, limits: Limits) -> dict[str, Any]:
        """Return the tensors of tokenized records; the class tells which."""
        return make_batch(
            tokenized.input_ids.astype(np.int64, copy=False),
            tokenized.offsets.astype(np.int32),
            [record["id"] for record in tokenized.records],
            limits.max_tokens_per_batch,
            (len(self.vocabulary.before), len(self.vocabulary.after)),
            tokenized.truncated,
            0 if tokenized.num_unknown is None else int(tokenized.num_unknown.sum()),
            tokenized.labels(),
            tokenized.carried(),
        )

    def _count_unknown(self, records: list[Record], tokens: Tokens) -> None:
        is_first = not self.unknown_residues
        num_residues = len(tokens.ids) - self.special_tokens * len(records)
        self.num_residues += num_residues
        for text, number in tokens.unknown.items():
            counts = self.unknown_residues
            is_counted = text in counts or len(counts) < MOST_TEXTS
            counts[text if is_counted else ""] += number
        first = tokens.first_unknown
        if first is None or self.unknown == "ignore":
            return
        if self.unknown == "error":
            what = "some text"
            if first.position is not None:
                what = f"{first.text!r} at position {first.position:,}, counted from 0,"
            raise ValueError(
                f"record {records[first.sequence]['id']!r}: {what} is not in the tokenizer's "
                "vocabulary"
            )
        if is_first:
            number = sum(tokens.unknown.values())
            if self.vocabulary.leaves_out:
                num_residues += number
            logger.warning(
                "%s of %s %s (%s) are not in the tokenizer's vocabulary and %s%s; "
                "later ones are counted in each batch (num_unknown)",
                f"{number:,}",
                f"{num_residues:,}",
                "residues" if self.has_table else "tokens",
                f"{number / num_residues:.2%}",
                self.vocabulary.fate_of_unknown,
                name_texts(tokens.unknown),
            )


def name_texts(unknown: Mapping[str, int]) -> str:
    """Return what is unknown, most frequent first, for a message."""
    named = [
        f"{text if text.isprintable() and text.strip() else repr(text)} ({number:,})"
        for text, number in Counter(unknown).most_common(MOST_NAMED)
        if text
    ]
    more = ", ..." if len(unknown) > MOST_NAMED else ""
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
    carried: dict[str, list[Any]] | None = None,
) -> dict[str, Any]:
    """Return a batch as `VarlenCollator` gives it; all else follows from these."""
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    position_ids = np.arange(len(input_ids)) - np.repeat(cu_seqlens[:-1], lengths)
    boundaries = torch.from_numpy(cu_seqlens)
    longest = int(lengths.max())
    if truncated is None:
        truncated = np.zeros(len(sequence_ids), np.bool_)
    batch = {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        "cu_seqlens": boundaries,
        "max_seqlen": longest,
        "sequence_ids": sequence_ids,
        "num_sequences": len(sequence_ids),
        "truncated": torch.from_numpy(truncated),
        "num_unknown": num_unknown,
        "token_budget": token_budget,
        "special_tokens": special_tokens,
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
        **(carried or {}),
    }
    if labels is not None:
        batch["labels"] = torch.from_numpy(labels)
    return batch


class Unpacked(NamedTuple):
    """What a model says of each sequence of a batch, in the order of the batch.

    Attributes:
        sequence_ids: The ID of each sequence.
        states: The states of its residues, a tensor [residues, hidden] for each sequence.
        embeddings: Their means, float32 or wider [n, hidden]; NaN for a sequence without residues.
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
    """Return the states of each sequence's residues, and their mean, without special tokens.

    Args:
        hidden_states: What a model gives for a packed batch, [tokens, hidden] or
            [1, tokens, hidden].
        batch: The batch of a `VarlenCollator`, which has all that follows; or the boundaries of
            sequences, int [n + 1].
        sequence_ids: The ID of each sequence, with boundaries.
        num_before: With boundaries, special tokens before the residues of a sequence (BOS).
        num_after: With boundaries, special tokens after them (EOS); none with ESM-1.

    Raises:
        ValueError: The shapes do not fit each other, or boundaries come without IDs.

    Cost: one copy of the states, of which `states` are views.

    Example:
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
            f"sequence_ids must be one a sequence (got {len(sequence_ids)} for {len(lengths)})"
        )
    if len(lengths) == 0:
        raise ValueError("cu_seqlens must have at least one sequence")
    if boundaries[0] != 0 or boundaries[-1] != len(hidden_states) or (lengths < 0).any():
        raise ValueError(
            f"cu_seqlens must lead from 0 to the {len(hidden_states):,} tokens of hidden_states, "
            f"with {num_before + num_after} special tokens in each sequence"
        )
    is_residue = torch.ones(len(hidden_states), dtype=torch.bool, device=hidden_states.device)
    for place in range(num_before):
        is_residue[boundaries[:-1] + place] = False
    for place in range(num_after):
        is_residue[boundaries[1:] - 1 - place] = False
    residues = hidden_states[is_residue]
    wide = residues.to(torch.promote_types(residues.dtype, torch.float32))
    embeddings = torch.segment_reduce(wide, "mean", lengths=lengths, axis=0)
    return Unpacked(list(sequence_ids), residues.split_with_sizes(lengths.tolist()), embeddings)

"""Batches of records as packed tensors, in the layout of variable-length attention, and back."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.data.arguments import check_integer
from virnucpro.data.packing import read_records

logger = logging.getLogger(__name__)

Record = dict[str, Any]

# Boundaries are int32.
MOST_TOKENS = 2**31 - 1


class VarlenCollator:
    """Turns the records of a batch into packed tensors: sequences end to end, without padding.

    A callable without state, for ``DataLoader(collate_fn=...)``. It takes a list of records, dicts
    with `id` and `sequence` (or one record), and returns a dict of

    - ``input_ids``: int64 [tokens], each sequence between its special tokens (BOS, EOS);
    - ``position_ids``: int64 [tokens], from 0 in each sequence;
    - ``cu_seqlens``: int32 [n + 1], where each sequence begins, and the end;
    - ``max_seqlen``: int, tokens of the longest sequence;
    - ``sequence_ids``: list, the `id` of each of the n records;
    - ``num_sequences``: int, n;
    - ``token_budget``: int, `max_tokens_per_batch`;
    - ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q``, ``max_length_k``: the same boundaries
      under the names that Hugging Face models take; see `model_inputs`.

    An empty list gives an empty dict. Records are not changed, and stay in their order.

    Where each letter is a token, as for ESM-2, tokens are looked up in a table: the tokenizer's own
    for each letter that it knows, and one ``<unk>`` for each residue that it does not know, so
    that residues and tokens stay aligned. A special token that is spelled out, such as ``<mask>``,
    is one token. Sequences of other vocabularies go through the tokenizer.

    Args:
        batch_converter: A batch converter of fair-esm (``alphabet.get_batch_converter()``) or a
            tokenizer of Hugging Face transformers.
        max_tokens_per_batch: The budget in tokens, special tokens included.
        max_sequence_length: Residues kept of a sequence, from its N-terminal end. A sequence that
            is cut keeps its EOS.

    Raises:
        ValueError: The records have more tokens than the budget; or a record lacks its `id` or
            `sequence`.
        TypeError: `batch_converter` is neither of the two, or a record is no dict.

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
    """

    def __init__(
        self,
        batch_converter: Any,
        max_tokens_per_batch: int = 4096,
        max_sequence_length: int = 1022,
    ) -> None:
        self._vocabulary = read_vocabulary(batch_converter)
        self.max_tokens_per_batch = max_tokens_per_batch
        self.max_sequence_length = max_sequence_length
        self._limit()

    @property
    def special_tokens(self) -> int:
        """Tokens that each sequence has beside its residues."""
        return len(self._vocabulary.before) + len(self._vocabulary.after)

    @property
    def has_table(self) -> bool:
        """Whether each residue is a token."""
        return self._vocabulary.of_letter is not None

    def __call__(self, records: Sequence[Record] | Record) -> dict[str, Any]:
        """Return the tensors of a batch; the class tells which.

        Cost: O(tokens).
        """
        limit = self._limit()
        records = [records] if isinstance(records, dict) else list(records)
        if not records:
            return {}
        _, residues = read_records(records, "records")
        before, after = self._vocabulary.before, self._vocabulary.after
        tokens, lengths = self._vocabulary.tokenize([r["sequence"][:limit] for r in records], limit)
        ends = np.cumsum(lengths + self.special_tokens)
        total = int(ends[-1])
        if total > self.max_tokens_per_batch:
            raise ValueError(
                f"a batch of {len(records):,} records, the first {records[0]['id']!r}, has "
                f"{total:,} tokens, more than the budget of {self.max_tokens_per_batch:,}"
            )
        if (residues > limit).any():
            logger.warning(
                "%s of %s sequences exceed max_length (%d), truncating",
                np.count_nonzero(residues > limit),
                len(records),
                limit,
            )
        starts = ends - lengths - self.special_tokens
        input_ids = np.empty(total, np.int64)
        is_residue = np.ones(total, np.bool_)
        for place, token in enumerate(before):
            input_ids[starts + place] = token
            is_residue[starts + place] = False
        for place, token in enumerate(after[::-1], start=1):
            input_ids[ends - place] = token
            is_residue[ends - place] = False
        input_ids[is_residue] = tokens
        cu_seqlens = np.append(0, ends).astype(np.int32)
        ids = [record["id"] for record in records]
        return make_batch(input_ids, cu_seqlens, ids, self.max_tokens_per_batch)

    def _limit(self) -> int:
        """Check the parameters, which may have been changed, and return the residues kept."""
        budget = check_integer(self.max_tokens_per_batch, "max_tokens_per_batch", 1, MOST_TOKENS)
        longest = check_integer(self.max_sequence_length, "max_sequence_length", 1)
        if budget <= self.special_tokens:
            raise ValueError(
                f"max_tokens_per_batch must have room for one residue and {self.special_tokens} "
                f"special tokens (got {budget})"
            )
        return min(longest, budget - self.special_tokens)


def make_batch(
    input_ids: NDArray[np.int64],
    cu_seqlens: NDArray[np.int32],
    sequence_ids: list[Any],
    token_budget: int,
) -> dict[str, Any]:
    """Return a batch as `VarlenCollator` gives it; all else follows from these."""
    lengths = np.diff(cu_seqlens)
    position_ids = np.arange(len(input_ids)) - np.repeat(cu_seqlens[:-1], lengths)
    boundaries = torch.from_numpy(cu_seqlens)
    longest = int(lengths.max())
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        "cu_seqlens": boundaries,
        "max_seqlen": longest,
        "sequence_ids": sequence_ids,
        "num_sequences": len(sequence_ids),
        "token_budget": token_budget,
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }


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
    cu_seqlens: torch.Tensor,
    sequence_ids: Sequence[Any],
    num_before: int = 1,
    num_after: int = 1,
) -> Unpacked:
    """Return the states of each sequence's residues, and their mean, without BOS and EOS.

    Args:
        hidden_states: What a model gives for a packed batch, [tokens, hidden] or
            [1, tokens, hidden].
        cu_seqlens: Boundaries of sequences, int [n + 1].
        sequence_ids: The ID of each sequence.
        num_before: Special tokens before the residues of a sequence (BOS).
        num_after: Special tokens after them (EOS); none with ESM-1.

    Raises:
        ValueError: The shapes do not fit each other.

    Cost: one copy of the states, of which `states` are views.

    Example:
        >>> states = torch.tensor([[0.0], [1.0], [3.0], [0.0], [0.0], [5.0], [0.0]])
        >>> unpacked = unpack(states, torch.tensor([0, 4, 7]), ["a", "b"])
        >>> unpacked.embeddings
        tensor([[2.],
                [5.]])
    """
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


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer makes of sequences.

    Attributes:
        before: Tokens before the residues (BOS).
        after: Tokens after them (EOS).
        encode: The tokenizer's own tokens of a sequence, without those before and after.
        of_letter: The token of each letter by code point, int64, the last entry that of all
            beyond; None where a letter is no token of its own.
        of_word: The tokens that are spelled with more than one letter.
        words: Finds these.
    """

    before: list[int]
    after: list[int]
    encode: Callable[[str], list[int]]
    of_letter: NDArray[np.int64] | None
    of_word: dict[str, int]
    words: re.Pattern[str]

    def tokenize(
        self, sequences: list[str], limit: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the tokens of all sequences, at most `limit` of each, and how many of each."""
        if self.of_letter is None:
            encoded = [self.encode(sequence)[:limit] for sequence in sequences]
            return np.array(list(chain.from_iterable(encoded)), np.int64), lengths_of(encoded)
        if any(map(self.words.search, sequences)):
            parts = [self._look_up_words(sequence) for sequence in sequences]
            return np.concatenate(parts), lengths_of(parts)
        return self._look_up("".join(sequences)), lengths_of(sequences)

    def _look_up(self, text: str) -> NDArray[np.int64]:
        assert self.of_letter is not None
        if text.isascii():
            return self.of_letter.take(np.frombuffer(text.encode(), np.uint8))
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        return self.of_letter.take(points, mode="clip")

    def _look_up_words(self, text: str) -> NDArray[np.int64]:
        parts = []
        end = 0
        for word in self.words.finditer(text):
            parts.append(self._look_up(text[end : word.start()]))
            parts.append(np.array([self.of_word[word.group()]]))
            end = word.end()
        return np.concatenate([*parts, self._look_up(text[end:])])


def lengths_of(parts: Sequence[Sized]) -> NDArray[np.int64]:
    """Return the length of each part."""
    return np.fromiter(map(len, parts), np.int64, len(parts))


def read_vocabulary(batch_converter: Any) -> Vocabulary:
    """Return what a batch converter of fair-esm, or a Hugging Face tokenizer, does."""
    if hasattr(batch_converter, "alphabet"):
        alphabet = batch_converter.alphabet
        if alphabet.use_msa:
            raise ValueError("batch_converter is for alignments, which cannot be packed")
        before = [alphabet.cls_idx] if alphabet.prepend_bos else []
        after = [alphabet.eos_idx] if alphabet.append_eos else []
        tokens = alphabet.tok_to_idx
        return make_vocabulary(before, after, alphabet.encode, tokens, tokens, alphabet.unk_idx)
    if hasattr(batch_converter, "get_vocab"):
        encode = partial(batch_converter.encode, add_special_tokens=False)
        tokens = batch_converter.get_vocab()
        before, after = find_special_tokens(batch_converter, tokens)
        # Letters that the vocabulary lacks may be tokens too, lower case for example.
        candidates = {*map(chr, range(128)), *(token for token in tokens if len(token) == 1)}
        encoded = {letter: encode(letter) for letter in candidates}
        letters = {letter: ids[0] for letter, ids in encoded.items() if len(ids) == 1}
        unknown = batch_converter.unk_token_id
        return make_vocabulary(before, after, encode, tokens, letters, unknown)
    raise TypeError(
        "batch_converter must be a batch converter of fair-esm or a Hugging Face tokenizer "
        f"(got {type(batch_converter).__name__})"
    )


def find_special_tokens(tokenizer: Any, tokens: dict[str, int]) -> tuple[list[int], list[int]]:
    """Return what a tokenizer puts before and after a sequence."""
    letters = sorted(token for token in tokens if len(token) == 1 and token.isalpha())
    for letter in ["A", *letters]:
        encoded = tokenizer(letter, return_special_tokens_mask=True)
        ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
        if 0 in mask:
            return ids[: mask.index(0)], ids[len(mask) - mask[::-1].index(0) :]
    raise ValueError("batch_converter's vocabulary has no letter")


def make_vocabulary(
    before: list[int],
    after: list[int],
    encode: Callable[[str], list[int]],
    tokens: dict[str, int],
    letters: dict[str, int],
    unknown: int | None,
) -> Vocabulary:
    """Return a vocabulary, with a table where all tokens are letters or written in brackets."""
    words = {token: number for token, number in tokens.items() if len(token) > 1}
    # Without words, a pattern that is found nowhere.
    pattern = "|".join(map(re.escape, words)) or "(?!)"
    known = [token for token in tokens if len(token) == 1 and token.isalpha()]
    has_letters = known and all(token in letters for token in known)
    table = None
    if (
        unknown is not None
        and has_letters
        and all(re.fullmatch(r"<.*>|\[.*\]", word) for word in words)
    ):
        points = {ord(letter): number for letter, number in letters.items() if len(letter) == 1}
        table = np.full(max(128, *(point + 1 for point in points)) + 1, unknown, np.int64)
        table[list(points)] = list(points.values())
    return Vocabulary(before, after, encode, table, words, re.compile(pattern))

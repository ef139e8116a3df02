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

    A callable without state, for `DataLoader(collate_fn=...)`. It takes a list of records, dicts
    with `id` and `sequence` (or one record), and returns a dict of

    - ``input_ids``: int64 [tokens], each sequence between its special tokens (BOS, EOS);
    - ``position_ids``: int64 [tokens], from 0 in each sequence;
    - ``cu_seqlens``: int32 [n + 1], where each sequence begins, and the end;
    - ``max_seqlen``: int, tokens of the longest sequence;
    - ``sequence_ids``: the `id` of each record; ``num_sequences``: int;
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

    def __call__(self, records: Sequence[Record] | Record) -> dict[str, Any]:
        """Return the tensors of a batch."""
        limit = self._limit()
        records = [records] if isinstance(records, dict) else list(records)
        if not records:
            return {}
        _, residues = read_records(records, "records")
        vocabulary = self._vocabulary
        tokens, lengths = vocabulary.tokenize([record["sequence"] for record in records], limit)
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
        for place, token in enumerate(vocabulary.before):
            input_ids[starts + place] = token
            is_residue[starts + place] = False
        for place, token in enumerate(vocabulary.after[::-1], start=1):
            input_ids[ends - place] = token
            is_residue[ends - place] = False
        input_ids[is_residue] = tokens
        position_ids = np.arange(total) - np.repeat(starts, np.diff(ends, prepend=0))
        cu_seqlens = torch.from_numpy(np.append(0, ends).astype(np.int32))
        max_seqlen = int(lengths.max()) + self.special_tokens
        return {
            "input_ids": torch.from_numpy(input_ids),
            "position_ids": torch.from_numpy(position_ids),
            "cu_seqlens": cu_seqlens,
            "max_seqlen": max_seqlen,
            "sequence_ids": [record["id"] for record in records],
            "num_sequences": len(records),
            "token_budget": self.max_tokens_per_batch,
            "cu_seq_lens_q": cu_seqlens,
            "cu_seq_lens_k": cu_seqlens,
            "max_length_q": max_seqlen,
            "max_length_k": max_seqlen,
        }

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


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a Hugging Face model for a batch of `VarlenCollator`.

    They are ``input_ids`` and ``position_ids``, int64 [1, tokens], and the boundaries
    ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q`` and ``max_length_k``.

    Positions are those of rotary embeddings, from 0. A model with absolute embeddings may count
    from elsewhere (ESM-1b does, from its padding token's number + 1).
    """
    boundaries = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    return {
        "input_ids": batch["input_ids"][None],
        "position_ids": batch["position_ids"][None],
        **{name: batch[name] for name in boundaries},
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
    hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, sequence_ids: Sequence[Any]
) -> Unpacked:
    """Return the states of each sequence's residues, and their mean, without BOS and EOS.

    Args:
        hidden_states: What a model gives for a packed batch, [tokens, hidden] or
            [1, tokens, hidden].
        cu_seqlens: Boundaries of sequences, int [n + 1], each with one BOS and one EOS.
        sequence_ids: The ID of each sequence.

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
    lengths = boundaries.diff()
    if len(lengths) != len(sequence_ids):
        raise ValueError(
            f"sequence_ids must be one a sequence (got {len(sequence_ids)} for {len(lengths)})"
        )
    if boundaries[0] != 0 or boundaries[-1] != len(hidden_states) or (lengths < 2).any():
        raise ValueError(
            f"cu_seqlens must lead from 0 to the {len(hidden_states):,} tokens of hidden_states, "
            "with a BOS and an EOS in each sequence"
        )
    is_residue = torch.ones(len(hidden_states), dtype=torch.bool, device=hidden_states.device)
    is_residue[boundaries[:-1]] = False
    is_residue[boundaries[1:] - 1] = False
    residues = hidden_states[is_residue]
    wide = residues.to(torch.promote_types(residues.dtype, torch.float32))
    embeddings = torch.segment_reduce(wide, "mean", lengths=lengths - 2, axis=0)
    return Unpacked(
        list(sequence_ids), residues.split_with_sizes((lengths - 2).tolist()), embeddings
    )


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
            encoded = [self.encode(sequence[:limit])[:limit] for sequence in sequences]
            return np.array(list(chain.from_iterable(encoded)), np.int64), lengths_of(encoded)
        if any(map(self.words.search, sequences)):
            parts = [self._look_up_words(sequence)[:limit] for sequence in sequences]
            return np.concatenate(parts), lengths_of(parts)
        letters = [sequence[:limit] for sequence in sequences]
        return self._look_up("".join(letters)), lengths_of(letters)

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
        return make_vocabulary(
            before,
            after,
            alphabet.encode,
            alphabet.tok_to_idx,
            lambda letter: [alphabet.tok_to_idx.get(letter, alphabet.unk_idx)],
            alphabet.unk_idx,
        )
    if hasattr(batch_converter, "get_vocab"):
        encode = partial(batch_converter.encode, add_special_tokens=False)
        # Where the tokens of a letter stand among those of the whole tells what is around them.
        letters = [token for token in batch_converter.get_vocab() if len(token) == 1]
        letter = next(filter(str.isalpha, letters), None)
        if letter is None:
            raise ValueError("batch_converter's vocabulary has no letter")
        inner, whole = encode(letter), batch_converter.encode(letter)
        place = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
        return make_vocabulary(
            whole[:place],
            whole[place + len(inner) :],
            encode,
            batch_converter.get_vocab(),
            encode,
            batch_converter.unk_token_id,
        )
    raise TypeError(
        "batch_converter must be a batch converter of fair-esm or a Hugging Face tokenizer "
        f"(got {type(batch_converter).__name__})"
    )


def make_vocabulary(
    before: list[int],
    after: list[int],
    encode: Callable[[str], list[int]],
    tokens: dict[str, int],
    encode_letter: Callable[[str], list[int]],
    unknown: int | None,
) -> Vocabulary:
    """Return a vocabulary, with a table where all tokens are letters or written in brackets."""
    words = {token: number for token, number in tokens.items() if len(token) > 1}
    # The longest first, as the first that fits is taken; no text fits nothing.
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)"
    table = None
    if unknown is not None and all(re.fullmatch(r"<.*>|\[.*\]", word) for word in words):
        last = max((ord(token) for token in tokens if len(token) == 1), default=0)
        table = np.full(max(128, last + 1) + 1, unknown, np.int64)
        for point in range(len(table) - 1):
            ids = encode_letter(chr(point))
            if len(ids) == 1:
                table[point] = ids[0]
    return Vocabulary(before, after, encode, table, words, re.compile(pattern))

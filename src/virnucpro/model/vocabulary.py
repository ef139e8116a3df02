"""Tokens of sequences, as tokenizers of fair-esm and Hugging Face transformers produce them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro.kernel.limits import Limits
from virnucpro.text import quoted

# Maximum letters kept of an unknown text.
MAX_TEXT = 20


class Unknown(NamedTuple):
    """The first unknown text of a batch of sequences.

    Attributes:
        sequence: The number of the sequence.
        position: The start of the text in the sequence, from 0; None if the tokenizer does not
            report it.
        text: The text, at most 20 letters; empty if the tokenizer does not report it.
    """

    sequence: int
    position: int | None
    text: str


class Tokens(NamedTuple):
    """Tokens of n sequences, each with its special tokens, concatenated.

    Attributes:
        ids: All tokens, in the narrowest signed integers that hold the vocabulary [tokens].
        offsets: Boundaries of the sequences in `ids`, int64 [n + 1].
        full_lengths: Number of tokens of each sequence before truncation, without special tokens,
            int64 [n].
        num_unknown: Number of occurrences of text not in the vocabulary in each sequence, int64
            [n]; None if there are none.
        unknown: Number of occurrences of each such text, under the empty text if the tokenizer does
            not report it.
        first_unknown: The first such text; None if there is none.
    """

    ids: NDArray[np.signedinteger[Any]]
    offsets: NDArray[np.int64]
    full_lengths: NDArray[np.int64]
    num_unknown: NDArray[np.int64] | None = None
    unknown: Mapping[str, int] = MappingProxyType({})
    first_unknown: Unknown | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        before: Special tokens before the tokens of a sequence (BOS).
        after: Special tokens after them (EOS).
        unknown_id: The token of text not in the vocabulary (`<unk>`); None if there is none.
        skips_unknown: Whether the tokenizer skips text not in the vocabulary.
        unknown_names: The spellings of the unknown token itself.
        encode: Returns the tokenizer's tokens of sequences, without special tokens.
        find_offsets: Returns the start and end of each token in a sequence; None if the tokenizer
            does not report them.
        letter_ids: The token of each letter by code point, in the narrowest signed integers. It is
            -1 for letters not in the vocabulary; the last entry is for all larger code points. None
            if letters are not tokens.
        word_ids: If `letter_ids` is used, the tokens that have more than one letter.
        word_pattern: Matches these tokens.
        skipped_letters: Whether the tokenizer skips each letter encountered so far.
    """

    before: list[int]
    after: list[int]
    unknown_id: int | None
    skips_unknown: bool
    unknown_names: frozenset[str]
    encode: Callable[[list[str]], list[list[int]]]
    find_offsets: Callable[[str], list[tuple[int, int]]] | None
    letter_ids: NDArray[np.signedinteger[Any]] | None
    word_ids: dict[str, int]
    word_pattern: re.Pattern[str]
    skipped_letters: dict[str, bool] = field(default_factory=dict)

    @property
    def unknown_outcome(self) -> str:
        """The outcome for text not in the vocabulary, as words for messages."""
        if self.skips_unknown:
            return "are skipped"
        return "become " + min(self.unknown_names, default="unknown tokens")

    def tokenize(self, sequences: list[str], limits: Limits) -> Tokens:
        """Return the tokens of all sequences, truncated to `limits`, with special tokens.

        Cost: O(letters), or that of the tokenizer if letters are not tokens.
        """
        if self.letter_ids is None:
            return self._encode(sequences, limits.max_residues)
        letters = self._one_letter_per_token(sequences)
        has_words = letters is not sequences
        full_lengths = lengths_of(letters)
        num_before, num_after = len(self.before), len(self.after)
        limit = limits.max_residues
        kept = np.minimum(full_lengths, limit)
        offsets = offsets_of(kept + num_before + num_after)
        # One placeholder letter per special token.
        between = "\0" * (num_after + num_before)
        text = between.join([sequence[:limit] for sequence in letters])
        text = "\0" * num_before + text + "\0" * num_after
        ids = self._look_up(text)
        for index, token in enumerate(self.before):
            ids[offsets[:-1] + index] = token
        for index, token in enumerate(reversed(self.after), start=1):
            ids[offsets[1:] - index] = token
        if has_words:
            self._insert_words(ids, sequences, offsets)
        tokens = Tokens(ids, offsets, full_lengths)
        unknown = np.flatnonzero(ids < 0)
        if len(unknown) == 0:
            return tokens
        assert self.unknown_id is not None
        ids[unknown] = self.unknown_id
        rows = np.searchsorted(offsets, unknown, side="right") - 1
        row = int(rows[0])
        position = self._letter_position(
            sequences[row], int(unknown[0] - offsets[row]) - num_before
        )
        return tokens._replace(
            num_unknown=np.bincount(rows, minlength=len(sequences)),
            unknown=Counter(map(text.__getitem__, unknown.tolist())),
            first_unknown=Unknown(row, position, sequences[row][position]),
        )

    def count(self, sequences: list[str]) -> NDArray[np.int64]:
        """Return the number of tokens of each sequence without special tokens, int64 [n].

        Only if letters are tokens. Cost: O(letters), less than that of `tokenize`.
        """
        return lengths_of(self._one_letter_per_token(sequences))

    def _one_letter_per_token(self, sequences: list[str]) -> list[str]:
        """Return sequences in which each token of more than one letter is one letter."""
        if not any(map(self.word_pattern.search, sequences)):
            return sequences
        return [self.word_pattern.sub("\0", sequence) for sequence in sequences]

    def _look_up(self, text: str) -> NDArray[np.signedinteger[Any]]:
        assert self.letter_ids is not None
        if text.isascii():
            return self.letter_ids.take(np.frombuffer(text.encode(), np.uint8))
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        return self.letter_ids.take(points, mode="clip")

    def _insert_words(
        self,
        ids: NDArray[np.signedinteger[Any]],
        sequences: list[str],
        offsets: NDArray[np.int64],
    ) -> None:
        """Write tokens of more than one letter into the tokens of their sequences."""
        ends = offsets[1:] - len(self.after)
        for sequence, begin, end in zip(sequences, offsets[:-1], ends, strict=True):
            first = begin + len(self.before)
            for word in self.word_pattern.finditer(sequence):
                if first + word.start() >= end:
                    break
                ids[first + word.start()] = self.word_ids[word.group()]
                first -= len(word.group()) - 1

    def _letter_position(self, sequence: str, token: int) -> int:
        """Return the position of a one-letter token in its sequence, from its number."""
        position = token
        for word in self.word_pattern.finditer(sequence):
            if word.start() > position:
                break
            position += len(word.group()) - 1
        return position

    def _encode(self, sequences: list[str], limit: int) -> Tokens:
        encoded = self.encode(sequences)
        kept = [[*self.before, *ids[:limit], *self.after] for ids in encoded]
        offsets = offsets_of(lengths_of(kept))
        flat = np.fromiter(chain.from_iterable(kept), np.int64, offsets[-1])
        tokens = Tokens(flat, offsets, lengths_of(encoded))
        num_unknown = np.zeros(len(kept), np.int64)
        texts: Counter[str] = Counter()
        first = None
        for row, ids in enumerate(encoded):
            if self.skips_unknown:
                unknown = self._find_skipped(row, sequences[row])
            elif self.unknown_id in ids[:limit]:
                unknown = self._find_unknown(row, sequences[row], ids, limit)
            else:
                continue
            num_unknown[row] = len(unknown)
            texts.update(found.text for found in unknown)
            first = first or next(iter(unknown), None)
        if first is None:
            return tokens
        return tokens._replace(num_unknown=num_unknown, unknown=texts, first_unknown=first)

    def _find_unknown(self, row: int, sequence: str, ids: list[int], limit: int) -> list[Unknown]:
        """Return the unknown tokens of a sequence, except those spelled out in it."""
        unknown = self.unknown_id
        assert unknown is not None
        if self.find_offsets is None:
            # If the sequence is truncated, those spelled out may be among the removed tokens.
            is_full = len(ids) <= limit
            num_spelled = sum(map(sequence.count, self.unknown_names)) if is_full else 0
            return [Unknown(row, None, "")] * max(0, ids[:limit].count(unknown) - num_spelled)
        offsets = self.find_offsets(sequence)
        return [
            Unknown(row, begin, sequence[begin : min(end, begin + MAX_TEXT)])
            for token, (begin, end) in zip(ids[:limit], offsets, strict=False)
            if token == unknown and sequence[begin:end].strip() not in self.unknown_names
        ]

    def _find_skipped(self, row: int, sequence: str) -> list[Unknown]:
        """Return the letters of a sequence that the tokenizer skips, also in its truncated part.

        Offsets do not show them, since tokenizers count positions without the skipped letters.
        """
        new = [letter for letter in set(sequence) if letter not in self.skipped_letters]
        if new:
            encoded = zip(new, self.encode(new), strict=True)
            self.skipped_letters.update(
                (letter, not ids and not letter.isspace()) for letter, ids in encoded
            )
        return [
            Unknown(row, position, letter)
            for position, letter in enumerate(sequence)
            if self.skipped_letters[letter]
        ]


def lengths_of(parts: Sequence[Sized]) -> NDArray[np.int64]:
    """Return the length of each part, int64 [n]."""
    return np.fromiter(map(len, parts), np.int64, len(parts))


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the boundaries of concatenated parts, int64 [n + 1]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def read_vocabulary(batch_converter: Any) -> Vocabulary:
    """Return the vocabulary of a batch converter of fair-esm or a Hugging Face tokenizer."""
    if hasattr(batch_converter, "alphabet"):
        alphabet = batch_converter.alphabet
        if alphabet.use_msa:
            raise ValueError("batch_converter is for alignments (MSAs), which cannot be packed")
        before = [alphabet.cls_idx] if alphabet.prepend_bos else []
        after = [alphabet.eos_idx] if alphabet.append_eos else []
        tokens = alphabet.tok_to_idx
        encode = partial(encode_each, alphabet)
        letters = {token: number for token, number in tokens.items() if len(token) == 1}
        unknown_id = alphabet.unk_idx
        return make_vocabulary(before, after, encode, None, tokens, letters, unknown_id)
    if hasattr(batch_converter, "get_vocab"):
        if getattr(batch_converter, "truncation_side", "right") != "right":
            raise ValueError(
                "batch_converter must truncate sequences at their end (got truncation_side="
                f"{quoted(batch_converter.truncation_side)})"
            )
        tokens = batch_converter.get_vocab()
        before, after = find_special_tokens(batch_converter, tokens)
        encode = partial(encode_all, batch_converter)
        # Letters not in the vocabulary may be tokens too, for example in lower case.
        candidates = [*{*map(chr, range(128)), *(token for token in tokens if len(token) == 1)}]
        encoded = dict(zip(candidates, encode(candidates), strict=True))
        letters = {letter: ids[0] for letter, ids in encoded.items() if len(ids) == 1}
        unknown_id = batch_converter.unk_token_id
        is_fast = getattr(batch_converter, "is_fast", False)
        find = partial(find_offsets, batch_converter) if is_fast else None
        skips_unknown = unknown_id is None and any(
            not ids and letter.isprintable() and not letter.isspace()
            for letter, ids in encoded.items()
        )
        return make_vocabulary(
            before, after, encode, find, tokens, letters, unknown_id, skips_unknown
        )
    raise TypeError(
        "batch_converter must be a batch converter of fair-esm or a Hugging Face tokenizer "
        f"(got {type(batch_converter).__name__})"
    )


def padding_token(batch_converter: Any) -> int:
    """Return the token that a tokenizer uses for padding; 0 if it has none."""
    alphabet = getattr(batch_converter, "alphabet", None)
    token = getattr(alphabet, "padding_idx", getattr(batch_converter, "pad_token_id", None))
    return 0 if token is None else int(token)


def encode_each(alphabet: Any, sequences: list[str]) -> list[list[int]]:
    """Return the tokens of each sequence from an alphabet of fair-esm, without special tokens."""
    return [alphabet.encode(sequence) for sequence in sequences]


def encode_all(tokenizer: Any, sequences: list[str]) -> list[list[int]]:
    """Return the tokens of each sequence from a Hugging Face tokenizer, without special tokens."""
    encoded = tokenizer(
        sequences,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        # The tokenizer would warn about long sequences, which are truncated later.
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def find_offsets(tokenizer: Any, sequence: str) -> list[tuple[int, int]]:
    """Return the start and end of each token in a sequence, from a fast tokenizer."""
    encoded = tokenizer(
        sequence, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    return offsets


def find_special_tokens(tokenizer: Any, tokens: Iterable[str]) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer adds before and after a sequence."""
    texts = sorted(filter(str.isalpha, tokens), key=lambda token: (len(token), token))
    for text in ["A", *texts]:
        encoded = tokenizer(text, return_special_tokens_mask=True)
        ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
        if 0 in mask:
            return ids[: mask.index(0)], ids[len(mask) - mask[::-1].index(0) :]
    raise ValueError("the vocabulary of batch_converter has no letters")


def make_vocabulary(
    before: list[int],
    after: list[int],
    encode: Callable[[list[str]], list[list[int]]],
    find_offsets: Callable[[str], list[tuple[int, int]]] | None,
    tokens: dict[str, int],
    letters: dict[str, int],
    unknown_id: int | None,
    skips_unknown: bool = False,
) -> Vocabulary:
    """Return a vocabulary, with a table if all tokens are letters or written in brackets."""
    words = {token: number for token, number in tokens.items() if len(token) > 1}
    known = [token for token in tokens if len(token) == 1 and token.isalpha()]
    has_letters = known and all(token in letters for token in known)
    has_table = (
        unknown_id is not None
        and has_letters
        and all(re.fullmatch(r"<.*>|\[.*\]", word) for word in words)
    )
    table = None
    if has_table:
        points = {
            ord(letter): number
            for letter, number in letters.items()
            if number != unknown_id or letter in tokens
        }
        # Narrow integers take less memory, and therefore less time.
        width = np.min_scalar_type(-1 - max(tokens.values()))
        table = np.full(max(128, *(point + 1 for point in points)) + 1, -1, width)
        table[list(points)] = list(points.values())
    else:
        words = {}
    unknown_names = frozenset(token for token, number in tokens.items() if number == unknown_id)
    # If there are no words, the pattern never matches.
    pattern = re.compile("|".join(map(re.escape, words)) or "(?!)")
    return Vocabulary(
        before,
        after,
        unknown_id,
        skips_unknown,
        unknown_names,
        encode,
        find_offsets,
        table,
        words,
        pattern,
    )

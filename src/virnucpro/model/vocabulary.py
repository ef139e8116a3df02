"""Tokens of sequences, as a tokenizer of fair-esm or Hugging Face transformers makes them."""

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

# Letters that are kept of a piece of text that the tokenizer does not know.
LONGEST_PIECE = 20


class Unknown(NamedTuple):
    """The first token that stands for text that the vocabulary lacks.

    Attributes:
        sequence: The number of the sequence.
        position: Where the text begins in it, from 0; None if the tokenizer does not tell.
        text: The text, at most 20 letters; empty if the tokenizer does not tell.
    """

    sequence: int
    position: int | None
    text: str


class Tokens(NamedTuple):
    """Tokens of n sequences, end to end, each between its special tokens.

    Attributes:
        ids: All tokens, signed integers of the width that the vocabulary needs [tokens].
        offsets: Where each sequence begins in `ids`, and the end, int64 [n + 1].
        whole: Tokens of each sequence before it was truncated, without special tokens, int64 [n].
        num_unknown: Tokens of each sequence that stand for text that the vocabulary lacks,
            int64 [n]; None if there are none.
        unknown: These texts, and how often each occurs; the empty text if the tokenizer does not
            tell.
        first_unknown: The first of them; None if there are none.
    """

    ids: NDArray[np.signedinteger[Any]]
    offsets: NDArray[np.int64]
    whole: NDArray[np.int64]
    num_unknown: NDArray[np.int64] | None = None
    unknown: Mapping[str, int] = MappingProxyType({})
    first_unknown: Unknown | None = None


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer makes of sequences.

    Attributes:
        before: Special tokens before the tokens of a sequence (BOS).
        after: Special tokens after them (EOS).
        unknown: The token of text that the vocabulary lacks; None if there is none.
        leaves_out: Whether text that the vocabulary lacks becomes no token at all.
        spelled_unknown: What spells this token itself.
        encode: The tokenizer's own tokens of sequences, without special tokens.
        find_offsets: Where each token begins and ends in a sequence; None if the tokenizer does
            not tell.
        of_letter: The token of each letter by code point, signed integers as narrow as can be, the
            last entry that of all beyond, -1 for letters that the vocabulary lacks; None where a
            letter is no token of its own.
        of_word: With a table, the tokens that are spelled with more than one letter.
        words: Finds these.
        is_left_out: Whether a letter becomes no token, of those that have been looked at.
    """

    before: list[int]
    after: list[int]
    unknown: int | None
    leaves_out: bool
    spelled_unknown: frozenset[str]
    encode: Callable[[list[str]], list[list[int]]]
    find_offsets: Callable[[str], list[tuple[int, int]]] | None
    of_letter: NDArray[np.signedinteger[Any]] | None
    of_word: dict[str, int]
    words: re.Pattern[str]
    is_left_out: dict[str, bool] = field(default_factory=dict)

    @property
    def fate_of_unknown(self) -> str:
        """What becomes of text that the vocabulary lacks, for a message."""
        if self.leaves_out:
            return "are left out"
        return "become " + min(self.spelled_unknown, default="unknown tokens")

    def tokenize(self, sequences: list[str], limit: int) -> Tokens:
        """Return the tokens of all sequences: the first `limit` of each, and special tokens.

        Cost: O(letters); without a table, that of the tokenizer.
        """
        if self.of_letter is None:
            return self._encode(sequences, limit)
        spelled = sequences
        has_words = any(map(self.words.search, sequences))
        if has_words:
            # One letter for each token.
            spelled = [self.words.sub("\0", sequence) for sequence in sequences]
        whole = lengths_of(spelled)
        num_before, num_after = len(self.before), len(self.after)
        offsets = offsets_of(np.minimum(whole, limit) + (num_before + num_after))
        # Special tokens are put where these letters are.
        between = "\0" * (num_after + num_before)
        text = between.join([sequence[:limit] for sequence in spelled])
        text = "\0" * num_before + text + "\0" * num_after
        ids = self._look_up(text)
        for place, token in enumerate(self.before):
            ids[offsets[:-1] + place] = token
        for place, token in enumerate(reversed(self.after), start=1):
            ids[offsets[1:] - place] = token
        if has_words:
            self._put_words(ids, sequences, offsets)
        tokens = Tokens(ids, offsets, whole)
        places = np.flatnonzero(ids < 0)
        if len(places) == 0:
            return tokens
        assert self.unknown is not None
        ids[places] = self.unknown
        rows = np.searchsorted(offsets, places, side="right") - 1
        row = int(rows[0])
        position = self._find(sequences[row], int(places[0] - offsets[row]) - num_before)
        return tokens._replace(
            num_unknown=np.bincount(rows, minlength=len(sequences)),
            unknown=Counter(map(text.__getitem__, places.tolist())),
            first_unknown=Unknown(row, position, sequences[row][position]),
        )

    def _look_up(self, text: str) -> NDArray[np.signedinteger[Any]]:
        assert self.of_letter is not None
        if text.isascii():
            return self.of_letter.take(np.frombuffer(text.encode(), np.uint8))
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        return self.of_letter.take(points, mode="clip")

    def _put_words(
        self,
        ids: NDArray[np.signedinteger[Any]],
        sequences: list[str],
        offsets: NDArray[np.int64],
    ) -> None:
        """Write the tokens of words into those of their sequences."""
        ends = offsets[1:] - len(self.after)
        for sequence, begin, end in zip(sequences, offsets[:-1], ends, strict=True):
            place = begin + len(self.before)
            for word in self.words.finditer(sequence):
                if place + word.start() >= end:
                    break
                ids[place + word.start()] = self.of_word[word.group()]
                place -= len(word.group()) - 1

    def _find(self, sequence: str, token: int) -> int:
        """Return where a letter that is a token by itself stands in its sequence."""
        position = token
        for word in self.words.finditer(sequence):
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
            if self.leaves_out:
                unknown = self._find_left_out(row, sequences[row])
            elif self.unknown in ids[:limit]:
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
        """Return the unknown tokens of a sequence; one that is spelled out is none of them."""
        unknown = self.unknown
        assert unknown is not None
        if self.find_offsets is None:
            # Where the sequence is truncated, nobody knows where the spelled ones are.
            is_whole = len(ids) <= limit
            num_spelled = sum(map(sequence.count, self.spelled_unknown)) if is_whole else 0
            return [Unknown(row, None, "")] * max(0, ids[:limit].count(unknown) - num_spelled)
        offsets = self.find_offsets(sequence)
        return [
            Unknown(row, begin, sequence[begin : min(end, begin + LONGEST_PIECE)])
            for token, (begin, end) in zip(ids[:limit], offsets, strict=False)
            if token == unknown and sequence[begin:end].strip() not in self.spelled_unknown
        ]

    def _find_left_out(self, row: int, sequence: str) -> list[Unknown]:
        """Return the letters of a sequence that become no token, wherever it is truncated.

        Offsets do not tell: where letters are left out, tokenizers count as if they were not there.
        """
        new = [letter for letter in set(sequence) if letter not in self.is_left_out]
        if new:
            encoded = zip(new, self.encode(new), strict=True)
            self.is_left_out.update(
                (letter, not ids and not letter.isspace()) for letter, ids in encoded
            )
        return [
            Unknown(row, place, letter)
            for place, letter in enumerate(sequence)
            if self.is_left_out[letter]
        ]


def lengths_of(parts: Sequence[Sized]) -> NDArray[np.int64]:
    """Return the length of each part."""
    return np.fromiter(map(len, parts), np.int64, len(parts))


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each part begins, and the end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def read_vocabulary(batch_converter: Any) -> Vocabulary:
    """Return what a batch converter of fair-esm, or a Hugging Face tokenizer, does."""
    if hasattr(batch_converter, "alphabet"):
        alphabet = batch_converter.alphabet
        if alphabet.use_msa:
            raise ValueError("batch_converter is for alignments, which cannot be packed")
        before = [alphabet.cls_idx] if alphabet.prepend_bos else []
        after = [alphabet.eos_idx] if alphabet.append_eos else []
        tokens = alphabet.tok_to_idx
        encode = partial(encode_each, alphabet)
        letters = {token: number for token, number in tokens.items() if len(token) == 1}
        unknown = alphabet.unk_idx
        return make_vocabulary(before, after, encode, None, tokens, letters, unknown)
    if hasattr(batch_converter, "get_vocab"):
        if getattr(batch_converter, "truncation_side", "right") != "right":
            raise ValueError(
                "batch_converter must truncate sequences at their end (its truncation_side is "
                f"{batch_converter.truncation_side!r})"
            )
        tokens = batch_converter.get_vocab()
        before, after = find_special_tokens(batch_converter, tokens)
        encode = partial(encode_all, batch_converter)
        # Letters that the vocabulary lacks may be tokens too, lower case for example.
        candidates = [*{*map(chr, range(128)), *(token for token in tokens if len(token) == 1)}]
        encoded = dict(zip(candidates, encode(candidates), strict=True))
        letters = {letter: ids[0] for letter, ids in encoded.items() if len(ids) == 1}
        unknown = batch_converter.unk_token_id
        is_fast = getattr(batch_converter, "is_fast", False)
        find = partial(find_offsets, batch_converter) if is_fast else None
        leaves_out = unknown is None and any(
            not ids and letter.isprintable() and not letter.isspace()
            for letter, ids in encoded.items()
        )
        return make_vocabulary(before, after, encode, find, tokens, letters, unknown, leaves_out)
    raise TypeError(
        "batch_converter must be a batch converter of fair-esm or a Hugging Face tokenizer "
        f"(got {type(batch_converter).__name__})"
    )


def encode_each(alphabet: Any, sequences: list[str]) -> list[list[int]]:
    """Return the tokens of sequences without special tokens, by an alphabet of fair-esm."""
    return [alphabet.encode(sequence) for sequence in sequences]


def encode_all(tokenizer: Any, sequences: list[str]) -> list[list[int]]:
    """Return the tokens of sequences without special tokens, by a Hugging Face tokenizer."""
    encoded = tokenizer(
        sequences,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        # It would warn of sequences that are truncated here.
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def find_offsets(tokenizer: Any, sequence: str) -> list[tuple[int, int]]:
    """Return where each token begins and ends in a sequence, by a fast tokenizer."""
    encoded = tokenizer(
        sequence, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    return offsets


def find_special_tokens(tokenizer: Any, tokens: Iterable[str]) -> tuple[list[int], list[int]]:
    """Return what a tokenizer puts before and after a sequence."""
    texts = sorted(filter(str.isalpha, tokens), key=lambda token: (len(token), token))
    for text in ["A", *texts]:
        encoded = tokenizer(text, return_special_tokens_mask=True)
        ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
        if 0 in mask:
            return ids[: mask.index(0)], ids[len(mask) - mask[::-1].index(0) :]
    raise ValueError("batch_converter's vocabulary has no letter")


def make_vocabulary(
    before: list[int],
    after: list[int],
    encode: Callable[[list[str]], list[list[int]]],
    find_offsets: Callable[[str], list[tuple[int, int]]] | None,
    tokens: dict[str, int],
    letters: dict[str, int],
    unknown: int | None,
    leaves_out: bool = False,
) -> Vocabulary:
    """Return a vocabulary, with a table where all tokens are letters or written in brackets."""
    words = {token: number for token, number in tokens.items() if len(token) > 1}
    known = [token for token in tokens if len(token) == 1 and token.isalpha()]
    has_letters = known and all(token in letters for token in known)
    has_table = (
        unknown is not None
        and has_letters
        and all(re.fullmatch(r"<.*>|\[.*\]", word) for word in words)
    )
    table = None
    if has_table:
        points = {
            ord(letter): number
            for letter, number in letters.items()
            if number != unknown or letter in tokens
        }
        # Tokens of many records take less memory, and so less time.
        width = np.min_scalar_type(-1 - max(tokens.values()))
        table = np.full(max(128, *(point + 1 for point in points)) + 1, -1, width)
        table[list(points)] = list(points.values())
    else:
        words = {}
    spelled_unknown = frozenset(token for token, number in tokens.items() if number == unknown)
    # Without words, a pattern that is found nowhere.
    pattern = re.compile("|".join(map(re.escape, words)) or "(?!)")
    return Vocabulary(
        before,
        after,
        unknown,
        leaves_out,
        spelled_unknown,
        encode,
        find_offsets,
        table,
        words,
        pattern,
    )

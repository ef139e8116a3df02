"""Random parameters of packers, lengths and IDs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from reference import find_limit, round_up


@dataclass(frozen=True)
class Case:
    """A packer's parameters and lengths to pack with them."""

    lengths: list[int]
    max_tokens_per_batch: int
    max_sequence_length: int
    special_tokens: int
    max_sequences_per_batch: int | None
    multiple_of: int = 1

    @property
    def limit(self) -> int:
        """The residues kept of a sequence."""
        return find_limit(**self.parameters)

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "max_tokens_per_batch": self.max_tokens_per_batch,
            "max_sequence_length": self.max_sequence_length,
            "special_tokens": self.special_tokens,
            "max_sequences_per_batch": self.max_sequences_per_batch,
            "multiple_of": self.multiple_of,
        }


@st.composite
def cases(
    draw: st.DrawFn, max_size: int = 60, multiples: Sequence[int] = (1, 1, 1, 2, 5, 8, 16)
) -> Case:
    """Odd budgets, many ties, tiny and huge sizes, with and without limits on batches."""
    special_tokens = draw(st.sampled_from([0, 0, 1, 2, 2, 7]))
    multiple_of = draw(st.sampled_from(multiples))
    budget = round_up(special_tokens + 1, multiple_of) + draw(
        st.one_of(
            st.integers(0, 30),
            st.integers(0, 5000),
            st.integers(2**20, 2**20 + 1000),
            st.integers(2**50, 2**56),
        )
    )
    longest = draw(st.one_of(st.integers(1, 40), st.just(1022), st.just(2**62)))
    scale = min(budget, longest)
    length = draw(
        st.sampled_from(
            [
                st.integers(0, 2),
                st.integers(0, 12),
                st.integers(0, scale + 3),
                st.integers(max(0, scale // 3 - 2), scale // 2 + 2),
                st.sampled_from([0, 1, scale // 3, scale // 3 + 1, scale // 2, scale]),
                st.integers(0, 2**40),
            ]
        )
    )
    lengths = draw(st.lists(length, max_size=max_size))
    cap = draw(st.one_of(st.none(), st.integers(1, 6)))
    return Case(lengths, budget, longest, special_tokens, cap, multiple_of)


def texts() -> st.SearchStrategy[str]:
    """Strings of every width that Python stores, lone surrogates and NUL included."""
    alphabets = [
        st.sampled_from("AB"),
        st.sampled_from("A\0\x7f\x80\xff"),
        st.characters(max_codepoint=0xFF),
        st.sampled_from("a\u0100\ud800\udfff\ue000\uffff\U00010000\U0010ffff\0"),
        st.characters(),
    ]
    short = st.one_of([st.text(alphabet, max_size=6) for alphabet in alphabets])
    prefix = st.sampled_from(["", "NC_004718.3_", "x" * 40, "x" * 80, "\U0001f9ec" * 5])
    return st.builds(str.__add__, prefix, short)

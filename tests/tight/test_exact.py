"""The parameter method="tight" on few sequences, against the fewest batches there can be."""

from __future__ import annotations

import pickle
from functools import cache

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import check_plan

from virnucpro import kernel
from virnucpro.data import GreedyPacker, Layout
from virnucpro.kernel import column_generation


def fewest_batches(tokens: list[int], budget: int, most: int) -> int:
    """Return the fewest batches, by a search through all ways to add one sequence after another."""

    @cache
    def fits(index: int, batches: tuple[tuple[int, int], ...]) -> bool:
        # Batches are known by the tokens and the places that are free, in order.
        if index == len(sizes):
            return True
        return any(
            fits(index + 1, tuple(sorted((*batches[:i], (free - size, places - 1), *rest))))
            for i, (free, places) in enumerate(batches)
            for size, rest in [(sizes[index], batches[i + 1 :])]
            if size <= free and places > 0 and batches[i] not in batches[:i]
        )

    sizes = sorted(tokens, reverse=True)
    number = 0
    while not fits(0, ((budget, most),) * number):
        fits.cache_clear()
        number += 1
    return number


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[GreedyPacker, list[int]]:
    """Few sequences of few sizes, some of which have no tokens."""
    special_tokens, multiple_of = draw(st.sampled_from([(0, 1), (0, 1), (2, 1), (0, 4), (1, 3)]))
    budget = draw(st.integers(12, 40))
    longest = budget // multiple_of * multiple_of - special_tokens
    most = draw(st.none() | st.integers(1, 5))
    length = draw(
        st.sampled_from(
            [
                st.integers(0, longest),
                st.integers(longest // 5, longest // 2),
                st.integers(longest // 4, longest // 3 + 1),
                st.sampled_from([0, longest // 4, longest // 3, longest // 2, longest]),
            ]
        )
    )
    sizes = draw(st.lists(length, min_size=1, max_size=5, unique=True))
    number = st.integers(1, 3) | st.integers(1, 12 // len(sizes))
    lengths = [size for size in sizes for _ in range(draw(number))]
    packer = GreedyPacker(
        budget,
        longest,
        special_tokens=special_tokens,
        max_sequences_per_batch=most,
        multiple_of=multiple_of,
        method="tight",
    )
    return packer, draw(st.permutations(lengths))


def check(packer: GreedyPacker, counts: kernel.TokenCounts, layout: kernel.Layout) -> None:
    """Check a layout, and its bound, against all others."""
    # The kernel validates what it reads from a pickle.
    assert pickle.loads(pickle.dumps(Layout(layout, packer.limits))).core == layout
    tokens = np.repeat(counts.tokens, counts.sequences).tolist()
    fewest = fewest_batches(tokens, counts.max_tokens_per_batch, counts.max_sequences_per_batch)
    first_fit = kernel.first_fit_decreasing(counts)
    assert kernel.lower_bound(first_fit) <= kernel.lower_bound(layout) <= fewest
    assert fewest <= layout.num_batches <= first_fit.num_batches


@given(small_cases())
def test_few_sequences(case: tuple[GreedyPacker, list[int]]) -> None:
    packer, lengths = case
    counts = packer.count(lengths).core
    layout = column_generation.lay_out(counts)
    check(packer, counts, layout)
    assert layout.num_batches <= kernel.patterns_with_reservation(counts).num_batches
    check_plan(packer.pack_lengths(lengths), lengths, packer)


@given(small_cases())
def test_few_sequences_by_the_solver_alone(case: tuple[GreedyPacker, list[int]]) -> None:
    packer, lengths = case
    counts = packer.count(lengths).core
    assume(column_generation.ColumnGeneration(counts).required().any())
    first_fit = kernel.first_fit_decreasing(counts)
    check(packer, counts, column_generation.ColumnGeneration(counts).improve(first_fit))


@given(small_cases(), st.integers(1, 4), st.integers(1, 12))
def test_few_sequences_with_joint_sizes(
    case: tuple[GreedyPacker, list[int]], sizes: int, unit: int
) -> None:
    packer, lengths = case
    counts = packer.count(lengths).core
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            column_generation,
            "coarsen",
            lambda counts, round_down: kernel.coarsen(counts, unit, sizes, round_down),
        )
        # No layout is good enough.
        patch.setattr(column_generation, "SMALL_GAP", -1.0)
        check(packer, counts, column_generation.pack_coarsely(kernel.first_fit_decreasing(counts)))

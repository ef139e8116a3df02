"""Classical bin-packing instances, and small ones with exact optima."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import reference
from exact import optimum
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import triplets, uniform

from virnucpro.data import GreedyPacker, PackingPlan

SEEDS = range(4)


def pack(sizes: list[int], budget: int, most: int | None = None) -> tuple[PackingPlan, PackingPlan]:
    """Plans by First-Fit Decreasing and by column generation."""
    first_fit, tight = (
        GreedyPacker(
            budget, budget, special_tokens=0, max_sequences_per_batch=most, method=method
        ).pack_lengths(sizes)
        for method in ("ffd", "tight")
    )
    return first_fit, tight


def check_order(first_fit: PackingPlan, tight: PackingPlan, best: int) -> None:
    """Bounds, the optimum and the plans, in that order."""
    assert first_fit.lower_bound <= tight.lower_bound <= best <= len(tight) <= len(first_fit)


def within_worst_case(num_batches: int, best: int) -> bool:
    """Whether FFD is as good as proven, 11/9 of the optimum and 6/9.

    G. Dósa, The Tight Bound of First Fit Decreasing Bin-Packing Algorithm Is
    FFD(I) <= 11/9 OPT(I) + 6/9, ESCAPE 2007.
    """
    return 9 * num_batches <= 11 * best + 6


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("number", [60, 120, 249, 501])
def test_triplets(number: int, seed: int) -> None:
    sizes = triplets(number, seed)
    first_fit, tight = pack(sizes, 1000)
    assert [rows.tolist() for rows in first_fit] == reference.first_fit_decreasing(
        sizes, 1000, 1000, 0
    )
    check_order(first_fit, tight, number // 3)
    assert first_fit.lower_bound == number // 3
    assert len(tight) <= number // 3 + 1 < len(first_fit)
    assert within_worst_case(len(first_fit), number // 3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("number", [120, 250, 500, 1000])
def test_uniform(number: int, seed: int) -> None:
    sizes = uniform(number, seed)
    first_fit, tight = pack(sizes, 150)
    assert [rows.tolist() for rows in first_fit] == reference.first_fit_decreasing(
        sizes, 150, 150, 0
    )
    check_order(first_fit, tight, len(tight))
    # So the optimum is one of two.
    assert len(tight) <= tight.lower_bound + 1
    assert within_worst_case(len(first_fit), len(tight))


def random_sizes(number: int, seed: int) -> list[int]:
    """Sizes of which many fit a batch of 150, with ties."""
    sizes: list[int] = np.random.default_rng(seed).integers(1, 80, number).tolist()
    return sizes


@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize(
    ("make", "budget"), [(uniform, 150), (uniform, 111), (triplets, 1000), (random_sizes, 150)]
)
def test_exact_optimum(
    make: Callable[[int, int], list[int]], budget: int, most: int | None
) -> None:
    above = []
    for seed in range(12):
        sizes = make(10 + seed, seed)
        best = optimum(sizes, budget, most)
        first_fit, tight = pack(sizes, budget, most)
        check_order(first_fit, tight, best)
        assert tight.proven_optimal == (len(tight) == tight.lower_bound)
        assert most is not None or within_worst_case(len(first_fit), best)
        if make is triplets:
            assert best == len(sizes) // 3
        above.append(len(first_fit) - best)
    # FFD is at some optima, and never at those of triplets.
    assert (min(above) > 0) == (make is triplets)


@settings(max_examples=300)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=11),
    st.integers(30, 60),
    st.one_of(st.none(), st.integers(1, 4)),
)
def test_small_counts(sizes: list[int], budget: int, most: int | None) -> None:
    first_fit, tight = pack(sizes, budget, most)
    packer = GreedyPacker(budget, budget, special_tokens=0, max_sequences_per_batch=most)
    reference.check_plan(tight, sizes, packer)
    check_order(first_fit, tight, optimum(sizes, budget, most))
    assert tight.proven_optimal == (len(tight) == tight.lower_bound)

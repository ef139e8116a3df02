"""Classical bin-packing instances, by the recipes of E. Falkenauer (A Hybrid Grouping Genetic
Algorithm for Bin Packing, Journal of Heuristics 2, 1996).
"""

from __future__ import annotations

import numpy as np


def uniform(number: int, seed: int) -> list[int]:
    """Sizes in [20, 100] for batches of 150."""
    sizes: list[int] = np.random.default_rng(seed).integers(20, 101, number).tolist()
    return sizes


def triplets(number: int, seed: int) -> list[int]:
    """Sizes of which each batch of 1,000 takes exactly three, so that `number` / 3 are enough."""
    random = np.random.default_rng(seed)
    sizes: list[int] = []
    while len(sizes) < number:
        first = int(random.integers(380, 491))
        second = int(random.integers(250, (1000 - first) // 2 + 1))
        sizes += [first, second, 1000 - first - second]
    return sizes

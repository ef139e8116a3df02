"""Classical bin-packing instances, by the recipes of E. Falkenauer (A Hybrid Grouping Genetic
Algorithm for Bin Packing, Journal of Heuristics 2, 1996), and exact optima.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from ortools.sat.python import cp_model


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


def optimum(sizes: Sequence[int], budget: int, most: int | None = None) -> int:
    """The fewest batches for some dozen sequences, proven by CP-SAT.

    A batch is a way through a graph of what it may hold, largest sequence first; the variables are
    how many batches go along each arc (J. M. Valério de Carvalho, Exact Solution of Bin-Packing
    Problems Using Column Generation and Branch-and-Bound, Annals of Operations Research 86, 1999).
    """
    model = cp_model.CpModel()
    empty = (0, 0)
    # What a batch may hold: tokens and sequences.
    reached = {empty: True}
    entering: dict[tuple[int, int], list[cp_model.IntVar]] = defaultdict(list)
    leaving: dict[tuple[int, int], list[cp_model.IntVar]] = defaultdict(list)
    for size, number in sorted(Counter(sizes).items(), reverse=True):
        arcs = {}
        begins = list(reached)
        for _ in range(number):
            ends = []
            for tokens, sequences in begins:
                end = (tokens + size, sequences + 1)
                if end[0] <= budget and end[1] <= (most or len(sizes)):
                    ends.append(end)
                    if end not in arcs:
                        arcs[end] = model.new_int_var(0, number, "")
                        entering[end].append(arcs[end])
                        leaving[tokens, sequences].append(arcs[end])
            reached.update(dict.fromkeys(ends, True))
            begins = ends
        model.add(sum(arcs.values()) >= number)
    for state, arcs_in in entering.items():
        model.add(sum(arcs_in) >= sum(leaving[state]))
    model.minimize(sum(leaving[empty]))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.linearization_level = 2
    assert solver.solve(model) == cp_model.OPTIMAL
    return int(solver.objective_value)

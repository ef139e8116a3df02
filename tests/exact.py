"""The fewest batches there can be, by a solver that knows nothing of packing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from ortools.sat.python import cp_model


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

"""The restricted master problem of column generation, as a linear or an integer program."""

from __future__ import annotations

import highspy
import numpy as np
from numpy.typing import NDArray

from virnucpro.kernel.patterns import Pattern

# Limit on simplex iterations times rows, which corresponds to about ten seconds.
MAX_TOTAL_PIVOTS = 2**27
# Limits on an integer program: patterns, and nodes of the branch-and-bound tree, of which the
# first may take seconds.
MAX_COLUMNS = 1500
MAX_NODES = 100


class RestrictedMaster(highspy.Highs):
    """The restricted master problem: one row per size, one column per pattern added."""

    def __init__(self, num_sizes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.setOptionValue("threads", 1)
        self.setOptionValue("parallel", "off")
        self.setOptionValue("solver", "simplex")
        self.setOptionValue("presolve", "off")
        self.scale = 1.0
        self.num_sizes = num_sizes
        self.pivots = 0
        empty = np.zeros(0, np.int32)
        upper = np.full(num_sizes, highspy.kHighsInf)
        self.addRows(num_sizes, np.zeros(num_sizes), upper, 0, empty, empty, np.zeros(0))

    def enableCallbacks(self) -> None:  # noqa: N802
        """Turn output off; this is the first method that the constructor of Highs calls."""
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()  # type: ignore[no-untyped-call]

    def add_patterns(self, patterns: list[Pattern]) -> None:
        """Add one column per pattern."""
        number = len(patterns)
        ends = np.cumsum([len(sizes) for sizes, _ in patterns])
        starts = np.append(0, ends[:-1]).astype(np.int32)
        sizes = np.concatenate([sizes for sizes, _ in patterns]).astype(np.int32)
        sequences = np.concatenate([sequences for _, sequences in patterns]).astype(np.float64)
        upper = np.full(number, highspy.kHighsInf)
        self.addCols(
            number, np.ones(number), np.zeros(number), upper, ends[-1], starts, sizes, sequences
        )

    def set_bounds(self, sequences: NDArray[np.int64], is_usable: list[bool]) -> None:
        """Set the required number of sequences of each size, and which patterns may be used."""
        # Keep the right-hand sides in a range that suits the tolerances of the solver.
        self.scale = min(1.0, 1e6 / sequences.sum())
        rows = np.arange(len(sequences), dtype=np.int32)
        upper = np.full(len(rows), highspy.kHighsInf)
        self.changeRowsBounds(  # type: ignore[attr-defined]
            len(rows), rows, sequences * self.scale, upper
        )
        columns = np.arange(len(is_usable), dtype=np.int32)
        upper = np.where(is_usable, highspy.kHighsInf, 0.0)
        self.changeColsBounds(len(columns), columns, np.zeros(len(columns)), upper)

    def solve_lp(self) -> tuple[float, NDArray[np.float64], NDArray[np.float64]] | None:
        """Return the number of batches, the batches of each pattern, and the dual values.

        Returns None if the limit on iterations is reached or the solver fails.
        """
        limit = max(0, MAX_TOTAL_PIVOTS - self.pivots) // self.num_sizes
        self.setOptionValue("simplex_iteration_limit", limit)
        self.run_with_any_threads()
        self.pivots += self.getInfo().simplex_iteration_count * self.num_sizes
        if self.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution = self.getSolution()
        num_batches = self.getInfo().objective_function_value / self.scale
        # Values may be negative within the tolerance of the solver.
        amounts = np.maximum(0.0, solution.col_value) / self.scale
        return num_batches, amounts, np.maximum(0.0, solution.row_dual)

    def run_with_any_threads(self) -> None:
        """Run the solver, with the number of threads that another one has set if it must."""
        if self.run() == highspy.HighsStatus.kError:
            # All solvers in a process share a thread pool; another solver has set its size.
            self.setOptionValue("threads", 0)
            self.run()

    def solve_mip(
        self, sequences: NDArray[np.int64], start: NDArray[np.int64], bound: int
    ) -> NDArray[np.int64]:
        """Return whole numbers of batches of each pattern, at best as few as the bound.

        Args:
            sequences: The required number of sequences of each size.
            start: A solution to start with, which is returned if no better one is found.
            bound: A lower bound on the number of batches.
        """
        number = len(start)
        self.set_bounds(sequences, [True] * number)
        # A program of whole numbers cannot be scaled.
        if self.scale < 1:
            return start
        columns = np.arange(number, dtype=np.int32)
        integer = np.full(number, highspy.HighsVarType.kInteger)
        self.changeColsIntegrality(number, columns, integer)
        self.setOptionValue("presolve", "choose")
        self.setOptionValue("mip_max_nodes", MAX_NODES)
        # Numbers of batches are whole.
        self.setOptionValue("mip_abs_gap", 0.99)
        self.setOptionValue("mip_rel_gap", 0.0)
        self.setOptionValue("objective_target", float(bound))
        solution = highspy.HighsSolution()
        solution.col_value = start.astype(np.float64).tolist()
        self.setSolution(solution)
        self.run_with_any_threads()
        found = np.rint(self.getSolution().col_value).astype(np.int64)
        return found if len(found) == number and found.sum() < start.sum() else start

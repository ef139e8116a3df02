"""Layouts by column generation, with a proven lower bound on the number of batches.

Packing counted sequences is the cutting-stock problem. A pattern is a way to fill a batch: a number
of sequences of each size. The linear program, the master problem, has one row per size and one
column per pattern:

    minimize    the number of batches: sum of x[p] over patterns p
    subject to  sum of p[i] * x[p] >= sequences[i] for each size i,  x >= 0

Only patterns of negative reduced cost are generated (P. C. Gilmore and R. E. Gomory, A Linear
Programming Approach to the Cutting-Stock Problem, Operations Research 9, 1961). The restricted
master problem, with the patterns generated so far, gives a dual value for each size. The pricing
problem, a knapsack problem, finds the patterns of lowest reduced cost: 1 minus the sum of the dual
values of their sequences.

Any dual values prove a lower bound: if no batch has a total dual value above w, then the number of
batches is at least the total dual value of all sequences divided by w (A. A. Farley, A Note on
Bounding a Class of Linear Programming Problems, Including Cutting Stock Problems, Operations
Research 38, 1990). Dual values are scaled to integers first, so the bound is exact regardless of
the solver's tolerance.

To obtain whole batches, x is rounded down, and the remaining sequences are packed in the same way.
"""

from __future__ import annotations

import itertools
import logging
import math
import operator

import highspy
import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.kernel import reservation

logger = logging.getLogger(__name__)

# Limits for one pricing problem, and for the rows of the master problem.
MAX_STEPS = 2**27
MAX_SIZES = 4096
# Limits on the total work: steps of pricing, and simplex iterations times rows. Each corresponds to
# about half a minute.
MAX_TOTAL_STEPS = 2**35
MAX_TOTAL_PIVOTS = 2**28
# Rounds of pricing for all sequences, and for those that remain after rounding.
MAX_ROUNDS = 500
MAX_ROUNDS_REMAINING = 30
MAX_ROUNDINGS = 100
# Patterns per round of pricing.
MAX_PATTERNS = 50
# Pricing uses dual values between those of the master problem and the stability center, the dual
# values of the best bound (P. Wentges, Weighted Dantzig-Wolfe Decomposition for Linear
# Mixed-Integer Programming, International Transactions in Operational Research 4, 1997). This is
# the weight of the latter.
SMOOTHING = 0.6

# Sizes, as indices into the counts, and the number of sequences of each.
Pattern = tuple[NDArray[np.int64], NDArray[np.int64]]


def lay_out(counts: kernel.TokenCounts) -> kernel.Layout:
    """Return a layout with its bound, at most as many batches as either method without a solver.

    These are First-Fit Decreasing and patterns with reservation.
    """
    start = kernel.first_fit_decreasing(counts)
    bound = kernel.lower_bound(start)
    if start.num_batches > bound:
        reserved = reservation.lay_out(counts, counts.max_sequences_per_batch)
        start = min(start, reserved, key=operator.attrgetter("num_batches"))
    if start.num_batches == bound:
        return start
    sizes = np.count_nonzero(counts.tokens)
    try:
        steps = kernel.pricing_steps(counts)
    except OverflowError:
        steps = 2**63
    if sizes > MAX_SIZES or steps > MAX_STEPS:
        # Within one percent of the bound, little is lost.
        logger.log(
            logging.INFO if start.num_batches <= 1.01 * bound else logging.WARNING,
            "%s sizes, or %s steps per pricing problem, are too many for column generation (at "
            "most %s and %s): packed without, in %s batches, at least %s are needed",
            f"{sizes:,}",
            f"{steps:,}",
            f"{MAX_SIZES:,}",
            f"{MAX_STEPS:,}",
            f"{start.num_batches:,}",
            f"{bound:,}",
        )
        return start
    return ColumnGeneration(start).run()


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
        if self.run() == highspy.HighsStatus.kError:
            # All solvers in a process share a thread pool; another solver has set its size.
            self.setOptionValue("threads", 0)
            self.run()
        self.pivots += self.getInfo().simplex_iteration_count * self.num_sizes
        if self.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution = self.getSolution()
        num_batches = self.getInfo().objective_function_value / self.scale
        # Values may be negative within the tolerance of the solver.
        amounts = np.maximum(0.0, solution.col_value) / self.scale
        return num_batches, amounts, np.maximum(0.0, solution.row_dual)


class ColumnGeneration:
    """The patterns generated so far, and the best layout and bound found with them."""

    def __init__(self, start: kernel.Layout) -> None:
        self.counts = start.counts
        self.best = start
        self.bound = kernel.lower_bound(start)
        self.patterns: list[Pattern] = []
        self.known: set[tuple[bytes, bytes]] = set()
        self.master = RestrictedMaster(len(self.counts.tokens))
        self.steps = 0
        # Whether the total work has reached its limit, or the solver failed.
        self.limit_reached = False

    def run(self) -> kernel.Layout:
        """Return the best layout found."""
        # Sequences without tokens fit in any batch with a free slot.
        remaining = np.where(self.counts.tokens > 0, self.counts.sequences, 0)
        num_batches: list[int] = []
        for rounding in range(MAX_ROUNDINGS):
            self.add(self.first_fit_patterns(remaining))
            is_usable = [bool((n <= remaining[sizes]).all()) for sizes, n in self.patterns]
            self.master.set_bounds(remaining, is_usable)
            is_first = rounding == 0
            max_rounds = MAX_ROUNDS if is_first else MAX_ROUNDS_REMAINING
            amounts = self.generate(remaining, max_rounds, is_first)
            num_batches += [0] * (len(self.patterns) - len(num_batches))
            self.round_down(amounts, num_batches, remaining)
            layout = self.layout(num_batches)
            if layout.num_batches < self.best.num_batches:
                self.best = layout
            logger.info(
                "%s batches, lower bound %s; %s sequences remaining",
                f"{self.best.num_batches:,}",
                f"{self.bound:,}",
                f"{remaining.sum():,}",
            )
            if self.best.num_batches == self.bound or self.limit_reached or not remaining.any():
                break
        if self.limit_reached:
            logger.warning(
                "Stopped early, at the limit on work or because the solver failed: %s batches, "
                "lower bound %s",
                f"{self.best.num_batches:,}",
                f"{self.bound:,}",
            )
        return kernel.with_bound(self.best, self.bound)

    def add(self, patterns: list[Pattern]) -> bool:
        """Add patterns to the restricted master problem; return whether any is new."""
        new = []
        for sizes, sequences in patterns:
            key = (sizes.tobytes(), sequences.tobytes())
            if key not in self.known:
                self.known.add(key)
                new.append((sizes, sequences))
        if new:
            self.master.add_patterns(new)
            self.patterns += new
        return bool(new)

    def subset(self, remaining: NDArray[np.int64]) -> tuple[kernel.TokenCounts, NDArray[np.int64]]:
        """Return the counts of the remaining sequences, and the indices of their sizes."""
        return kernel.subset(self.counts, remaining), np.flatnonzero(remaining)

    def first_fit_patterns(self, remaining: NDArray[np.int64]) -> list[Pattern]:
        """Return the patterns of First-Fit Decreasing, which make the problem feasible."""
        counts, sizes = self.subset(remaining)
        arrays, _ = kernel.patterns_of(kernel.first_fit_decreasing(counts))
        return split_patterns(arrays, sizes)

    def generate(
        self, remaining: NDArray[np.int64], max_rounds: int, is_first: bool
    ) -> NDArray[np.float64]:
        """Generate patterns until none has negative reduced cost.

        Returns the (fractional) number of batches of each pattern.
        """
        counts, sizes = self.subset(remaining)
        steps = kernel.pricing_steps(counts)
        bound = 0
        # Start with the dual values that prove the bound by tokens, which is often the optimum.
        stability_center = counts.tokens / counts.max_tokens_per_batch
        smoothing = 1.0
        amounts = np.zeros(len(self.patterns))
        for number in range(max_rounds):
            solution = self.master.solve_lp()
            if solution is None or self.steps > MAX_TOTAL_STEPS:
                self.limit_reached = True
                break
            num_batches, amounts, duals = solution
            duals = duals[sizes]
            self.steps += steps
            smoothed = smoothing * stability_center + (1 - smoothing) * duals
            int_duals, _ = scale_duals(smoothed, counts)
            first_size = number * 97 % len(sizes)
            best_value, found = kernel.price_patterns(counts, int_duals, first_size, MAX_PATTERNS)
            total = sum(map(operator.mul, counts.sequences.tolist(), int_duals.tolist()))
            proven = -(-total // best_value)
            if proven > bound:
                bound, stability_center = proven, smoothed
            if is_first:
                self.bound = max(self.bound, bound)
                if number % 20 == 19:
                    logger.info(
                        "Round %d: %.1f batches, lower bound %s",
                        number + 1,
                        num_batches,
                        f"{bound:,}",
                    )
            if math.ceil(num_batches * (1 - 1e-9) - 1e-6) <= bound:
                break
            int_duals, cost = scale_duals(duals, counts)
            of_negative_reduced_cost = [
                (sizes[pattern], sequences)
                for pattern, sequences in split_patterns(found, np.arange(len(sizes)))
                if int((int_duals[pattern] * sequences).sum()) > cost * (1 + 1e-9)
            ]
            if self.add(of_negative_reduced_cost):
                smoothing = SMOOTHING
            elif smoothing == 0:
                break
            else:
                # Smoothed duals gave no pattern: price with those of the master problem.
                smoothing = 0.0
        return amounts

    def round_down(
        self,
        amounts: NDArray[np.float64],
        num_batches: list[int],
        remaining: NDArray[np.int64],
    ) -> None:
        """Take whole batches of patterns, or one batch of each of the top tenth if there are none.

        Updates `num_batches` and `remaining`.
        """
        order = np.argsort(-amounts, kind="stable").tolist()

        def take(column: int, number: int) -> None:
            sizes, sequences = self.patterns[column]
            taken = min(number, int((remaining[sizes] // sequences).min()))
            remaining[sizes] -= taken * sequences
            num_batches[column] += taken

        if amounts[order[0]] >= 1 - 1e-9:
            for column in order:
                take(column, int(amounts[column] + 1e-9))
        else:
            for column in order[: max(1, int((amounts > 1e-6).sum()) // 10)]:
                take(column, 1)

    def layout(self, num_batches: list[int]) -> kernel.Layout:
        """Return the layout with these batches of each pattern; first fit adds all others."""
        columns = np.flatnonzero(num_batches).tolist()
        chosen = [self.patterns[column] for column in columns]
        offsets = np.cumsum([0, *(len(sizes) for sizes, _ in chosen)])
        sizes, sequences = (
            np.concatenate([pattern[i] for pattern in chosen] or [np.zeros(0, np.int64)])
            for i in (0, 1)
        )
        numbers = np.array([num_batches[column] for column in columns], np.int64)
        return kernel.layout_from_patterns(self.counts, offsets, sizes, sequences, numbers)


def scale_duals(
    duals: NDArray[np.float64], counts: kernel.TokenCounts
) -> tuple[NDArray[np.int64], int]:
    """Return dual values as integers, and the cost of a batch on the same scale."""
    # On this scale, no batch has a total dual value of 2**53 or more.
    largest = float((duals / counts.tokens).max()) * counts.max_tokens_per_batch
    scale = 2 ** (51 - max(0, math.frexp(largest)[1]))
    return np.floor(duals * scale).astype(np.int64), scale


def split_patterns(
    arrays: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], sizes: NDArray[np.int64]
) -> list[Pattern]:
    """Split concatenated patterns, and look up their sizes in `sizes`."""
    offsets, indices, sequences = arrays
    ranges = itertools.pairwise(offsets.tolist())
    return [(sizes[indices[begin:end]], sequences[begin:end]) for begin, end in ranges]

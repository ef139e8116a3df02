"""Layouts closer to the optimum than First-Fit Decreasing, and the proof of how close they are.

Packing counted sequences is the cutting-stock problem. Its linear program has a row for each size
and a column for each pattern, a way to fill a batch:

    minimize    the number of batches: sum of x[p] over patterns p
    subject to  sum of p[i] * x[p] >= sequences[i] for each size i,  x >= 0

Only columns that pay are ever made (P. C. Gilmore and R. E. Gomory, A Linear Programming Approach
to the Cutting-Stock Problem, Operations Research 9, 1961): the program's dual values tell what a
sequence of each size is worth, and a knapsack problem finds patterns that are worth more than the
one batch they cost. Any such values prove a bound: where no batch is worth more than w, all
sequences together need at least their worth divided by w (A. A. Farley, A Note on Bounding a Class
of Linear Programming Problems, Including Cutting Stock Problems, Operations Research 38, 1990).
Values are rounded to whole numbers first, so that the bound is exact whatever the linear program's
solver does.

Whole batches come from rounding x down, and doing the same with the sequences that are left, until
none is.
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

logger = logging.getLogger(__name__)

# What one knapsack problem may take, and the rows of the linear program.
MOST_STEPS = 2**27
MOST_SIZES = 4096
# What all of them may take together: steps, and rows times iterations of the simplex method; each
# is about half a minute.
MOST_STEPS_IN_ALL = 2**35
MOST_PIVOTS_IN_ALL = 2**28
# Rounds of patterns for all sequences, and for those that are left after rounding.
MOST_ROUNDS = 500
MOST_ROUNDS_LEFT = 30
# How often to round, and patterns to make a round.
MOST_ROUNDINGS = 100
PATTERNS = 50
# Dual values are taken between the new ones and those of the best bound: they jump about less
# (P. Wentges, Weighted Dantzig-Wolfe Decomposition, 1997).
STEADINESS = 0.6

# Sizes, and how many sequences of each.
Pattern = tuple[NDArray[np.int64], NDArray[np.int64]]


def lay_out(counts: kernel.TokenCounts, budget: int) -> kernel.Layout:
    """Return a layout with at most as many batches as First-Fit Decreasing makes, and its bound."""
    first_fit = kernel.first_fit_decreasing(counts)
    if first_fit.num_batches == kernel.lower_bound(first_fit):
        return first_fit
    sizes = np.count_nonzero(counts.tokens)
    try:
        steps = kernel.knapsack_steps(counts)
    except OverflowError:
        steps = 2**63
    if sizes > MOST_SIZES or steps > MOST_STEPS:
        logger.warning(
            "%s sizes, or %s steps a knapsack problem, are too many for method='tight' (at most %s "
            "and %s): packed by First-Fit Decreasing",
            f"{sizes:,}",
            f"{steps:,}",
            f"{MOST_SIZES:,}",
            f"{MOST_STEPS:,}",
        )
        return first_fit
    return Search(first_fit, budget).run()


class Program(highspy.Highs):
    """The linear program: a row for each size, and no column yet."""

    def __init__(self, num_sizes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.setOptionValue("threads", 1)
        self.setOptionValue("parallel", "off")
        self.setOptionValue("solver", "simplex")
        self.setOptionValue("presolve", "off")
        self.scale = 1.0
        self.num_sizes = num_sizes
        self.pivots = 0
        nothing = np.zeros(0, np.int32)
        endless = np.full(num_sizes, highspy.kHighsInf)
        self.addRows(num_sizes, np.zeros(num_sizes), endless, 0, nothing, nothing, np.zeros(0))

    def enableCallbacks(self) -> None:  # noqa: N802
        """Be silent from the first call on, which is this one."""
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()  # type: ignore[no-untyped-call]

    def add_patterns(self, patterns: list[Pattern]) -> None:
        """Add columns."""
        number = len(patterns)
        ends = np.cumsum([len(sizes) for sizes, _ in patterns])
        starts = np.append(0, ends[:-1]).astype(np.int32)
        sizes = np.concatenate([sizes for sizes, _ in patterns]).astype(np.int32)
        sequences = np.concatenate([sequences for _, sequences in patterns]).astype(np.float64)
        endless = np.full(number, highspy.kHighsInf)
        self.addCols(
            number, np.ones(number), np.zeros(number), endless, ends[-1], starts, sizes, sequences
        )

    def bind(self, sequences: NDArray[np.int64], is_usable: list[bool]) -> None:
        """Ask for so many sequences of each size, by the patterns that are usable."""
        # The solver's tolerances are for numbers like these.
        self.scale = min(1.0, 1e6 / sequences.sum())
        rows = np.arange(len(sequences), dtype=np.int32)
        endless = np.full(len(rows), highspy.kHighsInf)
        self.changeRowsBounds(  # type: ignore[attr-defined]
            len(rows), rows, sequences * self.scale, endless
        )
        columns = np.arange(len(is_usable), dtype=np.int32)
        upper = np.where(is_usable, highspy.kHighsInf, 0.0)
        self.changeColsBounds(len(columns), columns, np.zeros(len(columns)), upper)

    def optimum(self) -> tuple[float, NDArray[np.float64], NDArray[np.float64]] | None:
        """Return the number of batches, those of each pattern, and what a sequence is worth.

        None where that takes too long or the solver fails.
        """
        left = max(0, MOST_PIVOTS_IN_ALL - self.pivots) // self.num_sizes
        self.setOptionValue("simplex_iteration_limit", left)
        if self.run() == highspy.HighsStatus.kError:
            # All solvers of a process share their threads, and another one has asked for more.
            self.setOptionValue("threads", 0)
            self.run()
        self.pivots += self.getInfo().simplex_iteration_count * self.num_sizes
        if self.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution = self.getSolution()
        batches = self.getInfo().objective_function_value / self.scale
        # Within the solver's tolerance they may be below zero.
        amounts = np.maximum(0.0, solution.col_value) / self.scale
        return batches, amounts, np.maximum(0.0, solution.row_dual)


class Search:
    """The patterns made so far, and the best that they gave."""

    def __init__(self, first_fit: kernel.Layout, budget: int) -> None:
        self.counts = first_fit.counts
        self.budget = budget
        self.best = first_fit
        self.bound = kernel.lower_bound(first_fit)
        self.patterns: list[Pattern] = []
        self.known: set[tuple[bytes, bytes]] = set()
        self.program = Program(len(self.counts.tokens))
        self.steps = 0
        # Whether there has been as much work as there may be, or the solver failed.
        self.is_tired = False

    def run(self) -> kernel.Layout:
        """Return the best layout that is found."""
        # Sequences without tokens go where there is a slot.
        left = np.where(self.counts.tokens > 0, self.counts.sequences, 0)
        batches: list[int] = []
        for number in range(MOST_ROUNDINGS):
            self.add(self.first_fit_patterns(left))
            self.program.bind(left, [bool((n <= left[i]).all()) for i, n in self.patterns])
            is_whole = number == 0
            amounts = self.generate(left, MOST_ROUNDS if is_whole else MOST_ROUNDS_LEFT, is_whole)
            batches += [0] * (len(self.patterns) - len(batches))
            self.round_down(amounts, batches, left)
            layout = self.layout_of(batches)
            if layout.num_batches < self.best.num_batches:
                self.best = layout
            logger.info(
                "%s batches, at least %s; %s sequences to round",
                f"{self.best.num_batches:,}",
                f"{self.bound:,}",
                f"{left.sum():,}",
            )
            if self.best.num_batches == self.bound or self.is_tired or not left.any():
                break
        if self.is_tired:
            logger.warning(
                "Stopped early, at the limit of work or by the solver: %s batches, at least %s",
                f"{self.best.num_batches:,}",
                f"{self.bound:,}",
            )
        return kernel.with_bound(self.best, self.bound)

    def add(self, patterns: list[Pattern]) -> bool:
        """Add the patterns that are new; whether there were any."""
        new = []
        for sizes, sequences in patterns:
            key = (sizes.tobytes(), sequences.tobytes())
            if key not in self.known:
                self.known.add(key)
                new.append((sizes, sequences))
        if new:
            self.program.add_patterns(new)
            self.patterns += new
        return bool(new)

    def part(self, left: NDArray[np.int64]) -> tuple[kernel.TokenCounts, NDArray[np.int64]]:
        """Return the counts of some of the sequences, and which sizes those are."""
        sizes = np.flatnonzero(left)
        return kernel.subset(self.counts, left), sizes

    def first_fit_patterns(self, left: NDArray[np.int64]) -> list[Pattern]:
        """Return the patterns of First-Fit Decreasing: with them the program has a solution."""
        part, sizes = self.part(left)
        return patterns_in(kernel.patterns_of(kernel.first_fit_decreasing(part))[0], sizes)

    def generate(
        self, left: NDArray[np.int64], most_rounds: int, is_whole: bool
    ) -> NDArray[np.float64]:
        """Make patterns until none pays any more; return the batches of each, not whole ones."""
        part, sizes = self.part(left)
        bound = 0
        # The bound that tokens alone give is where most packings end up.
        steady = part.tokens / self.budget
        steadiness = 1.0
        amounts = np.zeros(len(self.patterns))
        steps = kernel.knapsack_steps(part)
        for number in range(most_rounds):
            optimum = self.program.optimum()
            if optimum is None or self.steps > MOST_STEPS_IN_ALL:
                self.is_tired = True
                break
            batches, amounts, values = optimum
            values = values[sizes]
            self.steps += steps
            tried = steadiness * steady + (1 - steadiness) * values
            worth, _ = self.whole(tried, part)
            best, found = kernel.most_valuable(part, worth, number * 97 % len(sizes), PATTERNS)
            proven = -(-sum(map(operator.mul, part.sequences.tolist(), worth.tolist())) // best)
            if proven > bound:
                bound, steady = proven, tried
            if is_whole:
                self.bound = max(self.bound, bound)
                if number % 20 == 19:
                    logger.info(
                        "Round %d: %.1f batches, at least %s", number + 1, batches, f"{bound:,}"
                    )
            if math.ceil(batches * (1 - 1e-9) - 1e-6) <= bound:
                break
            worth, one = self.whole(values, part)
            paying = [
                (sizes[pattern], sequences)
                for pattern, sequences in patterns_in(found, np.arange(len(sizes)))
                if int((worth[pattern] * sequences).sum()) > one * (1 + 1e-9)
            ]
            if self.add(paying):
                steadiness = STEADINESS
            elif steadiness == 0:
                break
            else:
                steadiness = 0.0
        return amounts

    def whole(
        self, values: NDArray[np.float64], part: kernel.TokenCounts
    ) -> tuple[NDArray[np.int64], int]:
        """Return values in whole numbers, and what a batch costs in them."""
        most = float((values / part.tokens).max()) * self.budget
        one = 2 ** (51 - max(0, math.frexp(most)[1]))
        return np.floor(values * one).astype(np.int64), one

    def round_down(
        self, amounts: NDArray[np.float64], batches: list[int], left: NDArray[np.int64]
    ) -> None:
        """Take whole batches of patterns; if there are none, some that are nearly."""
        order = np.argsort(-amounts, kind="stable").tolist()

        def take(column: int, most: int) -> None:
            sizes, sequences = self.patterns[column]
            taken = min(most, int((left[sizes] // sequences).min()))
            left[sizes] -= taken * sequences
            batches[column] += taken

        if amounts[order[0]] >= 1 - 1e-9:
            for column in order:
                take(column, int(amounts[column] + 1e-9))
        else:
            for column in order[: max(1, int((amounts > 1e-6).sum()) // 10)]:
                take(column, 1)

    def layout_of(self, batches: list[int]) -> kernel.Layout:
        """Return the layout of batches of patterns, with all other sequences put beside them."""
        columns = np.flatnonzero(batches).tolist()
        chosen = [self.patterns[column] for column in columns]
        ends = np.cumsum([0, *(len(sizes) for sizes, _ in chosen)])
        sizes, sequences = (
            np.concatenate([pattern[i] for pattern in chosen] or [np.zeros(0, np.int64)])
            for i in (0, 1)
        )
        numbers = np.array([batches[column] for column in columns], np.int64)
        return kernel.layout_of(self.counts, ends, sizes, sequences, numbers)


def patterns_in(
    arrays: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], sizes: NDArray[np.int64]
) -> list[Pattern]:
    """Return the patterns that lie end to end, of these sizes."""
    offsets, places, sequences = arrays
    pieces = itertools.pairwise(offsets.tolist())
    return [(sizes[places[begin:end]], sequences[begin:end]) for begin, end in pieces]

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
If this does not reach the bound, an integer program over all patterns follows.

Where a pricing problem would have too many steps, neighboring sizes are joined first. The bound of
these coarse counts holds for the original ones, and their patterns are guides for the original
sizes.
"""

from __future__ import annotations

import logging
import math
import operator

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.kernel.patterns import Batches, Pattern, fewest, split_patterns
from virnucpro.kernel.restricted_master import MAX_COLUMNS, RestrictedMaster

logger = logging.getLogger(__name__)

# Limits for one pricing problem, and for the rows of the master problem.
MAX_STEPS = 2**27
MAX_SIZES = 4096
# Limits for coarse counts: one pricing problem, sizes, and the budget.
MAX_COARSE_STEPS = 2**27
MAX_COARSE_SIZES = 1024
MIN_COARSE_SIZES = 16
MAX_COARSE_BUDGET = 4096
# Coarse column generation ends this close to its bound.
COARSE_GAP = 2e-4
# A layout this close to the bound needs no further coarse column generation.
SMALL_GAP = 1e-3
# Column generations for the sequences that remain after rounding.
MAX_COARSE_ROUNDINGS = 5
# Limit on the total steps of pricing in one column generation, about ten seconds.
MAX_TOTAL_STEPS = 2**34
# Tables that are batches per round of pricing, at most: for all sizes, and for 4, 16 and 64 parts.
MAX_TABLES = 4
# Rounds of pricing for all sequences, and for those that remain after rounding.
MAX_ROUNDS = 500
MAX_ROUNDS_REMAINING = 30
MAX_ROUNDINGS = 100
# Patterns per round of pricing: the best of all sizes, and of 4, 16 and 64 parts of them.
MAX_PATTERNS = 85
# Pricing uses dual values between those of the master problem and the stability center, the dual
# values of the best bound (P. Wentges, Weighted Dantzig-Wolfe Decomposition for Linear
# Mixed-Integer Programming, International Transactions in Operational Research 4, 1997). This is
# the weight of the latter.
SMOOTHING = 0.6


def lay_out(counts: kernel.TokenCounts) -> kernel.Layout:
    """Return a layout with its bound, at most as many batches as methods without a solver.

    These are First-Fit Decreasing and patterns with reservation.
    """
    best = kernel.first_fit_decreasing(counts)
    if best.num_batches > kernel.lower_bound(best):
        best = fewest(best, kernel.patterns_with_reservation(counts))
    steps = count_steps(counts)
    if best.num_batches > kernel.lower_bound(best) and steps > MAX_COARSE_STEPS:
        best = pack_coarsely(best)
    is_small = steps <= MAX_STEPS and len(counts.tokens) <= MAX_SIZES
    if best.num_batches > kernel.lower_bound(best) and is_small:
        best = ColumnGeneration(counts, kernel.lower_bound(best)).improve(best)
    return best


def pack_coarsely(best: kernel.Layout) -> kernel.Layout:
    """Return the best of a layout and those found with joint sizes, with its bound."""
    counts, bound = best.counts, kernel.lower_bound(best)
    relaxed = coarsen(counts, round_down=True)
    if relaxed is None:
        logger.info("No column generation: a pricing problem has too many steps")
        return best
    columns = ColumnGeneration(relaxed[0], bound)
    columns.solve()
    bound = columns.bound
    log_progress(best, bound)
    remaining = counts.sequences
    batches = Batches(counts)
    for _ in range(MAX_COARSE_ROUNDINGS):
        if best.num_batches <= bound * (1 + SMALL_GAP):
            break
        sizes = np.flatnonzero(remaining)
        of_remaining = kernel.subset(counts, remaining)
        joint = coarsen(of_remaining, round_down=False)
        if joint is None:
            break
        columns = ColumnGeneration(joint[0])
        numbers = np.floor(columns.solve() + 1e-9).astype(np.int64)
        patterns, numbers, left = kernel.refine(of_remaining, joint[1], *columns.used(numbers))
        batches.add(patterns, sizes, numbers)
        remaining = np.zeros_like(remaining)
        remaining[sizes] = left
        best = fewest(best, batches.complete(remaining))
        log_progress(best, bound, remaining)
        if not numbers.any() or not remaining.any():
            break
    return kernel.with_bound(best, bound)


def log_progress(
    best: kernel.Layout, bound: int, remaining: NDArray[np.int64] | None = None
) -> None:
    """Log the number of batches so far."""
    logger.info(
        "%s batches, lower bound %s%s",
        f"{best.num_batches:,}",
        f"{bound:,}",
        "" if remaining is None else f"; {remaining.sum():,} sequences remaining",
    )


def count_steps(counts: kernel.TokenCounts) -> int:
    """Return the number of steps of a pricing problem, at most 2**63 - 1."""
    try:
        return kernel.pricing_steps(counts)
    except OverflowError:
        return 2**63 - 1


def coarsen(
    counts: kernel.TokenCounts, round_down: bool
) -> tuple[kernel.TokenCounts, NDArray[np.int64]] | None:
    """Return counts of joint sizes, and the first size of each; see `kernel.coarsen`.

    Their pricing problem has at most `MAX_COARSE_STEPS`. Returns None if there are none with so
    few, because of a high limit on sequences.
    """
    num_sizes, budget = MAX_COARSE_SIZES, MAX_COARSE_BUDGET
    while num_sizes >= MIN_COARSE_SIZES:
        unit = -(-counts.max_tokens_per_batch // budget)
        coarse = kernel.coarsen(counts, unit, num_sizes, round_down)
        if count_steps(coarse[0]) <= MAX_COARSE_STEPS:
            return coarse
        # Keeps both errors of a joint size alike: that of its width, and that of rounding.
        if budget > 2 * num_sizes:
            budget //= 2
        else:
            num_sizes //= 2
    return None


class ColumnGeneration:
    """The patterns generated so far, and the best bound found with them."""

    def __init__(self, counts: kernel.TokenCounts, bound: int = 0) -> None:
        self.counts = counts
        self.bound = bound
        self.patterns: list[Pattern] = []
        self.known: set[tuple[bytes, bytes]] = set()
        self.master = RestrictedMaster(len(self.counts.tokens))
        self.steps = 0
        # Whether the total work has reached its limit, or the solver failed.
        self.limit_reached = False

    def required(self) -> NDArray[np.int64]:
        """Return the sequences of each size, without those that fit in any batch."""
        # Sequences without tokens need only a free slot.
        is_limited = self.counts.max_sequences_per_batch < self.counts.num_sequences
        return np.where((self.counts.tokens > 0) | is_limited, self.counts.sequences, 0)

    def solve(self) -> NDArray[np.float64]:
        """Return the (fractional) number of batches of each pattern, close to the bound."""
        required = self.required()
        if not required.any():
            return np.zeros(0)
        self.add_start(required)
        self.master.set_bounds(required, [True] * len(self.patterns))
        return self.generate(required, MAX_ROUNDS, is_first=True, gap=COARSE_GAP)

    def improve(self, best: kernel.Layout) -> kernel.Layout:
        """Return the best of a layout and those found, with its bound."""
        remaining = self.required()
        num_batches: list[int] = []
        first_amounts = np.zeros(0)
        for rounding in range(MAX_ROUNDINGS):
            is_first = rounding == 0
            self.add_start(remaining)
            is_usable = [bool((n <= remaining[sizes]).all()) for sizes, n in self.patterns]
            self.master.set_bounds(remaining, is_usable)
            max_rounds = MAX_ROUNDS if is_first else MAX_ROUNDS_REMAINING
            amounts = self.generate(remaining, max_rounds, is_first)
            if is_first:
                first_amounts = amounts
            num_batches += [0] * (len(self.patterns) - len(num_batches))
            self.round_down(amounts, num_batches, remaining)
            numbers = np.array(num_batches)
            best = fewest(best, self.layout(numbers))
            log_progress(best, self.bound, remaining)
            if best.num_batches == self.bound or self.limit_reached or not remaining.any():
                break
        if best.num_batches > self.bound:
            numbers = self.solve_integer(first_amounts)
            best = fewest(best, self.layout(numbers))
            log_progress(best, self.bound)
        return kernel.with_bound(best, self.bound)

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

    def add_start(self, remaining: NDArray[np.int64]) -> None:
        """Add patterns of both methods without a solver, which make the problem feasible."""
        counts, sizes = self.subset(remaining)
        for layout in (
            kernel.first_fit_decreasing(counts),
            kernel.patterns_with_reservation(counts),
        ):
            self.add(split_patterns(kernel.patterns_of(layout)[0], sizes))

    def generate(
        self, remaining: NDArray[np.int64], max_rounds: int, is_first: bool, gap: float = 0.0
    ) -> NDArray[np.float64]:
        """Generate patterns until none has negative reduced cost, or the bound is reached.

        Returns the (fractional) number of batches of each pattern.
        """
        counts, sizes = self.subset(remaining)
        steps = kernel.pricing_steps(counts)
        if steps > MAX_STEPS:
            # Few sequences of a size may be more pieces than many.
            self.limit_reached = True
            return np.zeros(len(self.patterns))
        bound = 0
        stability_center = first_duals(counts)
        smoothing = 1.0
        amounts = np.zeros(len(self.patterns))
        for number in range(max_rounds):
            solution = self.master.solve_lp()
            if solution is None or self.steps > MAX_TOTAL_STEPS:
                self.limit_reached = True
                break
            num_batches, amounts, duals = solution
            duals = duals[sizes]
            self.steps += MAX_TABLES * steps
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
                        "Round %d: %.1f batches of patterns, proven %s",
                        number + 1,
                        num_batches,
                        f"{bound:,}",
                    )
            least = max(bound, self.bound) if is_first else bound
            if math.ceil(num_batches * (1 - max(gap, 1e-9)) - 1e-6) <= least:
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

    def solve_integer(self, amounts: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return whole numbers of batches of each pattern, close to the fractional ones."""
        amounts = np.append(amounts, np.zeros(len(self.patterns) - len(amounts)))
        # The program decides on the fraction and on one more batch of each pattern.
        kept = np.maximum(np.floor(amounts).astype(np.int64) - 1, 0)
        required = self.required()
        for column in np.flatnonzero(kept).tolist():
            sizes, sequences = self.patterns[column]
            required[sizes] -= kept[column] * sequences
        required = np.maximum(required, 0)
        # The patterns of the linear program, then the latest ones.
        latest = np.arange(len(amounts))[::-1]
        order = np.append(np.flatnonzero(amounts), latest[amounts[latest] == 0])
        columns = np.sort(order[:MAX_COLUMNS])
        master = RestrictedMaster(len(self.counts.tokens))
        master.add_patterns([self.patterns[column] for column in columns.tolist()])
        start = np.ceil(amounts - 1e-9).astype(np.int64)[columns] - kept[columns]
        found = master.solve_mip(required, start, self.bound - int(kept.sum()))
        numbers = kept
        numbers[columns] += found
        return numbers

    def used(self, num_batches: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Return the patterns with any batches, concatenated, and the number of batches of each."""
        columns = np.flatnonzero(num_batches).tolist()
        chosen = [self.patterns[column] for column in columns]
        offsets = np.cumsum([0, *(len(sizes) for sizes, _ in chosen)])
        sizes, sequences = (
            np.concatenate([pattern[i] for pattern in chosen] or [np.zeros(0, np.int64)])
            for i in (0, 1)
        )
        return offsets, sizes, sequences, num_batches[columns]

    def layout(self, num_batches: NDArray[np.int64]) -> kernel.Layout:
        """Return a layout with at most these batches of each pattern, and all other sequences."""
        every_size = np.arange(len(self.counts.tokens) + 1)
        # Without sequences that are in patterns above the required number.
        patterns, numbers, remaining = kernel.refine(
            self.counts, every_size, *self.used(num_batches)
        )
        batches = Batches(self.counts)
        batches.add(patterns, every_size, numbers)
        return batches.complete(remaining)


def first_duals(counts: kernel.TokenCounts) -> NDArray[np.float64]:
    """Return the dual values that prove the bound by tokens or by sequences, the higher one."""
    by_tokens = counts.tokens / counts.max_tokens_per_batch
    by_sequences = np.full(len(counts.tokens), 1 / counts.max_sequences_per_batch)
    return max(by_tokens, by_sequences, key=lambda duals: float(duals @ counts.sequences))


def scale_duals(
    duals: NDArray[np.float64], counts: kernel.TokenCounts
) -> tuple[NDArray[np.int64], int]:
    """Return dual values as integers, and the cost of a batch on the same scale."""
    # On this scale, no batch has a total dual value of 2**53 or more. Of sizes without tokens, a
    # batch holds as many as the limit on sequences allows.
    most = min(counts.max_sequences_per_batch, counts.num_sequences)
    per_token = duals / np.maximum(counts.tokens, counts.max_tokens_per_batch / most)
    largest = float(per_token.max()) * counts.max_tokens_per_batch
    scale = 2 ** (51 - max(0, math.frexp(largest)[1]))
    return np.floor(duals * scale).astype(np.int64), scale

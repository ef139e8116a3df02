"""The shape of batches, and warnings that propose a limit on sequences or a method."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import NamedTuple

from virnucpro import kernel
from virnucpro.kernel.limits import Limits

logger = logging.getLogger(__name__)

# The fullest batch is far above the mean if it has more than this many times as many sequences.
# Proteins packed without a limit have 3 to 24 times as many, at budgets of 4,096 to 65,536 tokens.
FAR_ABOVE = 2
# Limits to propose, as multiples of the mean: the first that costs at most a tenth of a percent.
MULTIPLES_OF_MEAN = (1, 1.25, 1.5, 2)
MAX_COST = 0.001
# First-Fit Decreasing is far from the bound if it has more than this share of batches above it.
MAX_EXCESS = 0.02


class BatchShape(NamedTuple):
    """The shape that every batch of a plan fits in; see `virnucpro.data.Layout.shape`.

    Attributes:
        tokens: Token budget per batch, the number of tokens after padding.
        sequences: Sequences of the fullest batch.
    """

    tokens: int
    sequences: int


def fullest(layout: kernel.Layout) -> int:
    """Return the number of sequences of the fullest batch; 0 without batches."""
    runs = layout.runs
    # The slots of a batch are filled in order, so its last run tells its sequences.
    return int((runs["first_slot"] + runs["per_batch"]).max(initial=0))


def warn_of_fullest(
    layout: kernel.Layout, limits: Limits, max_sequences: int, has_groups: bool
) -> None:
    """Log one WARNING if the fullest batch has far more sequences than the mean.

    It names a limit on sequences, and the number of batches of patterns with reservation under
    this limit, which method="tight" does not exceed. Does nothing if the layout has a limit. Makes
    at most one such layout per multiple of the mean. With groups, it only names the mean, since
    each group has batches of its own.
    """
    mean = layout.counts.num_sequences / layout.num_batches
    if limits.max_sequences_per_batch is not None or max_sequences <= FAR_ABOVE * mean:
        return
    if has_groups:
        logger.warning(
            "The fullest batch has %s sequences, the mean is %.1f, so a shape for all batches has "
            "many empty sequences: try max_sequences_per_batch=%d or more with method='tight'",
            f"{max_sequences:,}",
            mean,
            math.ceil(mean),
        )
        return
    num_batches, limit = propose_limit(layout, limits, max_sequences)
    percent = 100 * (num_batches / layout.num_batches - 1)
    logger.warning(
        "The fullest batch has %s sequences, the mean is %.1f, so a shape for all batches has many "
        "empty sequences: max_sequences_per_batch=%d with method='tight' gives at most %s batches "
        "(%s without a limit, %+.2f %%)",
        f"{max_sequences:,}",
        mean,
        limit,
        f"{num_batches:,}",
        f"{layout.num_batches:,}",
        # Adding 0.0 turns -0.0 into 0.0.
        round(percent, 2) + 0.0,
    )


def warn_of_limit(layout: kernel.Layout, has_groups: bool) -> bool:
    """Log one WARNING if First-Fit Decreasing makes far more batches because of a limit.

    That is more than `MAX_EXCESS` above the bound, and more than patterns with reservation make,
    which method="tight" does not exceed. With groups, which have batches of their own, it does not
    name the number of those. Returns whether it was logged.
    """
    bound, limit = kernel.lower_bound(layout), layout.counts.max_sequences_per_batch
    if layout.num_batches <= bound * (1 + MAX_EXCESS) or fullest(layout) < limit:
        return False
    advice = "use method='tight'"
    if not has_groups:
        at_most = kernel.patterns_with_reservation(layout.counts).num_batches
        if at_most >= layout.num_batches:
            return False
        advice = f"method='tight' makes at most {at_most:,}"
    logger.warning(
        "First-Fit Decreasing makes %s batches under max_sequences_per_batch=%d, %.1f %% above the "
        "lower bound of %s: %s",
        f"{layout.num_batches:,}",
        limit,
        100 * (layout.num_batches / bound - 1),
        f"{bound:,}",
        advice,
    )
    return True


def propose_limit(layout: kernel.Layout, limits: Limits, max_sequences: int) -> tuple[int, int]:
    """Return the number of batches under a limit on sequences, and the limit.

    The limit is the lowest of those tried that costs at most `MAX_COST`, or else the one with the
    fewest batches. All are below `max_sequences`.
    """
    num_sequences, before = layout.counts.num_sequences, layout.num_batches
    tried: list[tuple[int, int]] = []
    for multiple in MULTIPLES_OF_MEAN:
        # Exact for any number of sequences: multiples are quarters.
        limit = -(-num_sequences * int(4 * multiple) // (4 * before))
        # The mean, rounded up, is always below.
        if limit >= max_sequences:
            break
        counts = layout.counts.with_limits(replace(limits, max_sequences_per_batch=limit))
        num_batches = kernel.patterns_with_reservation(counts).num_batches
        tried.append((num_batches, limit))
        if num_batches <= before * (1 + MAX_COST):
            return tried[-1]
    return min(tried)

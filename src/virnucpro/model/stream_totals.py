"""How many sequences of a stream were truncated or dropped."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.packing import GreedyPacker
from virnucpro.text import percent

logger = logging.getLogger("virnucpro.model.stream")


class Totals:
    """The numbers of sequences that were read, truncated and dropped in one pass over a stream."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, lengths: NDArray[np.int64], limit: int, overlong: str, empty: str) -> None:
        """Count sequences with these lengths, as they are handled.

        Args:
            lengths: Residues of each sequence, int64 [n].
            limit: Residues that are kept.
            overlong: How sequences above the limit are handled, as for `GreedyPacker`.
            empty: How sequences without residues are handled.
        """
        over = lengths[lengths > limit]
        self.counts["all"] += len(lengths)
        self.counts["all_residues"] += int(lengths.sum())
        if overlong == "truncate":
            self.counts["truncated"] += len(over)
            self.counts["residues"] += int(over.sum()) - limit * len(over)
        elif overlong == "drop":
            self.counts["dropped"] += len(over)
            self.counts["residues"] += int(over.sum())
        if empty == "drop":
            self.counts["empty"] += int(np.count_nonzero(lengths == 0))

    def log(self, packer: GreedyPacker) -> None:
        """Log the numbers of sequences that were truncated or dropped by a packer, if any."""
        limits = packer.limits
        counts: dict[str, Any] = {name: f"{self.counts[name]:,}" for name in self.counts}
        if self.counts["truncated"]:
            logger.warning(
                "%s of %s sequences exceed %s (%d), truncating: %s residues removed, %s of all%s",
                counts["truncated"],
                counts["all"],
                limits.bound,
                limits.max_residues,
                counts["residues"],
                percent(self.counts["residues"] / self.counts["all_residues"]),
                packer.describe_default(),
            )
        if self.counts["dropped"]:
            logger.warning(
                "%s of %s sequences exceed %s (%d), dropping: %s residues",
                counts["dropped"],
                counts["all"],
                limits.bound,
                limits.max_residues,
                counts["residues"],
            )
        if self.counts["empty"]:
            logger.warning("%s of %s sequences are empty, dropping", counts["empty"], counts["all"])

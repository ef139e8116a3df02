"""Messages about sequences that exceed the limit on length."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.layout import TokenCounts

# Truncation is the packer's to report, wherever it is counted.
logger = logging.getLogger("virnucpro.data.packing")


def describe_overlong(name: str, lengths: NDArray[Any], limit: int) -> str:
    """Return the error message for lengths above the limit, the first of them that of `name`."""
    overlong = lengths > limit
    return (
        f"{name} exceeds max_length ({lengths[np.argmax(overlong)]} > {limit}); "
        f"{np.count_nonzero(overlong):,} of {len(lengths):,} sequences do"
    )


def warn_of_truncation(counts: TokenCounts) -> None:
    """Log the number of truncated sequences, if any."""
    if counts.num_truncated:
        logger.warning(
            "%s of %s sequences exceed max_length (%d), truncating: %s residues removed",
            f"{counts.num_truncated:,}",
            f"{counts.num_sequences:,}",
            counts.limits.max_residues,
            f"{counts.truncated_residues:,}",
        )

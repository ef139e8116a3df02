"""Messages about sequences that exceed the limit on length."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.data.layout import TokenCounts

# Truncation is logged as a message of the packer, whichever module counts it.
logger = logging.getLogger("virnucpro.data.packing")


def describe_overlong(name: str, lengths: NDArray[Any], limit: int) -> str:
    """Return the error message for lengths above the limit; `name` is the first such sequence."""
    overlong = lengths > limit
    return (
        f"{name} exceeds max_length ({lengths[np.argmax(overlong)]} > {limit}); "
        f"sequences above the limit: {np.count_nonzero(overlong):,} of {len(lengths):,}"
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

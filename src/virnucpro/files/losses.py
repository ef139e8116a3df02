"""What is lost of the residues of files."""

from __future__ import annotations

import logging

from virnucpro.files.embeddings import EmbeddingTotals
from virnucpro.files.plan_summary import Totals
from virnucpro.kernel.limits import Limits
from virnucpro.text import percent

logger = logging.getLogger(__name__)


def warn_of_losses(limits: Limits, totals: Totals | EmbeddingTotals) -> None:
    """Log one WARNING if sequences were truncated or dropped because they are too long."""
    kept = f"{limits.max_residues:,} residues"
    if limits.max_residues < limits.max_sequence_length:
        budget = f"a budget of {limits.max_tokens_per_batch:,} tokens per batch"
        kept = f"the {kept} that {budget} leaves room for"
    for number, done in (
        (totals.residues_truncated, "truncated"),
        (totals.residues_dropped, "dropped"),
    ):
        if number and totals.residues:
            logger.warning(
                "%s of the residues are lost (%s of %s): sequences with more than %s are %s "
                "(overlong='split' keeps all residues)",
                percent(number / totals.residues),
                f"{number:,}",
                f"{totals.residues:,}",
                kept,
                done,
            )

"""Labels of the totals in tables and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from virnucpro.files.embeddings import EmbeddingTotals
from virnucpro.files.plan_summary import Totals

# In display order. `tokens` has no label: only `stats --json` and `--tsv` show it.
LABELS = {
    "read": "Sequences",
    "sequences": "Sequences",
    "distinct": "Distinct sequences",
    "packed": "Packed",
    "dropped": "Dropped",
    "empty": "Empty",
    "truncated": "Truncated",
    "split": "Split",
    "fragments": "Fragments",
    "duplicate_ids": "Duplicate IDs",
    "stops": "Stops (*) removed",
    "lower_case": "Lower case converted",
    "gaps": "Gaps removed",
    "insertions": "Insertions removed",
    "residues": "Residues",
    "residues_kept": "Residues kept",
    "residues_repeated": "Residues repeated",
    "residues_truncated": "Residues truncated",
    "residues_dropped": "Residues dropped",
    "first_fit_batches": "Batches by FFD",
    "batches": "Batches",
    "efficiency": "Efficiency",
    "lower_bound": "Lower bound",
}
# Hidden if 0.
RARE = {
    "dropped",
    "empty",
    "split",
    "fragments",
    "duplicate_ids",
    "stops",
    "lower_case",
    "gaps",
    "insertions",
    "residues_dropped",
    "residues_repeated",
}


def label_totals(totals: Totals) -> dict[str, str]:
    """Return the totals as text by label, without those not known and rare ones that are 0."""
    values = asdict(totals)
    if totals.first_fit_batches == totals.batches:
        del values["first_fit_batches"]
    return label_values(values)


def label_values(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values as text by label, in the order of `LABELS`."""
    return {
        label: f"{values[name]:.6f}" if name == "efficiency" else f"{values[name]:,}"
        for name, label in LABELS.items()
        if values.get(name) is not None and (values[name] or name not in RARE)
    }


def label_embedding_totals(totals: EmbeddingTotals) -> dict[str, str]:
    """Return the totals of embeddings as text by label, without rare ones that are 0."""
    labels = label_values(asdict(totals))
    if totals.residues_truncated:
        share = totals.residues_truncated / totals.residues
        labels[LABELS["residues_truncated"]] += f" ({100 * share:.2f} %)"
    return labels

"""Labels of the totals in tables and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from virnucpro.files.embeddings import EmbeddingTotals
from virnucpro.files.plan_summary import Totals
from virnucpro.text import percent

# In display order. Residues are lost from truncated and with dropped sequences. `tokens` has no
# label: only `stats --json` and `--tsv` show it.
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
    "residues_lost": "Residues lost",
    "first_fit_batches": "Batches by FFD",
    "batches": "Batches",
    "efficiency": "Efficiency",
    "lower_bound": "Lower bound",
}
# Hidden if 0.
RARE = {
    "dropped",
    "empty",
    "truncated",
    "split",
    "fragments",
    "duplicate_ids",
    "stops",
    "lower_case",
    "gaps",
    "insertions",
    "residues_repeated",
}


def label_totals(totals: Totals | EmbeddingTotals) -> dict[str, str]:
    """Return the totals as text by label, without those not known and rare ones that are 0."""
    values = asdict(totals)
    if values.get("first_fit_batches") == totals.batches:
        del values["first_fit_batches"]
    lost = totals.residues_truncated, totals.residues_dropped
    values["residues_lost"] = None if None in lost else sum(lost)
    return {
        label: format_total(name, values)
        for name, label in LABELS.items()
        if values.get(name) is not None and (values[name] or name not in RARE)
    }


def format_total(name: str, values: Mapping[str, Any]) -> str:
    """Return one of the totals as text."""
    value = values[name]
    if name == "efficiency":
        return percent(value)
    if name == "residues_lost" and value:
        return f"{value:,} ({percent(value / values['residues'])})"
    return f"{value:,}"

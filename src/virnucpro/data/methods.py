"""Packing methods, which make layouts from counts."""

from __future__ import annotations

from types import ModuleType

from virnucpro import kernel
from virnucpro.extras import needing


def lay_out(counts: kernel.TokenCounts, method: str) -> kernel.Layout:
    """Return the layout by First-Fit Decreasing ("ffd"), or by column generation ("tight").

    The latter starts with patterns with reservation.
    """
    if method == "tight":
        layout: kernel.Layout = column_generation().lay_out(counts)
        return layout
    return kernel.first_fit_decreasing(counts)


def column_generation() -> ModuleType:
    """Import the module for method="tight", which needs highspy."""
    with needing("method='tight'", "tight"):
        from virnucpro.kernel import column_generation
    return column_generation

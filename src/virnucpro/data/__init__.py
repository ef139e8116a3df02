"""Packing of sequences into token-budget batches."""

from virnucpro.data.packing import GreedyPacker, calculate_token_budget
from virnucpro.data.plan import Layout, PackingPlan, TokenCounts

__all__ = [
    "GreedyPacker",
    "Layout",
    "PackingPlan",
    "TokenCounts",
    "calculate_token_budget",
]

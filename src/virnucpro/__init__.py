"""Token-budget batches for protein language models, packed by exact First-Fit Decreasing."""

from virnucpro.data._core import __version__

__all__ = ["__version__"]

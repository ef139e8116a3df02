"""Token-budget batches for protein language models, packed by exact First-Fit Decreasing."""

from pkgutil import extend_path

# A pipeline of the same name may have modules of its own elsewhere on the path.
__path__ = extend_path(__path__, __name__)

from virnucpro.data._core import __version__

__all__ = ["__version__"]

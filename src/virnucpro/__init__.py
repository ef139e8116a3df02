"""Token-budget batches for protein language models, packed by exact First-Fit Decreasing."""

from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virnucpro.kernel import __version__

__all__ = ["__version__"]

# Another distribution may have modules in the package `virnucpro` elsewhere on the path.
__path__ = extend_path(__path__, __name__)


def __getattr__(name: str) -> Any:
    """Import the kernel, and with it NumPy, only when the version is read."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from virnucpro.kernel import __version__

    return __version__

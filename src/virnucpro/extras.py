"""Optional dependencies, and the extras that install them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needing(feature: str, extra: str) -> Iterator[None]:
    """If an import in the context fails, name the missing package and the extra to install.

    Raises:
        ModuleNotFoundError: A package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{feature} needs {package}: in a checkout of virnucpro, run pip install '.[{extra}]' "
            f"(with a wheel: pip install 'FILE.whl[{extra}]')",
            name=error.name,
        ) from error

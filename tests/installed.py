"""Runs the tests that the installed package can pass with NumPy alone, or with the extras named.

Usage: python tests/installed.py core|files [OPTION OF PYTEST...]

The dependency group `test-core` must be installed; for `files` the group `test-files`, and the
extras cli and tight. An editable install is refused: it would not be what users get.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import virnucpro

TESTS = Path(__file__).parent

# A test imports no more than the extras of its folder.
CORE = ["kernel", "data"]
FILES = [*CORE, "tight", "files", "jobs"]


def main(name: str, *options: str) -> int:
    """Return pytest's exit status."""
    package = Path(virnucpro.__file__).resolve()
    if TESTS.parent.resolve() / "src" in package.parents:
        sys.exit(f"virnucpro is not installed by itself: {package} is the source")
    print("testing", package.parent, virnucpro.__version__)
    folders = [str(TESTS / name) for name in {"core": CORE, "files": FILES}[name]]
    return pytest.main([*folders, "-p", "no:cacheprovider", *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

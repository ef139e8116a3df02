"""Runs the tests that the installed package can pass with NumPy alone, or with the extras named.

Usage: python tests/installed.py core|files [OPTION OF PYTEST...]

pytest and Hypothesis must be installed; for `files` the extras cli and tight, and DuckDB, pandas
and Polars. An editable install is refused: it would not be what users get.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import virnucpro

UNIT = Path(__file__).parent / "unit"

# A test file imports no more than what its list may.
CORE = ["algorithm", "fuzz_records", "packing", "records", "scanner"]
FILES = [*CORE, "arrow_ids", "cli", "column_generation", "fasta", "inputs", "plan_file", "report"]


def main(name: str, *options: str) -> int:
    """Return pytest's exit status."""
    package = Path(virnucpro.__file__).resolve()
    if UNIT.parents[1].resolve() / "src" in package.parents:
        sys.exit(f"virnucpro is not installed by itself: {package} is the source")
    print("testing", package.parent, virnucpro.__version__)
    files = [str(UNIT / f"test_{name}.py") for name in {"core": CORE, "files": FILES}[name]]
    return pytest.main([*files, "-p", "no:cacheprovider", *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

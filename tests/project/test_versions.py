"""The version is set in pyproject.toml, and what repeats it agrees."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def first(pattern: str, name: str) -> str:
    """Return what the first match of a pattern captures in a file."""
    match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert match, f"{name} has no {pattern}"
    return match[1]


def test_files_name_one_version() -> None:
    current = first(r'^version = "(.+)"$', "pyproject.toml")
    assert version("virnucpro") == current
    assert first(r"^version: (.+)$", "CITATION.cff") == current
    # Until it is released, what is new has no version.
    assert first(r"^## \[(.+?)\]", "CHANGELOG.md") in ("Unreleased", current)

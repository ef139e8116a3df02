"""Damaged tables are errors, and none kills a process; tests/damaged_tables.py tries many more."""

from __future__ import annotations

from pathlib import Path

import pytest
from damaged_tables import TABLES, try_tables


@pytest.mark.process
def test_damage_is_named_or_harmless(tmp_path: Path) -> None:
    found, failures = try_tables(tmp_path, runs=12, seed=1_000_000)
    assert not failures
    assert found.total() == 12 * len(TABLES)
    # Each outcome occurs.
    for outcome in ("read: named", "pack: named", "pack_column: named", "harmless", "other data"):
        assert any(outcome in name for name in found)

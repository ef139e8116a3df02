"""Damaged plans are errors, and none kills a process; `make damage-test` tries many more."""

from __future__ import annotations

from pathlib import Path

import pytest
from damaged_plans import PLANS, try_plans


@pytest.mark.process
def test_damage_is_named_or_harmless(tmp_path: Path) -> None:
    found, failures = try_plans(tmp_path, runs=25, seed=1_000_000)
    assert not failures
    assert found.total() == 25 * len(PLANS)
    # Each way to be named occurs.
    for outcome in ("named by load", "named by verify", "named when used", "harmless"):
        assert any(outcome in name for name in found)

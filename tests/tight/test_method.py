"""The parameter method of the packer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from instances import triplets
from proteins import times

from virnucpro import kernel
from virnucpro.data import GreedyPacker, PackingPlan


def tight(packer: GreedyPacker) -> GreedyPacker:
    packer.method = "tight"
    return packer


def test_dicts_and_files(tmp_path: Path) -> None:
    packer = tight(GreedyPacker(1000, 1000, special_tokens=0))
    sizes = triplets(60, 2)
    records = [{"id": str(row), "sequence": "M" * size} for row, size in enumerate(sizes)]
    batches = packer.pack_sequences(records)
    assert len(batches) == 20
    assert packer.compute_efficiency(batches) == 1.0
    plan = packer.pack_lengths(sizes)
    plan.save(tmp_path / "plan.arrow")
    assert PackingPlan.load(tmp_path / "plan.arrow") == plan
    assert PackingPlan.load(tmp_path / "plan.arrow").lower_bound == 20


def test_without_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    packer = tight(GreedyPacker(10, special_tokens=0))
    monkeypatch.delitem(sys.modules, "virnucpro.kernel.column_generation", raising=False)
    monkeypatch.delitem(sys.modules, "virnucpro.kernel.restricted_master", raising=False)
    monkeypatch.delattr(kernel, "column_generation", raising=False)
    monkeypatch.setitem(sys.modules, "highspy", None)
    message = r"^method='tight' needs highspy: in a checkout .* pip install '\.\[tight\]' "
    with pytest.raises(ModuleNotFoundError, match=message) as found:
        packer.pack_lengths([1])
    assert found.value.name == "highspy"


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="method must be 'ffd' or 'tight' \\(got 'best'\\)"):
        GreedyPacker(10, method="best")


def test_totals_beyond_63_bits_are_refused_by_either_method() -> None:
    packer = GreedyPacker(10, special_tokens=0)
    beyond = times(packer.count([9]), (2**63 - 1) // 9) + packer.count([8])
    for method in "ffd", "tight":
        packer.method = method
        with pytest.raises(OverflowError, match="the number of tokens does not fit in 64 bits"):
            packer.lay_out(beyond)

"""The shape of plans that were loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from plans import SUFFIXES
from proteins import random_lengths

from virnucpro.data import GreedyPacker, PackingPlan


@pytest.mark.parametrize("overlong", ["truncate", "drop", "split"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_shape_of_loaded_plans(
    suffix: str, overlong: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = GreedyPacker(16384, overlong=overlong).pack_lengths(random_lengths(5000))
    plan.save(tmp_path / f"plan{suffix}")
    caplog.clear()
    assert plan.shape == (16384, max(map(len, plan)))
    loaded = PackingPlan.load(tmp_path / f"plan{suffix}")
    assert loaded.shape == plan.shape == loaded.reshuffle(1).shape
    # One message per plan.
    assert [message.split(", so ")[0] for message in caplog.messages] == [
        f"The fullest batch has {plan.max_sequences} sequences, the mean is "
        f"{plan.num_sequences / len(plan):.1f}"
    ] * 3
    assert len(set(caplog.messages)) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_loaded_plan_without_batches(suffix: str, tmp_path: Path) -> None:
    GreedyPacker(100).pack_lengths([]).save(tmp_path / f"plan{suffix}")
    plan = PackingPlan.load(tmp_path / f"plan{suffix}")
    assert plan.max_sequences == 0
    with pytest.raises(ValueError, match=r"^a PackingPlan without batches has no shape$"):
        plan.shape  # noqa: B018

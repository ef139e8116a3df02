"""States of samplers that are stored resume at the same batch, or say why not."""

from __future__ import annotations

import json

import pytest
from store import STORED, make_plan, make_sampler

from virnucpro.data import GreedyPacker, PackedBatchSampler

PATHS = sorted(STORED.glob("sampler-*.json"))


def test_the_version_that_is_written_is_stored() -> None:
    version = make_sampler().state_dict()["version"]
    assert STORED / f"sampler-{version}.json" in PATHS


def test_the_stored_state_is_resumed() -> None:
    state = json.loads((STORED / "sampler-2.json").read_text(encoding="utf-8"))
    resumed, expected = make_sampler(), make_sampler()
    resumed.load_state_dict(state)
    expected.set_epoch(state["epoch"])
    batches = list(expected)
    assert state["done"] == [[2, 2]]
    assert len(batches) > 1
    assert list(resumed) == batches[1:]


def test_states_of_version_1_are_resumed_unless_shuffled() -> None:
    state = json.loads((STORED / "sampler-1.json").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=r"version 1, which shuffled.*set_epoch\(3\)"):
        make_sampler().load_state_dict(state)
    resumed = PackedBatchSampler(make_plan(), 1, 2, seed=5)
    resumed.load_state_dict({**state, "shuffle": False})
    assert resumed.epoch == 3
    batches = list(PackedBatchSampler(make_plan(), 1, 2))
    assert list(resumed) == batches[state["step"] :]


def test_states_of_version_1_at_the_end_of_an_uneven_epoch() -> None:
    plan = GreedyPacker(10, 10, special_tokens=0).pack_lengths([10] * 9)
    sampler = PackedBatchSampler(plan, 0, 4, even=False)
    state = sampler.state_dict()
    del state["done"], state["drop_last"], state["repack"]
    sampler.load_state_dict({**state, "version": 1, "rank": 0, "world_size": 4, "step": 3})
    assert list(sampler) == []
    assert len(list(sampler)) == 3

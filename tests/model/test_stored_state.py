"""States of samplers that earlier versions wrote resume at the same batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from store import STORED, make_sampler

PATHS = sorted(STORED.glob("sampler-*.json"))


def test_the_version_that_is_written_is_stored() -> None:
    version = make_sampler().state_dict()["version"]
    assert STORED / f"sampler-{version}.json" in PATHS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stored_states_are_resumed(path: Path) -> None:
    state = json.loads(path.read_text(encoding="utf-8"))
    resumed, expected = make_sampler(), make_sampler()
    resumed.load_state_dict(state)
    expected.set_epoch(state["epoch"])
    batches = list(expected)
    assert state["step"] == 1 < len(batches)
    assert list(resumed) == batches[state["step"] :]

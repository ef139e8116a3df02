"""Pickles that earlier versions wrote are read, and equal what is made of the same input."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from store import LENGTHS, STORED, make_plan, make_values, version_of

from virnucpro.data import GreedyPacker

VALUES = make_values()
PATHS = [path for path in sorted(STORED.glob("*.pickle")) if path.stem.split("-")[0] in VALUES]


@pytest.mark.parametrize("name", VALUES)
def test_the_version_that_is_written_is_stored(name: str) -> None:
    assert f"{name}{version_of(VALUES[name])}.pickle" in [path.name for path in PATHS]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stored_values_are_read(path: Path) -> None:
    content = path.read_bytes()
    # NumPy 1 has no such module.
    assert b"numpy._core" not in content
    found = pickle.loads(content)
    expected = VALUES[path.stem.split("-")[0]]
    assert type(found) is type(expected)
    assert repr(found) == repr(expected)
    if isinstance(found, GreedyPacker):
        assert found.limits == expected.limits
        assert found.pack_lengths(LENGTHS) == make_plan()
    else:
        assert found == expected
        assert pickle.loads(pickle.dumps(found)) == expected


def test_stored_values_serve_as_those_just_made() -> None:
    plan = make_plan()
    for path in PATHS:
        found = pickle.loads(path.read_bytes())
        if path.stem.startswith(("layout", "packing_plan")):
            np.testing.assert_array_equal(found.assign(LENGTHS), plan.assign(LENGTHS))
            np.testing.assert_array_equal(found.slots(LENGTHS), plan.slots(LENGTHS))
        if path.stem.startswith("token_counts"):
            assert VALUES["greedy_packer"].lay_out(found) == VALUES["layout"]

"""Saved state that was forged or has another version."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from virnucpro.data import GreedyPacker, Layout, Limits, PackingPlan, TokenCounts
from virnucpro.data.parameters import NEWER_PARAMETERS
from virnucpro.kernel.limits import NEWER_LIMITS


def forgeries_of(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the state of a value with one of its values changed, at any depth."""
    for name, value in state.items():
        changed: list[Any] = ["field", None]
        if isinstance(value, dict):
            changed += [*forgeries_of(value), {}]
        elif isinstance(value, int):
            changed += [value + change for change in (1, -1, 2**40, -(2**40))]
        elif isinstance(value, np.ndarray):
            for change in (1, -1, 2**40, -(2**40)):
                for place in range(len(value)):
                    array = value.copy()
                    array[place] += change
                    changed.append(array)
            changed += [value[:-1], value.astype(np.int32), value.reshape(-1, 1)]
        for forged in changed:
            if forged is not value:
                yield {**state, name: forged}
        yield {key: kept for key, kept in state.items() if key != name}
    yield {**state, "unknown": 1}


@pytest.mark.parametrize("multiple_of", [1, 4])
def test_forged_state_is_refused(multiple_of: int) -> None:
    packer = GreedyPacker(
        10, 8, special_tokens=1, max_sequences_per_batch=3, multiple_of=multiple_of
    )
    counts = packer.count([5, 4, 1, 1, 1, 0, 50])
    for value in (packer.lay_out(counts), counts):
        assert type(value).from_dict(value.to_dict()) == value
        refused = 0
        for state in forgeries_of(value.to_dict()):
            try:
                other = type(value).from_dict(state)
            except (ValueError, TypeError, OverflowError, KeyError):
                refused += 1
                continue
            # Sound, then, and another one.
            assert isinstance(other, (Layout, TokenCounts))
            assert other != value or other.limits != value.limits
            if isinstance(other, Layout):
                tokens = other.batch_tokens
                assert tokens.sum() == other.total_tokens + other.padding_tokens
                assert tokens.max() <= other.max_tokens_per_batch
        assert refused > (50 if value is counts else 100)


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_state_of_another_version_is_refused(version: Any) -> None:
    packer = GreedyPacker(100)
    plan = packer.pack_lengths([60, 30])
    message = r"the state of a {} must have version {} \(got"
    values: list[tuple[Any, int]] = [
        (packer.count([5]), 1),
        (packer.lay_out(packer.count([5])), 1),
        (plan, 2),
    ]
    for value, current in values:
        function, (state, *rest) = value.__reduce__()
        assert state["version"] == current
        with pytest.raises(ValueError, match=message.format(type(value).__name__, current)):
            function({**state, "version": version}, *rest)
    with pytest.raises(TypeError, match=r"the state of a PackingPlan must be a dict \(got list\)"):
        PackingPlan.from_dict([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message.format("GreedyPacker", 1)):
        packer.__setstate__({**packer.__getstate__(), "version": version})


def test_limits_newer_than_a_state_have_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    packer = GreedyPacker(100, 50, special_tokens=1, max_sequences_per_batch=3)
    state = packer.__getstate__()
    counts = packer.count([5]).to_dict()
    for attributes in (state["attributes"], counts["limits"]):
        del attributes["max_sequences_per_batch"]
    with pytest.raises(ValueError, match="limits have no 'max_sequences_per_batch'"):
        TokenCounts.from_dict(counts)
    for newer in (NEWER_LIMITS, NEWER_PARAMETERS):
        monkeypatch.setitem(newer, "max_sequences_per_batch", None)
    assert TokenCounts.from_dict(counts).limits == Limits(100, 50, 1)
    older = GreedyPacker.__new__(GreedyPacker)
    older.__setstate__(state)
    assert older.limits == Limits(100, 50, 1)


def test_fields_of_a_state_are_named_in_errors() -> None:
    packer = GreedyPacker(100)
    state = packer.lay_out(packer.count([5])).to_dict()
    for changed, error, message in (
        (
            {"num_batches": "1"},
            TypeError,
            r"num_batches in .* Layout must be int \(got <class 'str",
        ),
        ({"first_run": [0, 1]}, TypeError, r"first_run in .* must be int64 \(got <class 'list"),
        ({"runs": {}}, ValueError, "runs must have one array per field"),
        ({"num_batches": 2**63}, ValueError, rf"num_batches in .* exceeds 64 bits \(got {2**63}"),
        ({"colour": 1}, ValueError, "Layout has an unknown field 'colour'"),
    ):
        with pytest.raises(error, match=message):
            Layout.from_dict({**state, **changed})
    del state["num_batches"]
    with pytest.raises(ValueError, match="Layout has no field 'num_batches'"):
        Layout.from_dict(state)


def test_packers_older_than_overlap_are_read() -> None:
    state = GreedyPacker(100, overlong="error").__getstate__()
    del state["attributes"]["overlap"]
    older = GreedyPacker.__new__(GreedyPacker)
    older.__setstate__(state)
    assert older.overlap == 0
    assert repr(older) == repr(GreedyPacker(100, overlong="error"))


def test_rows_of_a_plan_match_its_layout() -> None:
    plan = GreedyPacker(100).pack_lengths([60, 30, 60])
    state = plan.to_dict()
    older = {
        "version": 1,
        "layout": state["layout"],
        "indices": plan.indices,
        "offsets": plan.offsets,
    }
    assert PackingPlan.from_dict(older) == plan
    for name, values in (("offsets", [0, 3, 3]), ("offsets", [0, 2]), ("indices", [0, 1])):
        array = np.array(values, older[name].dtype)
        with pytest.raises(ValueError, match="rows of a plan do not match its layout"):
            PackingPlan.from_dict({**older, name: array})
    for rows in ([0, 1], [0, 1, 2, 3], [[0], [1], [2]]):
        with pytest.raises(ValueError, match="rows of a plan do not match its layout"):
            PackingPlan.from_dict({**state, "indices": np.array(rows, np.int32)})


def test_fragments_of_a_plan_match_its_layout() -> None:
    state = GreedyPacker(42, overlong="split").pack_lengths([60, 30]).to_dict()
    assert state["rows"].tolist() == [0, 0, 1]
    for name in ("rows", "starts", "stops"):
        for array in (state[name][:2], np.append(state[name], 1), state[name][:, None]):
            with pytest.raises(ValueError, match="fragments of a plan do not match its layout"):
                PackingPlan.from_dict({**state, name: array})
        with pytest.raises(TypeError, match=f"{name} in the state .* must be int64"):
            PackingPlan.from_dict({**state, name: state[name].astype(np.int32)})


def test_copies_keep_their_class() -> None:
    class OwnCounts(TokenCounts):
        pass

    class OwnLayout(Layout):
        pass

    packer = GreedyPacker(100)
    counts = packer.count([5])
    layout = packer.lay_out(counts)
    assert type(copy.copy(OwnCounts(counts.core, counts.limits))) is OwnCounts
    assert type(copy.copy(OwnLayout(layout.core, layout.limits))) is OwnLayout

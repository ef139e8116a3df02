"""Calls of the extension module that the package never makes."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import virnucpro.data
import virnucpro.data.packing
from virnucpro.kernel.limits import Limits


def test_kernel_validates_its_own_arguments() -> None:
    core: Any = virnucpro.kernel
    limits = Limits(10, 10, 0)
    counts = core.count(np.array([5]), limits, 1)
    layout = core.first_fit_decreasing(counts)
    from_pairs = partial(
        core.counts_from_pairs, limits=limits, num_truncated=0, truncated_residues=0
    )
    five, out, texts = np.array([5]), np.empty(1, np.int64), np.zeros(4, np.uint8)
    calls: list[tuple[type[Exception], Any]] = [
        (TypeError, lambda: core.count(np.array([[5]]), limits, 1)),
        (TypeError, lambda: core.count(np.array([5.0]), limits, 1)),
        (TypeError, lambda: core.count(np.arange(8)[::2], limits, 1)),
        (TypeError, lambda: core.count(np.arange(8, dtype=">i8"), limits, 1)),
        (TypeError, lambda: core.count(np.frombuffer(b"12345678x", "i4", 2, 1), limits, 1)),
        (ValueError, lambda: core.count(five, forged_limits(max_sequence_length=0), 1)),
        (ValueError, lambda: core.count(five, forged_limits(special_tokens=10), 1)),
        (TypeError, lambda: core.count(five, forged_limits(special_tokens="2"), 1)),
        (AttributeError, lambda: core.count(five, {"max_tokens_per_batch": 10}, 1)),
        (ValueError, lambda: counts.with_limits(Limits(9, 10, 0))),
        (ValueError, lambda: counts.with_limits(forged_limits(max_sequences_per_batch=0))),
        (ValueError, lambda: counts.with_limits(forged_limits(multiple_of=0))),
        (ValueError, lambda: counts.with_limits(forged_limits(multiple_of=11))),
        (ValueError, lambda: core.assign_batches(layout, five, counts, out, 1)),
        (ValueError, lambda: core.assign_slots(layout, five, counts, np.empty(2, np.int64), 1)),
        (TypeError, lambda: core.assign_slots(layout, five, counts, np.empty(1, np.int16), 1)),
        (ValueError, lambda: core.list_rows(layout, np.array([5, 5]), None, 1)),
        (ValueError, lambda: core.list_rows(layout, five, ("a", "b"), 1)),
        (ValueError, lambda: core.list_rows(layout, five, np.array([1, 2]), 1)),
        (TypeError, lambda: core.list_rows(layout, five, (1,), 1)),
        (TypeError, lambda: core.list_rows(layout, five, np.array([1.0]), 1)),
        (TypeError, lambda: core.list_rows(layout, five, None, 1.5)),
        (ValueError, lambda: core.list_rows(layout, five, (np.array([0, 5]), texts), 1)),
        (ValueError, lambda: core.list_rows(layout, five, (np.array([2, 1]), texts), 1)),
        (ValueError, lambda: core.list_rows(layout, five, (np.array([-1, 1]), texts), 1)),
        (ValueError, lambda: core.list_rows(layout, five, (np.array([0]), texts), 1)),
        (TypeError, lambda: core.list_rows(layout, five, (np.array([0.0, 1.0]), texts), 1)),
        (TypeError, lambda: core.list_rows(layout, five, (np.array([0, 1]), five), 1)),
        (ValueError, lambda: core.shuffle_rows(layout, np.array([0, 1]), 0, 1)),
        (TypeError, lambda: core.shuffle_rows(layout, np.array([0.0]), 0, 1)),
        (TypeError, lambda: core.shuffle_rows(layout, np.array([0]), -1, 1)),
        (TypeError, lambda: core.Layout.__new__(core.Layout)),
        (TypeError, lambda: core.TokenCounts.__new__(core.TokenCounts)),
        (TypeError, lambda: object.__new__(core.Layout)),
        (TypeError, lambda: core.make_counts(limits, "tokens", "sequences", 0, 0)),
        (TypeError, lambda: from_pairs(tokens=np.array([5], np.int32), sequences=five)),
        (TypeError, lambda: from_pairs(tokens=five, sequences=np.arange(4)[::2])),
        (ValueError, lambda: from_pairs(tokens=five, sequences=np.array([1, 1]))),
        (ValueError, lambda: from_pairs(tokens=five, sequences=five, padding_tokens=-1)),
        (ValueError, lambda: core.place_ranks(layout, five, np.array([0, 0]), 1)),
        (TypeError, lambda: core.place_ranks(layout, np.array([5], np.int16), out, 1)),
        (TypeError, lambda: core.place_ranks(layout, five, np.array([0], np.uint64), 1)),
        (TypeError, lambda: core.place_ranks(layout, np.arange(8)[::2], five, 1)),
        (TypeError, lambda: core.place_ranks(None, five, five, 1)),
    ]
    for error, call in calls:
        with pytest.raises(error):
            call()


def forged_limits(**changes: Any) -> Any:
    """Return an object with the attributes of limits, which nothing has checked."""
    return SimpleNamespace(**{**asdict(Limits(10, 10, 0)), **changes})

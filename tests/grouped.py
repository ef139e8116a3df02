"""Plans of groups by the obvious algorithm: each group packed alone, one after another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from virnucpro.data import GreedyPacker, PackingPlan


def labels(number: int) -> st.SearchStrategy[list[Any]]:
    """Labels of few groups or many, int or str, that are not in order."""
    kinds = (
        st.integers(-2, 2),
        st.sampled_from(["b", "a", "a\0", "", "\u0100", "\ud800"]),
        st.sampled_from([2**70, -(2**70), 3]),
    )
    return st.one_of(*(st.lists(kind, min_size=number, max_size=number) for kind in kinds))


def pack_alone(
    packer: GreedyPacker, lengths: Sequence[int], ids: Sequence[Any] | None, groups: Sequence[Any]
) -> list[tuple[list[int], PackingPlan]]:
    """Return the rows of each group, in order of labels, and its plan."""
    found = []
    logging.disable()
    for label in sorted(set(groups)):
        rows = [row for row, group in enumerate(groups) if group == label]
        of_group = None if ids is None else [ids[row] for row in rows]
        found.append((rows, packer.pack_lengths([lengths[row] for row in rows], of_group)))
    logging.disable(logging.NOTSET)
    return found


# The row, start and stop of a sequence or fragment; the last is None for a whole sequence.
Part = tuple[int, int, int | None]


def parts_of_batches(plan: PackingPlan, rows: Sequence[int] | None = None) -> list[list[Part]]:
    """Return the parts in each batch of a plan, whose rows are numbered as in `rows`."""
    number = range(plan.num_rows) if rows is None else rows
    if plan.fragments is None:
        return [[(number[row], 0, None) for row in batch.tolist()] for batch in plan]
    columns = [values.tolist() for values in plan.fragments]
    fragments = [(number[row], start, stop) for row, start, stop in zip(*columns, strict=True)]
    return [[fragments[place] for place in batch.tolist()] for batch in plan]


def only_starts(batches: list[list[Part]]) -> list[list[tuple[int, int]]]:
    """Return parts without their ends, which plans without fragments do not have."""
    return [[part[:2] for part in batch] for batch in batches]

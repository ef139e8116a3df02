"""Plans of several data sets, joined to one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.groups import concatenate, join
from virnucpro.data.layout import Layout, TokenCounts
from virnucpro.data.overlong import Fragments
from virnucpro.text import quoted

if TYPE_CHECKING:
    from virnucpro.data.plan import PackingPlan


def join_plans(
    plans: Sequence[PackingPlan],
) -> tuple[Layout, NDArray[Any], NDArray[Any], Fragments | None]:
    """Return the layout, the indices, the dropped rows and the fragments of joined plans.

    See `PackingPlan.concatenate`.
    """
    check_limits(plans)
    counts = TokenCounts(plans[0].core.counts, plans[0].limits)
    for plan in plans[1:]:
        counts += TokenCounts(plan.core.counts, plan.limits)
    core = join([plan.core for plan in plans], counts.core)
    layout = Layout(core, counts.limits, plans[0].num_threads, group_offsets_of(plans))
    first_rows = firsts(plan.num_rows for plan in plans)
    numbers, fragments = [plan.indices for plan in plans], None
    first_numbers = first_rows
    if any(plan.fragments is not None for plan in plans):
        parts = [fragments_of(plan, place) for place, plan in enumerate(plans)]
        numbers = [
            plan.indices if plan.fragments is not None else np.searchsorted(part.rows, plan.indices)
            for plan, part in zip(plans, parts, strict=True)
        ]
        first_numbers = firsts(len(part.rows) for part in parts)
        rows = [part.rows + first for part, first in zip(parts, first_rows, strict=False)]
        fragments = Fragments(
            np.concatenate(rows), *map(np.concatenate, list(zip(*parts, strict=True))[1:])
        )
    is_narrow = max(first_rows[-1], first_numbers[-1]) < 2**31
    integer = np.int32 if is_narrow else np.int64
    indices, dropped = (
        np.concatenate(
            [part.astype(np.int64) + first for part, first in zip(values, shifts, strict=False)]
        ).astype(integer)
        for values, shifts in (
            (numbers, first_numbers),
            ([plan.dropped for plan in plans], first_rows),
        )
    )
    return layout, indices, dropped, fragments


def firsts(sizes: Any) -> list[int]:
    """Return the number of the first item of each part, given their sizes, and of all items."""
    return list(itertools.accumulate(sizes, initial=0))


def check_limits(plans: Sequence[PackingPlan]) -> None:
    """Raise ValueError if there are no plans or their limits differ."""
    if not plans:
        raise ValueError("plans must have at least one plan (got none)")
    first = plans[0].limits
    for place, plan in enumerate(plans):
        for field in fields(first):
            values = getattr(first, field.name), getattr(plan.limits, field.name)
            if values[0] != values[1]:
                raise ValueError(
                    f"plans must have equal limits: plans[{place}] has "
                    f"{field.name}={quoted(values[1])}, plans[0] has {quoted(values[0])}"
                )


def fragments_of(plan: PackingPlan, place: int) -> Fragments:
    """Return the fragments of a plan; whole sequences if it has none."""
    if plan.fragments is not None:
        return plan.fragments
    if plan.limits.multiple_of > 1 or plan.num_truncated:
        reason = "rounded up" if plan.limits.multiple_of > 1 else "truncated"
        raise ValueError(
            f"plans[{place}] has no fragments and other plans do, but the lengths of its sequences "
            f"are not known, since they are {reason}: pack all in one call, with groups"
        )
    order = np.argsort(plan.indices)
    tokens = kernel.tokens_of_batches(plan.core, 0, plan.num_batches)[order]
    rows = plan.indices[order].astype(np.int64)
    return Fragments(rows, np.zeros(len(rows), np.int64), tokens - plan.special_tokens)


def group_offsets_of(plans: Sequence[PackingPlan]) -> NDArray[np.int64]:
    """Return the offsets of the groups of all plans; a plan without groups is one."""
    ends = [
        np.array([plan.num_batches]) if plan.group_offsets is None else plan.group_offsets[1:]
        for plan in plans
    ]
    before = firsts(plan.num_batches for plan in plans)
    shifted = [end + first for end, first in zip(ends, before, strict=False)]
    return concatenate([np.zeros(1, np.int64), *shifted])

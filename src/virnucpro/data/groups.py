"""Groups of rows that share no batch: layouts that are joined, and parts of joined layouts."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.methods import lay_out
from virnucpro.kernel.arguments import (
    check_dimension,
    check_id_objects,
    check_list,
    check_threads,
    take_ids,
)
from virnucpro.kernel.limits import MAX_TOKENS, Limits

if TYPE_CHECKING:
    from virnucpro.data.overlong import Chosen


def number_groups(groups: Iterable[Any], num_rows: int) -> NDArray[np.int64]:
    """Return the number of each row's group, in order of the groups' labels.

    Args:
        groups: The label of each row, all str or all int.
        num_rows: The number of rows.

    Raises:
        ValueError: There is not one label per row.
        TypeError: Labels are neither str nor int, or have mixed types.
    """
    array = check_dimension(groups, "groups") if hasattr(groups, "__array__") else None
    if array is None or (array.size and array.dtype.kind not in "iu"):
        wanted = "a list or an array of str or int"
        labels = check_list(groups, "groups", wanted) if array is None else array.tolist()
        objects = check_id_objects(tuple(labels), "groups[{}]".format) if labels else ()
        number = {label: place for place, label in enumerate(sorted(set(objects)))}
        numbers = np.fromiter((number[label] for label in objects), np.int64, len(objects))
    else:
        numbers = np.unique(array, return_inverse=True)[1]
    if len(numbers) != num_rows:
        raise ValueError(
            f"groups must have one group per sequence (got {len(numbers)} for {num_rows} sequences)"
        )
    return numbers


def pack_groups(
    counts: kernel.TokenCounts,
    chosen: Chosen,
    groups: NDArray[np.int64],
    limits: Limits,
    method: str,
    num_threads: int | None,
) -> tuple[kernel.Layout, NDArray[Any], NDArray[np.int64]]:
    """Pack the sequences of each group alone.

    Args:
        counts: The counts of all sequences.
        chosen: The sequences to pack.
        groups: The number of the group of each row, before rows were dropped or split.
        limits: The limits on batches and sequences.
        method: The packing method.
        num_threads: The maximum number of threads; None for the number of cores available.

    Returns:
        The layout; the places of the sequences among those chosen, batch by batch; and the first
        batch of each group, and the number of batches.

    Cost: O(n log n), and about 50 us per group, or seconds with method="tight".
    """
    num_groups, threads = int(groups.max(initial=-1)) + 1, check_threads(num_threads)
    if chosen.rows is not None:
        groups = groups[chosen.rows]
    # NumPy sorts 16-bit numbers in linear time.
    groups = groups.astype(np.min_scalar_type(num_groups))
    number = np.int32 if len(groups) < 2**31 else np.int64
    order: NDArray[np.signedinteger[Any]] = np.argsort(groups, kind="stable").astype(number)
    starts = np.searchsorted(groups[order], np.arange(num_groups + 1)).tolist()
    lengths = chosen.lengths[order]
    cores = []
    places = [np.empty(0, number)]
    for begin, end in itertools.pairwise(starts):
        of_group, rows = lengths[begin:end], order[begin:end]
        core = lay_out(kernel.count(of_group, limits, threads), method)
        ids = None if chosen.ids is None else take_ids(chosen.ids, rows)
        places.append(rows[kernel.list_rows(core, of_group, ids, threads)[0]])
        cores.append(core)
    return join(cores, counts), np.concatenate(places), batch_offsets_of(cores)


def batch_offsets_of(layouts: Sequence[kernel.Layout]) -> NDArray[np.int64]:
    """Return the first batch of each layout, if they are joined, and the number of batches."""
    return np.cumsum([0, *(layout.num_batches for layout in layouts)], dtype=np.int64)


def join(layouts: Sequence[kernel.Layout], counts: kernel.TokenCounts) -> kernel.Layout:
    """Return the layout with the batches of the first layout, then those of the second, and so on.

    Its bound is the sum of their bounds. `counts` are the counts of all sequences.
    """
    of_layouts = [layout.counts for layout in layouts]
    tokens = concatenate([of_layout.tokens for of_layout in of_layouts])
    sequences = concatenate([of_layout.sequences for of_layout in of_layouts])
    first_runs = [layout.first_run for layout in layouts]
    # The first run of a layout is 0, before which is the number of runs of the layout before.
    num_runs = np.diff(concatenate(first_runs))
    ends = np.cumsum([len(firsts) for firsts in first_runs], dtype=np.int64)
    num_runs = np.delete(num_runs, ends[:-1] - 1)
    columns = [layout.runs for layout in layouts]
    runs = {
        name: concatenate([column[name] for column in columns])
        for name in ("first_sequence", "first_batch", "num_batches", "per_batch", "first_slot")
    }
    # Sequences of equal size are numbered through all layouts.
    by_size = np.argsort(-tokens, kind="stable")
    before = np.cumsum(sequences[by_size]) - sequences[by_size]
    before -= before[np.searchsorted(-tokens[by_size], -tokens[by_size])]
    shifts = np.empty_like(before)
    shifts[by_size] = before
    runs["first_sequence"] += np.repeat(shifts, num_runs)
    offsets = batch_offsets_of(layouts)
    runs["first_batch"] += np.repeat(
        offsets[:-1], [len(column["first_batch"]) for column in columns]
    )
    tokens_of_runs = np.repeat(tokens, num_runs)
    order = np.argsort(-tokens_of_runs, kind="stable")
    first_run = np.searchsorted(-tokens_of_runs[order], -counts.tokens)
    return kernel.make_layout(
        counts=counts,
        num_batches=int(offsets[-1]),
        proven_bound=sum(map(kernel.lower_bound, layouts)),
        first_run=np.append(first_run, len(order)),
        runs={name: values[order] for name, values in runs.items()},
    )


def concatenate(arrays: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the concatenation of any number of int64 arrays."""
    return np.concatenate([np.empty(0, np.int64), *arrays])


class GroupedRuns(NamedTuple):
    """The runs of a layout, in order of groups, then of sizes, then of batches.

    Attributes:
        runs: The runs, with their sequences numbered from 0 in each group and size.
        first_run: The first run of each size in each group, and the number of runs.
        groups: The group of each of these, in increasing order.
        tokens: The tokens of each of these.
        sequences: The number of sequences of each of these.
    """

    runs: dict[str, NDArray[np.int64]]
    first_run: NDArray[np.int64]
    groups: NDArray[np.int64]
    tokens: NDArray[np.int64]
    sequences: NDArray[np.int64]

    @classmethod
    def of(cls, layout: kernel.Layout, group_offsets: NDArray[np.int64]) -> GroupedRuns:
        """Return the runs of a layout with at least one run. Cost: O(runs * log(runs))."""
        runs = layout.runs
        sizes = np.repeat(np.arange(len(layout.counts.tokens)), np.diff(layout.first_run))
        groups = np.searchsorted(group_offsets, runs["first_batch"], side="right") - 1
        order = np.lexsort((sizes, groups))
        sizes, groups = sizes[order], groups[order]
        runs = {name: values[order] for name, values in runs.items()}
        is_first = np.append(True, (np.diff(sizes) != 0) | (np.diff(groups) != 0))
        first_run = np.flatnonzero(is_first)
        sequences = runs["num_batches"] * runs["per_batch"]
        before = np.cumsum(sequences) - sequences
        runs["first_sequence"] = before - before[first_run][np.cumsum(is_first) - 1]
        return cls(
            runs,
            np.append(first_run, len(order)),
            groups[first_run],
            layout.counts.tokens[sizes[first_run]],
            np.add.reduceat(sequences, first_run),
        )


def separate(layout: kernel.Layout, group_offsets: NDArray[np.int64]) -> kernel.Layout:
    """Return a layout with the same batches and slots, but no size that two groups share.

    Its tokens have no meaning but their order. Cost: O(runs * log(runs)).
    """
    if layout.num_batches == 0:
        return layout
    parts = GroupedRuns.of(layout, group_offsets)
    counts = kernel.make_counts(
        limits=Limits(MAX_TOKENS, MAX_TOKENS, special_tokens=0),
        tokens=np.arange(len(parts.tokens), 0, -1),
        sequences=parts.sequences,
        num_truncated=0,
        truncated_residues=0,
    )
    return kernel.make_layout(
        counts=counts,
        num_batches=layout.num_batches,
        proven_bound=0,
        first_run=parts.first_run,
        runs=parts.runs,
    )


def counts_of_groups(
    layout: kernel.Layout, limits: Limits, group_offsets: NDArray[np.int64] | None
) -> Iterator[kernel.TokenCounts]:
    """Yield the counts of each group that has sequences, with tokens as if nothing were padding.

    Those of the whole layout, as they are, if it has no groups.
    """
    if group_offsets is None:
        yield layout.counts
        return
    if layout.num_batches == 0:
        return
    parts = GroupedRuns.of(layout, group_offsets)
    # How many of the tokens of a group are padding is not known.
    limits = replace(limits, max_sequence_length=MAX_TOKENS, special_tokens=0, multiple_of=1)
    starts = np.flatnonzero(np.append(True, np.diff(parts.groups) != 0)).tolist()
    for begin, end in zip(starts, [*starts[1:], len(parts.groups)], strict=True):
        yield kernel.make_counts(
            limits=limits,
            tokens=parts.tokens[begin:end],
            sequences=parts.sequences[begin:end],
            num_truncated=0,
            truncated_residues=0,
        )


def check_group_offsets(layout: kernel.Layout, group_offsets: NDArray[np.int64]) -> None:
    """Raise ValueError if offsets are not those of groups of the layout's batches."""
    runs = layout.runs
    first, last = runs["first_batch"], runs["first_batch"] + runs["num_batches"] - 1
    if (
        group_offsets.ndim != 1
        or len(group_offsets) == 0
        or (group_offsets[0], group_offsets[-1]) != (0, layout.num_batches)
        # Differences of forged offsets may overflow.
        or (group_offsets[1:] < group_offsets[:-1]).any()
        # No run has batches of two groups.
        or (
            np.searchsorted(group_offsets, first, side="right")
            != np.searchsorted(group_offsets, last, side="right")
        ).any()
    ):
        raise ValueError("the groups of a plan do not match its layout")

"""Rows brought together by batch, in any number of tasks, are the plan of one machine."""

from __future__ import annotations

import itertools
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inline import without_ray
from strategies import Case, cases

from virnucpro.cluster import exchange, ranges
from virnucpro.cluster.blocks import Job, Position, choose_table, count_table
from virnucpro.cluster.duplicates import count_duplicates
from virnucpro.cluster.exchange import Group, find_first_ranks, gather_batches, make_exchange
from virnucpro.cluster.ray_data import count_groups, list_batches, pack_dataset
from virnucpro.data import GreedyPacker, Layout, PackingPlan

names = st.sampled_from(["a", "b", "ab", "é", "\uffff", "\U00010000", "", "a" * 20])
ids = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 3), names, st.text(max_size=4))


def cut(table: pa.Table, cuts: list[int]) -> list[pa.Table]:
    """A table in blocks; equal cuts give empty ones."""
    pairs = itertools.pairwise([0, *sorted(cuts), len(table)])
    return [table.slice(begin, end - begin) for begin, end in pairs]


def rows_of(plan: PackingPlan) -> Any:
    """The rows of a plan in order of batches, and where they begin and end in their sequences."""
    order = plan.indices
    if plan.fragments is None:
        return order, None, None
    return tuple(values[order] for values in plan.fragments)


@settings(max_examples=150)
@given(cases(max_size=40), st.data())
def test_any_tasks_equal_one_machine(case: Case, data: st.DataObject) -> None:
    lengths = [min(length, 2**30) for length in case.lengths or [1]]
    number = len(lengths)
    overlong = data.draw(st.sampled_from(["truncate", "drop", "split"]))
    if overlong == "split" and sum(lengths) > 200 * case.limit:
        overlong = "drop"
    overlap = data.draw(st.integers(0, min(3, case.limit - 1))) if overlong == "split" else 0
    empty = data.draw(st.sampled_from(["pack", "drop"]))
    packer = GreedyPacker(**case.parameters, overlong=overlong, overlap=overlap, empty=empty)
    one = data.draw(ids)
    others = names if isinstance(one, str) else st.integers(-(2**63), 2**63 - 1)
    some = st.one_of(st.just(one), others)
    keys = data.draw(st.one_of(st.none(), st.lists(some, min_size=number, max_size=number)))
    columns: dict[str, Any] = {"length": lengths, "number": list(range(number))}
    if keys is not None:
        columns["key"] = keys
    blocks = cut(pa.table(columns), data.draw(st.lists(st.integers(0, number), max_size=5)))
    result = data.draw(st.sampled_from(["rows", "batches"]))
    task_bytes = data.draw(st.sampled_from([1, 30, 100, 1000, 2**27]))
    order = "row" if keys is None else "id"
    max_groups, together = data.draw(st.sampled_from([(4096, 16), (1, 2), (2, 1), (3, 16)]))
    with (
        patch("virnucpro.cluster.ray_data.MAX_GROUPS", max_groups),
        patch("virnucpro.cluster.ray_data.ASSIGNED_TOGETHER", together),
        without_ray(task_bytes, data.draw(st.sampled_from([2, 7, 512]))),
    ):
        found, layout = pack_dataset(
            blocks,
            packer,
            order=order,
            id_column="key",
            result=result,
        )
    plan = packer.pack_lengths(lengths, keys)
    assert layout == Layout(plan.core, plan.limits)
    table = pa.concat_tables(found, promote_options="permissive") if found else pa.table({})
    numbers = [] if not found else table["number"].to_pylist()
    rows, starts, stops = rows_of(plan)
    batches = np.repeat(np.arange(len(plan)), np.diff(plan.offsets)).tolist()
    if result == "batches":
        assert [len(batch) for batch in numbers] == np.diff(plan.offsets).tolist()
        assert len(table) == 0 or table["batch"].to_pylist() == list(range(len(plan)))
        numbers = [value for batch in numbers for value in batch]
    elif order == "row":
        # In the order of the rows, which are sorted here by their places.
        places = sorted(zip(table["batch"].to_pylist(), table["slot"].to_pylist(), strict=True))
        assert [batch for batch, _ in places] == batches
        at = np.lexsort((table["slot"].to_numpy(), table["batch"].to_numpy()))
        assert table["number"].to_pylist() == sorted(numbers)
        table = table.take(pa.array(at))
        numbers = table["number"].to_pylist()
    else:
        assert len(table) == 0 or table["batch"].to_pylist() == batches
        # No batch is in two blocks.
        firsts = [block["batch"][0].as_py() for block in found if len(block)]
        lasts = [block["batch"][-1].as_py() for block in found if len(block)]
        assert all(last < first for last, first in zip(lasts, firsts[1:], strict=False))
    assert numbers == rows.tolist()
    if overlong == "split" and len(table) and result == "rows":
        if starts is None:
            starts, stops = np.zeros(number, int)[rows], np.array(lengths)[rows]
        assert table["start"].to_pylist() == starts.tolist()
        assert table["stop"].to_pylist() == stops.tolist()


def test_common_size_is_divided() -> None:
    """Sequences of one size are in several tasks, each with the ranks after those before."""
    random = np.random.default_rng(0)
    lengths = np.where(random.random(4000) < 0.7, 500, random.integers(1, 900, 4000))
    keys = random.permutation(4000).astype(str)
    table = pa.table({"length": lengths, "id": keys, "number": np.arange(4000)})
    packer = GreedyPacker(2048, num_threads=1)
    job = Job(packer, "length", "id")
    with without_ray(10_000):
        groups = count_groups(cut(table, [700, 2100, 3000]), job, 3)
        total = groups[0].counted
        for group in groups[1:]:
            total = total.merge(group.counted)
        layout = packer.lay_out(total.counts)
        plan = make_exchange(job, layout, total, pa.large_string(), False)
        parts = ranges.parted_sizes(plan.sizes)
        assert set(parts) == {502}
        assert parts[502] > 5
        ties = exchange.draw_ties(plan, groups, list(exchange.starts_of(groups)))
        assert ties[502] == sorted(ties[502])
        found, _ = exchange.exchange_rows(plan, groups, lambda rows, *_: rows, None)
    numbers = pa.concat_tables(found)["number"].to_pylist()
    assert numbers == packer.pack_lengths(lengths, keys).indices.tolist()
    # The parts are of about equal size.
    firsts = [0] + [int(np.sum(keys[lengths == 500] < key)) for key, _ in ties[502]]
    sizes = np.diff([*firsts, int(np.sum(lengths == 500))])
    assert sizes.max() < 2 * sizes.mean()


@pytest.mark.parametrize("samples", [64, 1, 0])
def test_many_blocks_share_a_size(monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    """Also if blocks have few sequences of it, and if few or none of them are drawn."""
    random = np.random.default_rng(0)
    lengths = np.where(random.random(3000) < 0.5, 500, random.integers(1, 900, 3000))
    keys = random.permutation(3000).astype(str)
    table = pa.table({"length": lengths, "id": keys, "number": np.arange(3000)})
    packer = GreedyPacker(2048)
    if samples == 0:
        monkeypatch.setattr(
            exchange, "scatter", lambda numbers: np.full(len(numbers), 1, np.uint64)
        )
    monkeypatch.setattr(exchange, "SAMPLES", max(1, samples))
    with without_ray(20_000):
        found, _ = pack_dataset(cut(table, list(range(0, 3000, 5))), packer, order="id")
    numbers = pa.concat_tables(found)["number"].to_pylist()
    assert numbers == packer.pack_lengths(lengths, keys).indices.tolist()


def test_first_ranks() -> None:
    sizes = [
        ranges.SizeRange(9, 9, 0),
        ranges.SizeRange(9, 9, 1),
        ranges.SizeRange(9, 9, 2),
        ranges.SizeRange(8, 3),
        ranges.SizeRange(2, 2, 0),
        ranges.SizeRange(2, 2, 1),
    ]
    assert find_first_ranks(sizes, np.array([5, 6, 7, 8, 9, 1])) == [0, 5, 11, 0, 0, 9]


@given(cases(), st.sampled_from([1, 2, 3, 50]), st.integers(1, 2**40))
def test_ranges_cover_everything(case: Case, num_ranges: int, num_bytes: int) -> None:
    packer = GreedyPacker(**case.parameters)
    lengths = [min(length, 2**30) for length in case.lengths or [1]]
    counts = packer.count_silently(lengths)
    layout = packer.lay_out(counts)
    edges = ranges.divide_batches(layout, num_bytes, num_ranges)
    assert edges[0] == 0
    assert edges[-1] == layout.num_batches
    assert (np.diff(edges) > 0).all()
    assert len(edges) <= num_ranges + 1
    offsets = packer.pack_lengths(lengths).offsets
    assert ranges.rows_before(layout, edges).tolist() == offsets[edges].tolist()
    sizes = ranges.divide_sizes(counts, num_bytes, num_ranges)
    covered = [size for size in sizes if size.part == 0]
    for before, after in itertools.pairwise(covered):
        assert before.smallest > after.largest
    inside = [
        sum(size.smallest <= tokens <= size.largest for size in covered)
        for tokens in counts.tokens.tolist()
    ]
    assert inside == [1] * len(inside)


def test_ranges_are_alike() -> None:
    """Neither rows nor tokens of a range are many times those of another."""
    lengths = np.random.default_rng(0).lognormal(5.6, 0.75, 200_000).clip(1, 40_000).astype(int)
    packer = GreedyPacker(4096)
    counts = packer.count_silently(lengths)
    layout = packer.lay_out(counts)
    rows = np.diff(ranges.rows_before(layout, ranges.divide_batches(layout, 2**30, 16)))
    assert len(rows) == 16
    assert rows.max() < 4 * rows.min()
    sizes = ranges.divide_sizes(counts, 2**30, 16)
    tokens = np.minimum(lengths, 1022) + 2
    held = [int(np.sum((tokens <= s.largest) & (tokens >= s.smallest))) for s in sizes]
    assert max(held) < 3 * np.mean(held)


def table_of(**columns: Any) -> pa.Table:
    return pa.table({"id": ["a", "b", "c"], "length": [3, 2, 1], **columns})


def test_blocks_that_change() -> None:
    """A block that Ray makes anew with other lengths or IDs is an error."""
    packer = GreedyPacker(100)
    job = Job(packer, "length", "id")
    block = table_of()
    counted = count_table(block, job)
    position = Position(3, 0, 0, counted)
    assert len(choose_table(block, position, job, pa.large_string(), False).packed) == 3
    for changed in (
        table_of(length=[3, 1, 2]),
        table_of(length=[3, 2, 2]),
        table_of(id=["a", "b", "d"]),
        table_of(id=["ab", "", "c"]),
        block.slice(0, 2),
    ):
        with pytest.raises(RuntimeError, match="block 3 changed after it was counted"):
            choose_table(changed, position, job, pa.large_string(), False)


def test_lost_rows_are_an_error() -> None:
    packer = GreedyPacker(6, num_threads=1)
    job = Job(packer, "length", "id")
    counted = count_table(table_of(), job)
    plan = make_exchange(job, packer.lay_out(counted.counts), counted, pa.large_string(), False)
    rows = pa.table({"batch": [0, 1, 1], "slot": [0, 0, 1], "id": ["a", "b", "c"]})
    assert gather_batches(plan, 0, 3, lambda table, *_: table, None, rows[1:], rows[:1]) == rows
    for parts in ([rows[:2]], [rows[1:]], [rows, rows[:1]], [rows[:2], rows[:1]]):
        with pytest.raises(RuntimeError, match="rows of batches from 0 on are missing"):
            gather_batches(plan, 0, 3, lambda table, *_: table, None, *parts)


@given(
    st.lists(st.lists(st.text(max_size=3), max_size=8), min_size=1, max_size=4),
    st.sampled_from([1, 20, 2**27]),
    st.sampled_from([0, 2, 2**22]),
)
def test_duplicates(blocks: list[list[str]], task_bytes: int, max_repeated: int) -> None:
    job = Job(GreedyPacker(100, num_threads=1), "length", "id", makes_plan=True)
    every = [name for block in blocks for name in block]
    tables = [
        pa.table(
            {
                "id": pa.array(
                    [name.encode("utf-8", "replace").decode() for name in block], pa.large_string()
                ),
                "length": pa.array([1] * len(block), pa.int64()),
            }
        )
        for block in blocks
    ]
    every = [name for table in tables for name in table["id"].to_pylist()]
    groups = [
        Group([table], number, count_table(table, job), None) for number, table in enumerate(tables)
    ]
    repeated = sorted({name for name in every if every.count(name) > 1})
    with without_ray(task_bytes), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("virnucpro.cluster.duplicates.MAX_REPEATED", max_repeated)
        found = count_duplicates(groups, 2)
    assert found == (len(every) - len(set(every)), repeated[:2])


def test_lists_of_batches() -> None:
    table = pa.table(
        {
            "batch": pa.array([4, 4, 6], pa.int32()),
            "slot": [0, 1, 0],
            "tokens": [9, 8, 7],
            "text": ["a", "b", "c"],
        }
    )
    found = list_batches(table, 0, ("batch", "slot", "tokens"))
    assert found.to_pydict() == {
        "batch": [4, 6],
        "text": [["a", "b"], ["c"]],
        "tokens": [[9, 8], [7]],
    }
    assert found.schema.field("batch").type == pa.int32()

"""Lists of dicts: what is read, what is owned, and what happens when records misbehave."""

from __future__ import annotations

import contextlib
import gc
import logging
import subprocess
import sys
import threading
from collections import UserDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import texts

from virnucpro import kernel
from virnucpro.data import GreedyPacker

Record = dict[str, Any]


def make_records(num: int, seed: int = 0) -> list[Record]:
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(5.6, 0.75, num)).astype(int).tolist()
    ids = rng.permutation(num).tolist()
    # Objects of their own, so that references can be counted.
    return [
        {"id": f"NC_{name:06d}", "sequence": "".join(["M", "K" * length])}
        for name, length in zip(ids, lengths, strict=True)
    ]


def references(records: list[Record]) -> list[int]:
    counts = []
    for record in records:
        counts += [sys.getrefcount(record)]
        counts += [sys.getrefcount(value) for value in record.values()]
    return counts


CALLS: dict[str, Callable[[GreedyPacker, Any], Any]] = {
    "pack_sequences": GreedyPacker.pack_sequences,
    "sort_by_length": GreedyPacker.sort_by_length,
    "compute_efficiency": lambda packer, records: packer.compute_efficiency(
        [[record] for record in records]
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_reference_is_leaked_or_stolen(name: str, caplog: pytest.LogCaptureFixture) -> None:
    # A captured warning would hold the ID that it names.
    caplog.set_level(logging.CRITICAL, "virnucpro.data.packing")
    records = make_records(3000)
    packer = GreedyPacker(4096)
    before = references(records)
    result = CALLS[name](packer, records)
    del result
    assert references(records) == before


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "bad", [None, {"id": "x"}, {"id": "x", "sequence": 3}, {"id": 3.5, "sequence": 3}], ids=repr
)
def test_a_bad_record_at_the_end_leaves_nothing_behind(name: str, bad: Any) -> None:
    records = make_records(3000)
    before = references(records)
    with pytest.raises((TypeError, ValueError), match=r"\[3000\]|\[0\]"):
        CALLS[name](GreedyPacker(4096), [*records, bad])
    assert references(records) == before


@pytest.mark.slow
@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collector_is_paused_and_restored(enabled: bool) -> None:
    records = make_records(20_000)
    plan = GreedyPacker(4096).pack_lengths([len(record["sequence"]) for record in records])
    collections: list[str] = []
    watch = lambda phase, _: collections.append(phase)  # noqa: E731
    was_enabled = gc.isenabled()
    gc.callbacks.append(watch)
    try:
        (gc.enable if enabled else gc.disable)()
        collections.clear()
        batches = kernel.gather(list(records), plan.indices, plan.offsets)
        # Nothing that the collector knows is made before this.
        during = len(collections)
        assert during == 0
        assert gc.isenabled() == enabled
        with pytest.raises(IndexError):
            kernel.gather(list(records), np.array([0, 20_000]), np.array([0, 1, 2]))
        assert gc.isenabled() == enabled
    finally:
        gc.callbacks.remove(watch)
        (gc.enable if was_enabled else gc.disable)()
    assert [[record["id"] for record in batch] for batch in batches] == [
        [records[row]["id"] for row in rows] for rows in plan
    ]
    assert all(map(gc.is_tracked, batches))


@pytest.mark.process
def test_failed_allocations_leave_nothing_behind() -> None:
    pytest.importorskip("_testcapi")
    code = """
import sys, _testcapi
import numpy as np
from virnucpro import kernel
records = [{"id": f"seq{i:04d}", "sequence": "M" * (i + 1)} for i in range(1500)]
rows = np.arange(1500)[::-1].copy()
offsets = np.arange(0, 1501, 3)

def gather():
    return kernel.gather(list(records), rows, offsets)

def read():
    copies = list(records)
    ids, lengths = kernel.read_records(copies, 1000)
    return ids, lengths.tolist(), copies

def references():
    return [sys.getrefcount(value) for record in records for value in (record, *record.values())]

for call in (gather, read):
    expected = call()
    before = references()
    failures = 0
    for start in range(1, 700):
        # Only this allocation fails.
        _testcapi.set_nomemory(start, start + 1)
        try:
            result = call()
        except MemoryError:
            failures += 1
            result = None
        finally:
            _testcapi.remove_mem_hooks()
        assert result is None or result == expected, start
        del result
        assert references() == before, start
    print(call.__name__, failures)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[-500:]) == (0, "")
    failures = dict(line.split() for line in done.stdout.splitlines())
    assert int(failures["gather"]) > 500
    assert int(failures["read"]) > 5


def test_any_iterable_of_records() -> None:
    records = make_records(50)
    packer = GreedyPacker(4096)
    expected = packer.pack_sequences(records)
    for same in (tuple(records), iter(records), deque(records), (record for record in records)):
        assert packer.pack_sequences(same) == expected
    assert packer.compute_efficiency(tuple(map(iter, expected))) == (
        packer.compute_efficiency(expected)
    )
    with pytest.raises(TypeError, match=r"sequences\[0\] must be a dict \(got UserDict\)"):
        packer.pack_sequences([UserDict(records[0])])  # type: ignore[list-item]


def test_subclasses_and_int_ids_take_the_slow_path_to_the_same_result() -> None:
    class Protein(dict[str, Any]):
        pass

    class Name(str):
        __slots__ = ()

    records = make_records(200)
    packer = GreedyPacker(4096)
    expected = [[record["id"] for record in batch] for batch in packer.pack_sequences(records)]
    proteins = [Protein(record) for record in records]
    packed = packer.pack_sequences(proteins)
    assert [[record["id"] for record in batch] for batch in packed] == expected
    assert {id(record) for batch in packed for record in batch if "truncated" not in record} <= (
        set(map(id, proteins))
    )
    assert packer.compute_efficiency(packed) == (
        packer.compute_efficiency(packer.pack_sequences(records))
    )
    named = [{**record, "id": Name(record["id"])} for record in records]
    packed = packer.pack_sequences(named)
    assert [[record["id"] for record in batch] for batch in packed] == expected
    numbered = [{**record, "id": int(record["id"][3:])} for record in records]
    packed = packer.pack_sequences(numbered)
    assert [[f"NC_{record['id']:06d}" for record in batch] for batch in packed] == expected


class Meddler:
    """A key with the hash of another, that runs code when it is compared."""

    def __init__(self, like: str, meddle: Callable[[], None]) -> None:
        self.like = like
        self.meddle = meddle

    def __hash__(self) -> int:
        return hash(self.like)

    def __eq__(self, other: object) -> bool:
        self.meddle()
        return False


@pytest.mark.parametrize("key", ["id", "sequence"])
def test_keys_that_change_their_record_when_compared(key: str) -> None:
    record: dict[Any, Any] = {}

    def meddle() -> None:
        record.clear()
        gc.collect()

    record[Meddler(key, meddle)] = 1
    record["id"] = "".join(["i", "d"])
    record["sequence"] = "M" * 50
    # Filling the dict has run `meddle` as well.
    record.setdefault("id", "id")
    record.setdefault("sequence", "M" * 50)
    for _ in range(3):
        with contextlib.suppress(ValueError, RuntimeError):
            GreedyPacker(4096).pack_sequences([record, *make_records(3)])


@pytest.mark.parametrize("identifier", ["a", 3])
@pytest.mark.parametrize("key", ["id", "sequence"])
@pytest.mark.parametrize("overlong", ["truncate", "error", "drop", "split"])
def test_records_that_lose_a_key_at_any_look_up(overlong: str, key: str, identifier: Any) -> None:
    def pack(look_up: int) -> None:
        record: dict[Any, Any] = {}
        is_due = iter([False])

        def meddle() -> None:
            if next(is_due, False):
                record.pop(key)

        record[Meddler(key, meddle)] = 1
        record.update(id=identifier, sequence="MKT")
        is_due = iter([False] * look_up + [True])
        GreedyPacker(2, special_tokens=0, overlong=overlong).pack_sequences([record])

    for look_up in range(8):
        # Lost too late, in time to be missed, or while a message is worded.
        with contextlib.suppress(ValueError):
            pack(look_up)


def test_keys_that_raise_when_compared() -> None:
    def refuse() -> None:
        raise RuntimeError("compared")

    record: dict[Any, Any] = {"sequence": "MK"}
    record[Meddler("id", refuse)] = 1
    with pytest.raises(RuntimeError, match="compared"):
        GreedyPacker(4096).pack_sequences([record])


@pytest.mark.slow
def test_another_thread_empties_list_and_records_meanwhile() -> None:
    packer = GreedyPacker(4096, num_threads=2)
    for seed in range(5):
        records = make_records(20_000, seed)
        expected = [record["id"] for record in packer.sort_by_length(records)]
        own = [dict(record) for record in records]
        started = threading.Event()

        def destroy(own: list[Record] = own, started: threading.Event = started) -> None:
            started.wait()
            for record in own:
                record["id"] = None
            own.clear()

        thread = threading.Thread(target=destroy)
        thread.start()
        snapshot = list(own)
        started.set()
        try:
            in_order = packer.sort_by_length(snapshot)
        except TypeError:
            in_order = None
        thread.join()
        if in_order is not None:
            assert len(in_order) == len(expected)


def test_gather_validates_its_arguments() -> None:
    rows = np.array([2, 0, 1])
    assert kernel.gather([1, 2, 3], rows, np.array([0, 1, 1, 3])) == [[3], [], [1, 2]]
    assert kernel.gather([1, 2, 3], rows.astype(np.int32), np.array([0, 3])) == [[3, 1, 2]]
    records = [1, 2, 3]
    assert kernel.gather(records, np.array([1]), np.array([0, 1])) == [[2]]
    assert records == [1, None, 3]
    core: Any = kernel
    for error, arguments in (
        (IndexError, (records, rows, np.array([0, 4]))),
        (IndexError, (records, rows, np.array([-1, 3]))),
        (IndexError, (records, rows, np.array([2, 1]))),
        (IndexError, (records, np.array([3]), np.array([0, 1]))),
        (IndexError, (records, np.array([-1]), np.array([0, 1]))),
        (IndexError, (records, np.array([0, 0]), np.array([0, 2]))),
        (TypeError, (records, rows, np.array([], np.int64))),
        (TypeError, (records, rows[::2], np.array([0, 1]))),
        (TypeError, (records, rows.astype(np.int16), np.array([0, 1]))),
        (TypeError, (tuple(records), rows, np.array([0, 1]))),
    ):
        given, *others = arguments
        with pytest.raises(error):
            core.gather(type(given)([1, 2, 3]), *others)


@given(st.lists(st.tuples(texts(), st.integers(0, 60)), max_size=40), st.integers(3, 80))
def test_dicts_and_arrays_agree(pairs: list[tuple[str, int]], budget: int) -> None:
    packer = GreedyPacker(budget)
    records = [
        {"id": name, "sequence": "M" * length, "row": row}
        for row, (name, length) in enumerate(pairs)
    ]
    plan = packer.pack_lengths([length for _, length in pairs], [name for name, _ in pairs])
    packed = packer.pack_sequences(records)
    assert [[record["row"] for record in batch] for batch in packed] == [
        rows.tolist() for rows in plan
    ]
    in_order = packer.sort_by_length(records)
    assert in_order == sorted(records, key=lambda r: (-len(str(r["sequence"])), r["id"]))


class Protein(dict[str, Any]):
    """A record that only Python code reads."""


def as_written(record: Record, how: str) -> Record:
    """Return a record with the same content in another form."""
    if how == "new keys":
        return {"".join([key[:1], key[1:]]): value for key, value in record.items()}
    if how == "other order":
        return dict(reversed(record.items()))
    if how == "many keys":
        return {**{f"key{i}": i for i in range(12)}, **record}
    if how == "other keys":
        others: dict[Any, Any] = {3: 4, None: "id", "sequenc": 1, "sequence\0": 2, "ID": 3}
        return {**others, **record}
    return Protein(record) if how == "subclass" else record


FORMS = ["plain", "plain", "plain", "new keys", "other order", "many keys", "other keys"]


@given(
    st.lists(st.tuples(texts(), st.integers(0, 9), st.sampled_from(FORMS)), max_size=80),
    st.booleans(),
)
def test_records_are_truncated_in_copies(
    parts: list[tuple[str, int, str]], has_subclass: bool
) -> None:
    records = [
        as_written({"id": name, "row": row, "sequence": "MKTAYIAKQ"[:length]}, how)
        for row, (name, length, how) in enumerate(parts)
    ]
    if has_subclass:
        records.insert(len(records) // 2, Protein({"id": "a", "row": -1, "sequence": "MKTAYIA"}))
    contents = [dict(record) for record in records]
    batches = GreedyPacker(12, 5).pack_sequences(records)
    assert [dict(record) for record in records] == contents
    packed = {record["row"]: record for batch in batches for record in batch}
    assert len(packed) == sum(map(len, batches)) == len(records)
    for record in records:
        found = packed[record["row"]]
        if len(record["sequence"]) <= 5:
            assert found is record
        else:
            assert type(found) is dict
            expected = {**record, "sequence": record["sequence"][:5], "truncated": True}
            assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize("num_plain", [0, 1, 15, 16, 17, 40])
def test_records_that_empty_the_list_while_it_is_read(num_plain: int) -> None:
    records: list[Any] = make_records(num_plain)
    odd: dict[Any, Any] = {Meddler("id", records.clear): 1}
    odd.update(id="x", sequence="MKT")
    records += [odd, *make_records(40)]
    with pytest.raises(IndexError, match="changed while they were being read"):
        kernel.read_records(records, 2)
    assert records == []


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("key", ["truncated", "sequence", "id"])
def test_records_that_change_others_while_they_are_truncated(key: str, is_last: bool) -> None:
    records: list[Any] = make_records(60)
    others = records[1:20] + records[21:59]

    def meddle() -> None:
        for other in others:
            other.clear()

    for row in (0, 20, 59):
        odd: dict[Any, Any] = {Meddler(key, meddle): 1}
        record = make_records(1)[0]
        records[row] = {**record, **odd} if is_last else {**odd, **record}
    with contextlib.suppress(ValueError):
        GreedyPacker(100, 5).pack_sequences(records)


def test_messages_that_are_not_shown_are_not_worded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    packer = GreedyPacker(4096, 10)
    packer.pack_sequences(make_records(200))
    monkeypatch.delattr("virnucpro.data.packing.shown")
    caplog.clear()
    with caplog.at_level(logging.INFO, "virnucpro.data.packing"):
        packer.pack_sequences(make_records(200))
    assert [entry.levelname for entry in caplog.records] == ["WARNING"]

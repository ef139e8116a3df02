"""What may happen around a call: interrupts, threads, forks, odd arrays, numbers without end."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from virnucpro.data import GreedyPacker, TokenCounts

Array = NDArray[Any]
Record = dict[str, Any]


def random_lengths(num_rows: int, seed: int = 0) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(5.6, 0.75, num_rows)).clip(0, 1022).astype(np.int32)


def make_records(num: int, seed: int = 0) -> list[Record]:
    names = np.random.default_rng(seed).permutation(num).tolist()
    return [
        {"id": f"seq{name:06d}", "sequence": "M" * length}
        for name, length in zip(names, random_lengths(num, seed).tolist(), strict=True)
    ]


def run_script(code: str) -> str:
    """What a program of its own prints."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# Interrupts


def test_interrupted_calls() -> None:
    code = """
import signal, sys, threading, time
import numpy as np
from virnucpro.data import GreedyPacker

signal.signal(signal.SIGINT, signal.default_int_handler)
main = threading.main_thread().ident
lengths = np.random.default_rng(0).integers(1, 1000, 2_000_000)
records = [{"id": f"seq{i % 1000}", "sequence": "M" * (i % 7)} for i in range(200_000)]
packer = GreedyPacker(4096, num_threads=2)
calls = {
    "_count": lambda: packer.count(lengths),
    "_list_rows": lambda: packer.pack_lengths(lengths),
    "_list_rows, ids": lambda: packer.pack_lengths(lengths, lengths % 10),
    "_list_rows, records": lambda: packer.pack_sequences(records),
    "_assign": lambda: packer.assign_batches(lengths).tobytes(),
}

def interrupt(where):
    while running:
        # This thread runs while that one is there: that one is in the kernel.
        if sys._current_frames()[main].f_code.co_name == where:
            signal.pthread_kill(main, signal.SIGINT)
            break
        time.sleep(0.0001)

for name, call in calls.items():
    expected = call()
    running = True
    thread = threading.Thread(target=interrupt, args=[name.split(",")[0]])
    try:
        thread.start()
        call()
        print(name, "came to its end")
    except KeyboardInterrupt:
        pass
    running = False
    thread.join()
    assert call() == expected, name
    print(name)
"""
    expected = ["_count", "_list_rows", "_list_rows, ids", "_list_rows, records", "_assign"]
    assert run_script(code).splitlines() == expected


# Arrays that another thread changes during the call


@contextmanager
def changing(array: Array, *contents: Array) -> Iterator[None]:
    """Fill an array with these contents in turn, over and over, on another thread."""
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for content in contents:
                array[:] = content

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# Below 4,096 residues a table counts while lengths are checked, above it a second pass does, and
# of so wide a range they are sorted.
@pytest.mark.parametrize("scale", [1, 100, 2**30])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_lengths_change_during_the_call(scale: int, num_threads: int) -> None:
    one, other = (random_lengths(200_000, seed).astype(np.int64) * scale for seed in (0, 1))
    packer = GreedyPacker(4096 * scale, 1022 * scale, num_threads=num_threads)
    plan, layout = packer.pack_lengths(one), packer.lay_out(packer.count(one))
    ids = np.arange(len(one)) % 1000
    expected = layout.assign(one)
    lengths = one.copy()
    with changing(lengths, other, one - 5 * scale, one):
        for _ in range(10):
            with suppress(ValueError):
                assert packer.count(lengths).num_sequences == len(lengths)
            with suppress(ValueError):
                batches = packer.assign_batches(lengths)
                assert 0 <= batches.min() <= batches.max() < len(lengths)
            for call in layout.assign, layout.slots:
                with suppress(ValueError):
                    places = call(lengths)
                    assert 0 <= places.min() <= places.max() < layout.num_batches
            for order in None, ids:
                with suppress(ValueError):
                    rows = packer.pack_lengths(lengths, order).indices
                    np.testing.assert_array_equal(np.sort(rows), np.arange(len(lengths)))
    lengths[:] = one
    assert packer.pack_lengths(lengths) == plan
    np.testing.assert_array_equal(layout.assign(lengths), expected)


@pytest.mark.parametrize("dtype", ["i8", "U12"])
def test_ids_change_during_the_call(dtype: str) -> None:
    lengths = random_lengths(200_000) % 50
    rng = np.random.default_rng(0)
    one, other = (rng.permutation(len(lengths)).astype(dtype) for _ in range(2))
    packer = GreedyPacker(4096, num_threads=2)
    plan = packer.pack_lengths(lengths, one)
    ids = one.copy()
    with changing(ids, other, one):
        for _ in range(5):
            spoilt = packer.pack_lengths(lengths, ids)
            np.testing.assert_array_equal(np.sort(spoilt.indices), np.arange(len(lengths)))
            np.testing.assert_array_equal(spoilt.offsets, plan.offsets)
    ids[:] = one
    assert packer.pack_lengths(lengths, ids) == plan


def test_out_changes_during_the_call() -> None:
    lengths = random_lengths(500_000)
    packer = GreedyPacker(4096, num_threads=2)
    expected = packer.assign_batches(lengths)
    out = np.zeros_like(expected)
    with changing(out, np.full_like(out, -1)):
        for _ in range(10):
            assert packer.assign_batches(lengths, out=out) is out
    np.testing.assert_array_equal(packer.assign_batches(lengths, out=out), expected)


# Arrays of every kind in memory


def same_in_memory(values: Array, folder: Path) -> dict[str, Array]:
    """The same values as they may lie in memory."""
    read_only = values.copy()
    read_only.flags.writeable = False
    fields = np.zeros(len(values), [("flag", "i1"), ("value", values.dtype)])
    fields["value"] = values
    path, odd_path = folder / "values", folder / "odd values"
    path.write_bytes(values.tobytes())
    odd_path.write_bytes(b"x" + values.tobytes())
    forms = {
        "misaligned": np.frombuffer(b"x" + values.tobytes(), values.dtype, offset=1),
        "strided": np.repeat(values, 3)[::3],
        "backwards": values[::-1].copy()[::-1],
        "a column": np.stack([values, values[::-1]], axis=1)[:, 0],
        "read-only": read_only,
        "of the other byte order": values.astype(values.dtype.newbyteorder()),
        "a field of a structured array": fields["value"],
        "a record array": fields.view(np.recarray).value,
        "mapped to read": np.memmap(path, values.dtype, "r"),
        "mapped to read and write": np.memmap(path, values.dtype, "r+"),
        "mapped copy on write": np.memmap(path, values.dtype, "c"),
        "mapped at an odd place": np.memmap(odd_path, values.dtype, "r", offset=1),
    }
    for form in forms.values():
        np.testing.assert_array_equal(form, values)
    assert not forms["misaligned"].flags.aligned
    assert not forms["a field of a structured array"].flags.aligned
    assert not forms["of the other byte order"].dtype.isnative
    return forms


def test_lengths_in_memory(tmp_path: Path) -> None:
    lengths = random_lengths(150_000)
    packer = GreedyPacker(4096, 500, num_threads=2)
    plan = packer.pack_lengths(lengths)
    batches, slots = plan.assign(lengths), plan.slots(lengths)
    for name, same in same_in_memory(lengths, tmp_path).items():
        before = same.copy()
        assert packer.pack_lengths(same) == plan, name
        np.testing.assert_array_equal(packer.assign_batches(same), batches, name)
        np.testing.assert_array_equal(plan.slots(same), slots, name)
        np.testing.assert_array_equal(same, before, name)
    assert packer.pack_lengths(np.broadcast_to(np.int16(7), 9)) == packer.pack_lengths([7] * 9)


@pytest.mark.parametrize("dtype", ["i2", "i8", "u8", "U7"])
def test_ids_in_memory(dtype: str, tmp_path: Path) -> None:
    lengths = random_lengths(3000) % 20
    ids = np.random.default_rng(0).integers(0, 2000, len(lengths)).astype(dtype)
    packer = GreedyPacker(4096)
    plan = packer.pack_lengths(lengths, ids.tolist())
    assert plan != packer.pack_lengths(lengths)
    for name, same in same_in_memory(ids, tmp_path).items():
        assert packer.pack_lengths(lengths, same) == plan, name
    one = np.broadcast_to(ids[0], len(lengths))
    assert packer.pack_lengths(lengths, one) == packer.pack_lengths(lengths)


def test_nothing_in_memory(tmp_path: Path) -> None:
    packer = GreedyPacker(4096)
    (tmp_path / "one").write_bytes(bytes(4))
    mapped = np.memmap(tmp_path / "one", np.int32, "r")
    for nothing in (mapped[:0], mapped[::-1][:0], np.empty((3, 0))[1], np.empty(0, "i4,i4")):
        assert len(packer.pack_lengths(nothing, nothing)) == 0
        out = np.empty(0, np.int64)
        assert packer.assign_batches(nothing, out=out) is out


STRUCTURED = np.zeros(3, [("residues", "i4")])


@pytest.mark.parametrize(
    ("values", "described"),
    [
        (STRUCTURED, r"\[\('residues', '<i4'\)\]"),
        (STRUCTURED.view(np.recarray), "residues"),
        (np.zeros(3, "V8"), r"\|V8"),
        (np.zeros(3, "m8[s]"), r"timedelta64\[s\]"),
        (np.zeros(3, "M8[s]"), r"datetime64\[s\]"),
        (np.zeros(3, complex), "complex128"),
        (np.zeros(3, np.float16), "float16"),
    ],
    ids=str,
)
def test_other_types_are_refused(values: Array, described: str) -> None:
    packer = GreedyPacker(4096)
    layout = packer.lay_out(packer.count([0, 0, 0]))
    for call in packer.pack_lengths, packer.count, packer.assign_batches, layout.assign:
        with pytest.raises(TypeError, match=f"lengths must be integers .got .*{described}"):
            call(values)
    with pytest.raises(TypeError, match=f"ids must be str or int .got .*{described}"):
        packer.pack_lengths([5, 6, 7], values)
    with pytest.raises(TypeError, match=f"out must be int32 or int64 .got .*{described}"):
        layout.assign([0, 0, 0], out=values)


def test_out_in_memory(tmp_path: Path) -> None:
    lengths = random_lengths(1000)
    packer = GreedyPacker(4096)
    expected = packer.assign_batches(lengths)
    for dtype in np.int32, np.int64:
        forms = same_in_memory(np.full(1000, -1, dtype), tmp_path)
        good = ["mapped to read and write", "mapped copy on write"]
        forms["a part"] = np.full(1002, -1, dtype)[1:-1]
        for name in (*good, "a part"):
            assert packer.assign_batches(lengths, out=forms[name]) is forms[name]
            np.testing.assert_array_equal(forms.pop(name), expected)
        # What was written is in the file, what was written to a copy is not.
        np.testing.assert_array_equal(np.fromfile(tmp_path / "values", dtype), expected)
        with pytest.raises(TypeError, match="out must be int32 or int64"):
            packer.assign_batches(lengths, out=forms.pop("of the other byte order"))
        # The same file.
        del forms["mapped to read"]
        for name, out in forms.items():
            with pytest.raises(ValueError, match="out must be contiguous, aligned and writeable"):
                packer.assign_batches(lengths, out=out)
            assert set(out.tolist()) == {-1}, name


def test_out_over_lengths_is_refused() -> None:
    packer = GreedyPacker(4096)
    room = np.arange(8, dtype=np.int64)
    for lengths, out in (
        (room[:5], room[3:]),
        (room[3:], room[:5]),
        (room.view(np.int32)[:4], room[:4]),
        (room[:4], room.view(np.int32)[4:8]),
    ):
        with pytest.raises(ValueError, match="out must not overlap lengths"):
            packer.assign_batches(lengths, out=out)
    assert room.tolist() == list(range(8))
    assert packer.assign_batches(room[:4], out=room[4:]).tolist() == [0] * 4


# Threads and processes


def test_eight_threads_at_once_equal_one() -> None:
    packer = GreedyPacker(4096, num_threads=2)
    inputs = []
    for seed in (0, 1, 2, 3, 0, 0, 1, 1):
        lengths = random_lengths(150_000, seed)
        names = np.random.default_rng(seed).permutation(len(lengths)) % 1000
        inputs.append((lengths, names, names.astype(str), make_records(3000, seed)))
    # Some of them share their arrays and dicts.
    inputs[4], inputs[6] = inputs[0], inputs[1]
    layout = packer.lay_out(packer.count(inputs[0][0]))

    def pack(own: tuple[Array, Array, Array, list[Record]]) -> list[Any]:
        lengths, numbers, texts, records = own
        batches = packer.pack_sequences(records)
        return [
            packer.pack_lengths(lengths),
            packer.pack_lengths(lengths, numbers),
            packer.pack_lengths(lengths, texts),
            packer.assign_batches(lengths).tolist(),
            packer.count(lengths),
            layout.slots(inputs[0][0]).tolist(),
            batches,
            packer.sort_by_length(records),
            packer.compute_efficiency(batches),
        ]

    expected = [pack(own) for own in inputs]
    barrier = threading.Barrier(len(inputs))

    def pack_at_once(own: tuple[Array, Array, Array, list[Record]]) -> list[Any]:
        barrier.wait()
        return pack(own)

    with ThreadPoolExecutor(len(inputs)) as pool:
        for _ in range(2):
            assert list(pool.map(pack_at_once, inputs)) == expected


def test_forks_after_use() -> None:
    code = """
import multiprocessing, os, threading
import numpy as np
from virnucpro.data import GreedyPacker

rng = np.random.default_rng(0)
lengths = rng.integers(1, 1000, 600_000)
ids = rng.integers(0, 1000, len(lengths)).astype(str)
records = [{"id": f"seq{i % 1000}", "sequence": "M" * (i % 7)} for i in range(150_000)]
packer = GreedyPacker(4096, num_threads=8)

def pack():
    return packer.pack_lengths(lengths), packer.pack_lengths(lengths, ids), (
        packer.pack_sequences(records))

expected = pack()

def child_is_right():
    child = os.fork()
    if child == 0:
        os._exit(0 if pack() == expected else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

print(child_is_right())
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(packer.pack_lengths, [lengths] * 4) == [expected[0]] * 4)

# Forks while other threads are packing.
stop = threading.Event()
def pack_on():
    while not stop.is_set():
        packer.pack_lengths(lengths)
threads = [threading.Thread(target=pack_on) for _ in range(2)]
for thread in threads:
    thread.start()
print([child_is_right() for _ in range(4)])
stop.set()
for thread in threads:
    thread.join()
print(pack() == expected)
"""
    assert run_script(code).splitlines() == ["True", "True", "[True, True, True, True]", "True"]


# Numbers without end


def times(counts: TokenCounts, number: int) -> TokenCounts:
    """Counts of so many times the same sequences."""
    if number == 1:
        return counts
    half = times(counts, number // 2)
    return half + half + counts if number % 2 else half + half


@pytest.mark.parametrize("number", [2**31 - 1, 2**31, 2**31 + 1, 2**40, 2**62 + 3])
def test_layouts_of_more_rows_than_any_array(number: int) -> None:
    packer = GreedyPacker(2, special_tokens=0)
    counts = times(packer.count([1]), number)
    layout = packer.lay_out(counts)
    assert (layout.num_sequences, layout.total_tokens) == (number, number)
    assert layout.num_batches == layout.lower_bound == (number + 1) // 2
    assert layout.efficiency == number / (2 * layout.num_batches)
    before = times(packer.count([1]), number - 3)
    batches = layout.assign([1] * 3, before=before)
    slots = layout.slots([1] * 3, before=before)
    assert batches.dtype == slots.dtype == (np.int32 if number < 2**31 else np.int64)
    last = range(number - 3, number)
    assert (batches.tolist(), slots.tolist()) == ([n // 2 for n in last], [n % 2 for n in last])
    if number >= 2**31:
        narrow = np.zeros(3, np.int32)
        with pytest.raises(ValueError, match=rf"int64 for {number:,} sequences \(got int32\)"):
            layout.assign([1] * 3, before=before, out=narrow)
        assert narrow.tolist() == [0] * 3
    with pytest.raises(ValueError, match="the layout has"):
        layout.assign([1] * 4, before=before)
    if number > 2**60:
        with pytest.raises((ValueError, MemoryError)):
            layout.batch_tokens  # noqa: B018


def test_counts_beyond_63_bits_are_refused() -> None:
    packer = GreedyPacker(10, special_tokens=0)
    small, large = (times(packer.count([length]), 2**62) for length in (1, 11))
    for counts, what in (
        (small, "the number of sequences"),
        (large, "the number of sequences"),
        (times(packer.count([2**31]), 2**32 + 4), "the number of truncated residues"),
    ):
        before = counts.sequences.tolist()
        with pytest.raises(OverflowError, match=f"{what} does not fit in 64 bits"):
            counts + counts
        assert counts.sequences.tolist() == before
    with pytest.raises(OverflowError, match="the number of sequences does not fit in 64 bits"):
        small + times(packer.count([2]), 2**62)
    most = small + times(packer.count([1]), 2**62 - 1)
    assert most.num_sequences == most.total_tokens == 2**63 - 1
    assert packer.lay_out(most).num_batches == -(-(2**63 - 1) // 10)
    for more in packer.count([1]), packer.count([5]):
        with pytest.raises(OverflowError, match="the number of sequences does not fit in 64 bits"):
            most + more


def test_totals_beyond_63_bits_are_refused() -> None:
    packer = GreedyPacker(10, special_tokens=0)
    counts = times(packer.count([9]), (2**63 - 1) // 9)
    counts += packer.count([(2**63 - 1) % 9])
    assert counts.total_tokens == packer.lay_out(counts).total_tokens == 2**63 - 1
    for more in packer.count([1]), packer.count([9]), counts:
        beyond = counts + more
        with pytest.raises(OverflowError, match="the number of tokens does not fit in 64 bits"):
            beyond.total_tokens  # noqa: B018
        for method in "ffd", "tight":
            packer.method = method
            with pytest.raises(OverflowError, match="the number of tokens does not fit in 64 bits"):
                packer.lay_out(beyond)
    with pytest.raises(OverflowError, match="the number of tokens does not fit in 64 bits"):
        GreedyPacker(2**62, special_tokens=2**62 - 1).pack_sequences(make_records(3))


@pytest.mark.long
def test_more_rows_than_31_bits_number(tmp_path: Path) -> None:
    large, small = 2**31 + 2**20, 7
    num = large + small
    lengths = np.memmap(tmp_path / "lengths", np.uint8, "w+", shape=(num,))
    lengths[:large], lengths[large:] = 60, 40
    out = np.memmap(tmp_path / "batches", np.int64, "w+", shape=(num,))
    # Else pytest would keep 20 GB for some runs.
    for path in tmp_path.iterdir():
        path.unlink()
    packer = GreedyPacker(100, special_tokens=0)
    assert packer.assign_batches(lengths, out=out) is out
    # Each batch has a sequence of 60, the first ones one of 40 as well.
    step = 2**24
    for begin in range(0, large, step):
        end = min(begin + step, large)
        np.testing.assert_array_equal(out[begin:end], np.arange(begin, end))
    assert out[large:].tolist() == list(range(small))
    with pytest.raises(ValueError, match=rf"int64 for {num:,} sequences \(got int32\)"):
        packer.assign_batches(lengths, out=out.view(np.int32)[:num])

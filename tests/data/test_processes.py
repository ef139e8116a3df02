"""Interrupts and forks, in processes of their own."""

from __future__ import annotations

import pytest
from script import run_script

pytestmark = pytest.mark.process


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
    "count_silently": lambda: packer.count(lengths),
    "pack_silently": lambda: packer.pack_lengths(lengths),
    "pack_silently, ids": lambda: packer.pack_lengths(lengths, lengths % 10),
    "pack_sequences": lambda: packer.pack_sequences(records),
    "_assign": lambda: packer.assign_batches(lengths).tobytes(),
}

def interrupt(where):
    while running:
        # This thread runs while that one is there: that one is in the kernel.
        if sys._current_frames()[main].f_code.co_name == where:
            signal.pthread_kill(main, signal.SIGINT)
            break
        time.sleep(0.0001)

def is_interrupted(name, call):
    global running
    running = True
    thread = threading.Thread(target=interrupt, args=[name.split(",")[0]])
    try:
        thread.start()
        call()
        return False
    except KeyboardInterrupt:
        return True
    finally:
        running = False
        thread.join()

for name, call in calls.items():
    expected = call()
    # On a busy machine, the thread may be too late.
    if not any(is_interrupted(name, call) for _ in range(50)):
        print(name, "came to its end")
    assert call() == expected, name
    print(name)
"""
    expected = [
        "count_silently",
        "pack_silently",
        "pack_silently, ids",
        "pack_sequences",
        "_assign",
    ]
    assert run_script(code).splitlines() == expected


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

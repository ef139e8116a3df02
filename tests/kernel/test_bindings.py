"""What Python can do to the compiled module and its classes without harm."""

from __future__ import annotations

import copy
import copyreg
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

from virnucpro import kernel
from virnucpro.data import GreedyPacker


def instances() -> list[Any]:
    counts = GreedyPacker(100).count([5, 6]).core
    scanner = kernel.make_scanner(True, True, True, True)
    return [counts, kernel.first_fit_decreasing(counts), scanner]


NAMES = [type(value).__name__ for value in instances()]


@pytest.mark.parametrize("value", instances(), ids=NAMES)
def test_instances_keep_their_class(value: Any) -> None:
    kind = type(value)
    base = kind.__mro__[1]
    others = [type(other) for other in instances()]
    for other in [*others, base, object, type("Python", (), {"__slots__": ()})]:
        with pytest.raises(TypeError, match="__class__ assignment"):
            value.__class__ = other
    with pytest.raises(TypeError, match="__class__ assignment"):
        type("Python", (), {})().__class__ = kind


@pytest.mark.parametrize("value", instances(), ids=NAMES)
def test_instances_are_made_by_functions_only(value: Any) -> None:
    kind: Any = type(value)
    base: Any = kind.__mro__[1]
    makers: list[Callable[[], Any]] = [
        kind,
        lambda: kind.__new__(kind),
        lambda: base.__new__(kind),
        lambda: object.__new__(kind),
        lambda: copyreg._reconstructor(kind, object, None),  # type: ignore[attr-defined]  # noqa: SLF001
        lambda: copy.copy(value),
        lambda: copy.deepcopy(value),
        *(partial(pickle.dumps, value, protocol) for protocol in range(6)),
        value.__reduce__,
        *(partial(value.__reduce_ex__, protocol) for protocol in range(6)),
        lambda: type("Derived", (kind,), {}),
        lambda: type("Derived", (kind,), {"__slots__": ("more",)}),
        lambda: type("Derived", (kind, *{type(other) for other in instances()} - {kind}), {}),
        lambda: kind.__init__(value),
        lambda: base.__init__(value),
    ]
    for make in makers:
        with pytest.raises(TypeError):
            make()
    for member in [member for name, member in vars(kind).items() if not name.startswith("_")]:
        call: Any = member.fget if isinstance(member, property) else member
        for wrong in (None, object(), *(other for other in instances() if type(other) is not kind)):
            with pytest.raises(TypeError):
                call(wrong)


@pytest.mark.parametrize("value", instances(), ids=NAMES)
def test_classes_cannot_be_changed(value: Any) -> None:
    kind: Any = type(value)
    for name in ("__init__", "__bases__", "__eq__", "take_records", "tokens", "unknown"):
        with pytest.raises(TypeError, match="immutable type"):
            setattr(kind, name, object)
        with pytest.raises(TypeError, match="immutable type"):
            delattr(kind, name)
    for name in ("tokens", "fault", "runs", "unknown"):
        with pytest.raises(AttributeError):
            setattr(value, name, 1)
        with pytest.raises(AttributeError):
            delattr(value, name)


@contextmanager
def collecting(callback: Callable[[str, Any], None]) -> Iterator[None]:
    """Run the collector, and with it a callback, at every new object."""
    threshold = gc.get_threshold()
    gc.callbacks.append(callback)
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(callback)


def unfinished() -> int:
    """Return the number of young tuples and lists with items that are null."""
    return sum(
        type(x) in (tuple, list) and len(gc.get_referents(x)) < len(x)
        for x in gc.get_objects(generation=0)
    )


def test_comparisons_find_nothing_unfinished() -> None:
    found: list[int] = []

    class Key(str):
        __slots__ = ()

        def __hash__(self) -> int:
            return hash("id")

        def __eq__(self, other: object) -> bool:
            found.append(unfinished())
            return False

    records: list[Any] = [{"id": f"{i}", "sequence": "M"} for i in range(9)]
    for row in (0, 4, 8):
        records[row] = {Key("other"): 0, "id": f"{row}", "sequence": "M"}
    found.clear()
    ids, lengths = kernel.read_records(records, None) or ((), np.empty(0, np.int64))
    assert len(found) >= 3
    assert sum(found) == 0
    assert ids == tuple("012345678")
    assert lengths.tolist() == [1] * 9


def test_the_collector_finds_nothing_unfinished() -> None:
    scanner = kernel.make_scanner(True, True, True, True)
    scanner.feed(b"".join(b">%d\nM\n" % i for i in range(300)))
    scanner.finish()
    records = [{"id": f"{i}", "sequence": "M"} for i in range(300)]
    indices, offsets = np.arange(300, dtype=np.int32), np.arange(0, 301, 2)
    found: list[int] = []
    with collecting(lambda _phase, _info: found.append(unfinished())):
        taken = scanner.take_records()
        kernel.read_records(list(records), 0)
        batches = kernel.gather(list(records), indices, offsets)
    assert found
    assert sum(found) == 0
    assert taken == [(f"{i}", "M") for i in range(300)]
    assert batches == [records[i : i + 2] for i in range(0, 300, 2)]


SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ModuleNotFoundError:
    import _xxsubinterpreters as interpreters
code = '''
import warnings
warnings.simplefilter("ignore")
try:
    import virnucpro.kernel
except ImportError as error:
    print(error, flush=True)
'''
for isolated in (True, False):
    if sys.version_info >= (3, 13):
        interpreter = interpreters.create("isolated" if isolated else "legacy")
    else:
        interpreter = interpreters.create(isolated=isolated)
    interpreters.run_string(interpreter, code)
    interpreters.destroy(interpreter)
import virnucpro.kernel
print("main", virnucpro.kernel.__name__)
"""


@pytest.mark.process
def test_subinterpreters_are_refused() -> None:
    result = subprocess.run(
        [sys.executable, "-c", SUBINTERPRETER], capture_output=True, text=True, timeout=60
    )
    *refused, imported = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, "")
    assert imported == "main virnucpro.kernel"
    assert len(refused) == 2
    for message in refused:
        assert "in the main interpreter" in message or "loading in subinterpreters" in message

"""Fuzzes what users pass in, odd objects included, against the reference.

Usage: fuzz_records.py [OPTION OF LIBFUZZER]... [CORPUS]...
"""

from __future__ import annotations

import gc
import logging
import operator
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import reference

from virnucpro.data import GreedyPacker

Record = dict[Any, Any]

# What bad input may raise.
REFUSALS = (ValueError, TypeError, OverflowError)


class OddError(Exception):
    """Raised by the odd objects below."""


class Choices:
    """Bytes as choices; beyond their end each is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def below(self, number: int) -> int:
        value = next(self._data, 0)
        return (value * 256 + next(self._data, 0) if number > 256 else value) % number

    def one_of(self, options: Any) -> Any:
        return options[self.below(len(options))]

    def rarely(self) -> bool:
        return self.below(16) == 15

    def several(self, draw: Callable[[], Any]) -> list[Any]:
        """At most 40."""
        found: list[Any] = []
        while len(found) < 40 and self.below(8):
            found.append(draw())
        return found


def refuse(*_: object) -> Any:
    raise OddError


class Name(str):
    """Nothing but another type."""

    __slots__ = ()


class Number(int):
    """Nothing but another type."""

    __slots__ = ()


class Protein(dict[Any, Any]):
    """Nothing but another type."""


class ShyName(str):
    """Raises whatever it is asked."""

    __slots__ = ()
    __len__ = __eq__ = __lt__ = __hash__ = __getitem__ = refuse
    __str__ = __repr__ = __format__ = __iter__ = __contains__ = refuse


class ShyNumber(int):
    """Raises whatever it is asked."""

    __slots__ = ()
    __int__ = __index__ = __eq__ = __lt__ = __hash__ = __str__ = __repr__ = __format__ = refuse


class ShyProtein(dict[Any, Any]):
    """Raises when it is asked for a key."""

    __getitem__ = __contains__ = get = refuse


class FickleProtein(dict[Any, Any]):
    """Loses a key when asked whether it has one."""

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        self.pop(key, None)
        return found


class LongName(str):
    """Lies about its length."""

    __slots__ = ()

    def __len__(self) -> int:
        return 2**40


class Endless(LongName):
    """Lies about its length beyond what Python can hold."""

    __slots__ = ()

    def __len__(self) -> int:
        return 2**70


class Meddler:
    """A key with the hash of another, that does something to its record when compared."""

    def __init__(self, like: str, meddle: Callable[[], Any]) -> None:
        self.like = like
        self.meddle = meddle
        self.waits = 0

    def __hash__(self) -> int:
        return hash(self.like)

    def __eq__(self, other: object) -> bool:
        self.waits -= 1
        if self.waits == 0:
            self.meddle()
        return False


class ShyArray:
    """Raises when it is made an array."""

    __array__ = refuse


class Arrays:
    """Gives an array, or what is none."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


class Drawn(NamedTuple):
    """A value, what it stands for, and whether it is "good", "bad" or may be taken either way."""

    value: Any
    meaning: Any
    verdict: str = "good"


def worst(parts: list[Drawn], ids: list[Any] | None = None) -> str:
    """The verdict on a whole with these parts, and with these IDs."""
    verdicts = [part.verdict for part in parts]
    if "either" in verdicts:
        return "either"
    return "bad" if "bad" in verdicts or len(set(map(type, ids or []))) > 1 else "good"


def attempt(call: Callable[[], Any], verdict: str) -> Any:
    """Return what a call gives, None where it refuses as it should or may."""
    try:
        result = call()
    except REFUSALS:
        assert verdict != "good"
        return None
    except OddError:
        assert verdict == "either"
        return None
    assert verdict != "bad"
    return result


ALPHABETS = ["AB", "A\0\x7f\x80\xff", "a\u0100\ud800\udfff\ue000\uffff", "a\U00010000\U0010ffff\0"]
PREFIXES = ["", "NC_", "x" * 40, "\U0001f9ec" * 5]
ODD_VALUES = [None, True, 1.5, float("nan"), b"MK", bytearray(b"MK"), [], (), {}, object(), 10**30]


def draw_text(choices: Choices) -> str:
    alphabet = choices.one_of(ALPHABETS)
    letters = [choices.one_of(alphabet) for _ in range(choices.below(4))]
    return str(choices.one_of(PREFIXES) + "".join(letters))


def draw_number(choices: Choices) -> int:
    scale = choices.one_of([1, 1, 2**31, 2**62, 2**64, 2**70])
    return int((choices.below(9) - 4) * scale)


def draw_id(choices: Choices, are_texts: bool) -> Drawn:
    """An ID; its meaning is what it is ordered by."""
    if choices.rarely():
        odd = choices.one_of([*ODD_VALUES, ShyName("shy"), ShyNumber(3), "other", 3])
        if isinstance(odd, (ShyName, ShyNumber)):
            return Drawn(odd, None, "either")
        return Drawn(odd, odd, "good" if type(odd) in (str, int) else "bad")
    if are_texts:
        text = draw_text(choices)
        return Drawn(Name(text) if choices.rarely() else text, text)
    number = draw_number(choices)
    return Drawn(choices.one_of([int, int, int, Number])(number), number)


def draw_sequence(choices: Choices) -> Drawn:
    """A sequence; its meaning is its length."""
    if choices.rarely():
        odd = choices.one_of([*ODD_VALUES, LongName("MK"), Endless("MK"), ShyName("MK")])
        return Drawn(odd, 0, "either" if isinstance(odd, str) else "bad")
    sequence = choices.one_of("MMMM\xff\u0100\ud800\U0001f9ec") * choices.below(70)
    return Drawn(Name(sequence) if choices.rarely() else sequence, len(sequence))


def draw_record(choices: Choices, are_texts: bool) -> Drawn:
    """A record; its meaning is its ID and its length."""
    if choices.rarely():
        return Drawn(choices.one_of([*ODD_VALUES, "MK", ["id", "sequence"]]), ("", 0), "bad")
    identifier, sequence = draw_id(choices, are_texts), draw_sequence(choices)
    record = {"id": identifier.value, "sequence": sequence.value}
    verdict = worst([identifier, sequence])
    meaning = (identifier.meaning, sequence.meaning)
    if not choices.rarely():
        return Drawn(record, meaning, verdict)
    return choices.one_of(ODD_RECORDS)(choices, record, meaning, verdict)  # type: ignore[no-any-return]


def missing(choices: Choices, record: Record, meaning: Any, _: str) -> Drawn:
    del record[choices.one_of(["id", "sequence"])]
    if choices.below(2):
        record = defaultdict(str, record)
    return Drawn(record, meaning, "bad")


def other_type(choices: Choices, record: Record, meaning: Any, verdict: str) -> Drawn:
    kind = choices.one_of([Protein, dict.fromkeys, ShyProtein, FickleProtein])
    if kind == dict.fromkeys:
        # More keys, two of them of another type.
        more = {Name(key): value for key, value in record.items()}
        return Drawn({"length": 7, **more, "truncated": None}, meaning, verdict)
    return Drawn(kind(record), meaning, verdict if kind is Protein else "either")


def meddling(choices: Choices, record: Record, meaning: Any, _: str) -> Drawn:
    """A record that changes, or raises, at one of its look-ups."""
    key = choices.one_of(["id", "sequence"])
    odd = choices.one_of([*ODD_VALUES, "M" * 99, ShyName("shy")])
    new: Record = {}
    meddler = Meddler(
        choices.one_of(["id", "sequence"]),
        choices.one_of(
            [refuse, new.clear, lambda: new.pop(key, None), lambda: new.update({key: odd})]
        ),
    )
    new[meddler] = 1
    new.update(record)
    meddler.waits = 1 + choices.below(12)
    return Drawn(new, meaning, "either")


ODD_RECORDS = [missing, other_type, meddling]


def draw_parameters(choices: Choices) -> Drawn:
    """Parameters; their meaning are the reference's."""
    special_tokens = choices.one_of([0, 0, 1, 2, 2, 7])
    budget = special_tokens + 1 + choices.one_of([choices.below(60), choices.below(2**16)])
    limit = 1 + choices.one_of([choices.below(60), 1021, 2**62])
    most = choices.one_of([None, None, 1, 2, 3, 5])
    parameters = {
        "max_tokens_per_batch": budget,
        "max_sequence_length": limit,
        "special_tokens": special_tokens,
        "max_sequences_per_batch": most,
    }
    rest = {
        "overlong": choices.one_of(["truncate", "truncate", "truncate", "error"]),
        "num_threads": choices.one_of([1, 1, 2, 3]),
    }
    if not choices.rarely():
        return Drawn({**parameters, **rest}, parameters)
    name = choices.one_of([*parameters, *rest, "method"])
    odd = choices.one_of([*ODD_VALUES, -1, 0, 2**62, 2**70, "best", ShyNumber(3), Number(9)])
    if choices.below(2):
        odd = choices.one_of([np.int8(9), np.uint64(9), np.float64(9), np.bool_(True)])
    meaning = {**parameters, name: odd} if name in parameters else parameters
    return Drawn({**parameters, **rest, name: odd}, meaning, "either")


def draw_packer(choices: Choices) -> tuple[GreedyPacker | None, dict[str, Any]]:
    """A packer, and the reference's parameters."""
    parameters = draw_parameters(choices)
    packer = attempt(lambda: GreedyPacker(**parameters.value), parameters.verdict)
    if packer is None:
        return None, {}
    plain = {name: n if n is None else operator.index(n) for name, n in parameters.meaning.items()}
    return packer, plain


def limit_of(parameters: dict[str, Any]) -> int:
    room = parameters["max_tokens_per_batch"] - parameters["special_tokens"]
    return int(min(room, parameters["max_sequence_length"]))


def interrupted(records: list[Any]) -> Iterator[Any]:
    yield from records
    raise OddError


def changing(records: list[Any]) -> Iterator[Any]:
    for record in records:
        yield record
        if isinstance(record, dict):
            record.clear()


CONTAINERS: list[Any] = [list, list, list, tuple, iter, deque]
ODD_CONTAINERS: list[Any] = [
    interrupted,
    changing,
    lambda _: None,
    lambda _: 3,
    str,
    enumerate,
]


def contents(record: Any) -> Any:
    """What must stay the same objects."""
    if not isinstance(record, dict):
        return id(record)
    return [(id(key), id(value)) for key, value in dict.items(record)]


def check_records(choices: Choices) -> None:
    """Pack lists of dicts."""
    packer, parameters = draw_packer(choices)
    if packer is None:
        return
    are_texts = choices.below(4) > 0
    drawn = choices.several(lambda: draw_record(choices, are_texts))
    if drawn and choices.rarely():
        drawn.append(drawn[0])
    records = [record.value for record in drawn]
    ids, lengths = ([record.meaning[i] for record in drawn] for i in (0, 1))
    verdict = worst(drawn, ids)
    if choices.rarely():
        container, verdict = choices.one_of(ODD_CONTAINERS), "either"
    else:
        container = choices.one_of(CONTAINERS)
    if verdict == "either":
        for call in (packer.pack_sequences, packer.sort_by_length):
            attempt(lambda call=call: call(container(records)), verdict)  # type: ignore[misc]
        attempt(lambda: packer.compute_efficiency([container(records)]), verdict)
        return

    before = list(map(contents, records))
    limit = limit_of(parameters)
    in_order = attempt(lambda: packer.sort_by_length(container(records)), verdict)
    if verdict == "good" and packer.overlong == "error" and max(lengths, default=0) > limit:
        verdict = "bad"
    batches = attempt(lambda: packer.pack_sequences(container(records)), verdict)
    assert list(map(contents, records)) == before
    if in_order is not None:
        rows = sorted(range(len(records)), key=lambda row: (-lengths[row], ids[row]))
        assert list(map(id, in_order)) == [id(records[row]) for row in rows]
    if batches is None:
        return
    expected = reference.first_fit_decreasing(lengths, **parameters, ids=ids)
    assert list(map(len, batches)) == list(map(len, expected))
    for batch, rows in zip(batches, expected, strict=True):
        for record, row in zip(batch, rows, strict=True):
            if lengths[row] <= limit:
                assert record is records[row]
            else:
                kept = {"sequence": records[row]["sequence"][:limit], "truncated": True}
                assert type(record) is dict
                assert record == {**records[row], **kept}
    tokens = sum(min(n, limit) for n in lengths) + len(lengths) * parameters["special_tokens"]
    room = len(batches) * parameters["max_tokens_per_batch"]
    assert packer.compute_efficiency(batches) == (tokens / room if room else 0.0)
    verdict = "good" if tokens <= parameters["max_tokens_per_batch"] else "bad"
    attempt(lambda: packer.compute_efficiency([container(records)]), verdict)


def as_odd_array(choices: Choices, array: Any) -> Drawn:
    """The same numbers, another place in memory; or what is no array of them."""
    misaligned = np.frombuffer(b"x" + array.tobytes(), array.dtype, offset=1)
    read_only = array.copy()
    read_only.flags.writeable = False
    same = [
        misaligned,
        read_only,
        np.repeat(array, 3)[::3],
        array[::-1].copy()[::-1],
        array.astype(array.dtype.newbyteorder(">")),
        Arrays(array),
        array.view(np.recarray) if array.dtype.names else array,
    ]
    if choices.below(2):
        return Drawn(choices.one_of(same), None)
    other = [
        array[None],
        np.array(5),
        np.ma.masked_array(array),
        array.reshape(-1, 1),
        array.astype(bool),
        array.astype(float),
        array.astype(complex),
        array.astype(object),
        array.astype("S"),
        array.astype("M8[s]"),
        array.astype("m8[s]"),
        array.astype([("n", "i4")]),
        array.astype("V8"),
        array.astype("T" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "U"),
        Arrays("abc"),
        Arrays(None),
        ShyArray(),
    ]
    return Drawn(choices.one_of(other), None, "either")


TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]


def draw_lengths(choices: Choices) -> Drawn:
    """Lengths in a list or an array."""
    scale = choices.one_of([1, 1, 1, 2**20, 2**56, 2**62])
    lengths = [n * scale for n in choices.several(lambda: choices.below(70))]
    verdict = "good" if max(lengths, default=0) < 2**63 else "bad"
    if choices.below(2):
        if choices.rarely():
            odd = choices.one_of([*ODD_VALUES, -1, 2**63, ShyNumber(3), "3", np.bool_(True)])
            return Drawn([*lengths, odd], None, "either" if isinstance(odd, ShyNumber) else "bad")
        kind = choices.one_of([int, int, Number, np.uint64 if scale > 1 else np.int8])
        container = choices.one_of([list, tuple, iter, deque])
        # A second pass over an iterator would find nothing.
        values = list(map(kind, lengths)) if kind is not np.uint64 or verdict == "good" else lengths
        return Drawn(container(values), lengths, verdict)
    fitting = [name for name in TYPES if max(lengths, default=0) <= np.iinfo(name).max]
    if not fitting:
        return Drawn(lengths, lengths, verdict)
    array = np.array(lengths, choices.one_of(fitting))
    if choices.rarely() and array.dtype.kind == "i":
        return Drawn(np.append(array, array.dtype.type(-1)), None, "bad")
    if choices.rarely():
        odd = as_odd_array(choices, array)
        return Drawn(odd.value, lengths if odd.verdict == "good" else None, odd.verdict)
    return Drawn(array, lengths)


def draw_ids(choices: Choices, number: int) -> Drawn:
    """No IDs, or those of so many sequences, in a list or an array."""
    if choices.below(2) == 0:
        return Drawn(None, None)
    are_texts = choices.below(2) == 1
    if choices.rarely():
        number += choices.one_of([1, 2, -1])
        return Drawn(["x"] * number, None, "bad" if number >= 0 else "either")
    drawn = [draw_id(choices, are_texts) for _ in range(number)]
    ids, meaning = [i.value for i in drawn], [i.meaning for i in drawn]
    verdict = worst(drawn, meaning)
    if verdict != "good" or choices.below(2) == 0:
        return Drawn(choices.one_of([list, tuple, iter])(ids), meaning, verdict)
    if not drawn or type(meaning[0]) is str:
        # An array of fixed width has no NUL at the end of its texts.
        array: Any = np.array(meaning, choices.one_of([object, "U"]))
        return Drawn(array, array.tolist())
    array = np.array([i % 2**31 for i in meaning], choices.one_of(["i4", "u4", "i8", "u8", "O"]))
    if array.dtype.kind != "O" and choices.rarely():
        odd = as_odd_array(choices, array)
        return Drawn(odd.value, array.tolist() if odd.verdict == "good" else None, odd.verdict)
    return Drawn(array, array.tolist())


def check_lengths(choices: Choices) -> None:
    """Pack arrays of lengths."""
    packer, parameters = draw_packer(choices)
    if packer is None:
        return
    lengths = draw_lengths(choices)
    if lengths.meaning is None:
        attempt(lambda: packer.pack_lengths(lengths.value), lengths.verdict)
        attempt(lambda: packer.assign_batches(lengths.value), "either")
        return
    ids = draw_ids(choices, len(lengths.meaning))
    verdict = worst([lengths, ids])
    limit, special_tokens = limit_of(parameters), parameters["special_tokens"]
    kept = [min(n, limit) for n in lengths.meaning]
    tokens, cut = sum(kept) + len(kept) * special_tokens, sum(lengths.meaning) - sum(kept)
    if max(tokens, cut) >= 2**63 or (packer.overlong == "error" and cut):
        verdict = "bad" if verdict == "good" else verdict
    plan = attempt(lambda: packer.pack_lengths(lengths.value, ids.value), verdict)
    if plan is None or ids.verdict == "either":
        return
    expected = reference.first_fit_decreasing(lengths.meaning, **parameters, ids=ids.meaning)
    assert [rows.tolist() for rows in plan] == expected
    assert (plan.total_tokens, plan.truncated_residues) == (tokens, cut)
    in_rows = reference.first_fit_decreasing(lengths.meaning, **parameters)
    batch_of = {row: batch for batch, rows in enumerate(in_rows) for row in rows}
    slot_of = {row: slot for rows in in_rows for slot, row in enumerate(rows)}
    every = range(len(lengths.meaning))
    array = np.array(lengths.meaning, np.uint64)
    assert plan.slots(array).tolist() == [slot_of[row] for row in every]
    out = choices.one_of([None, np.zeros(len(array), np.int64), np.zeros(len(array), ">i4"), array])
    verdict = "good" if out is None or out.dtype == np.int64 else "bad"
    batches = attempt(lambda: packer.assign_batches(array, out), verdict)
    assert batches is None or batches.tolist() == [batch_of[row] for row in every]


def check(data: bytes) -> None:
    """Make input of bytes and pack it."""
    choices = Choices(data)
    choices.one_of([check_records, check_records, check_lengths])(choices)


class Reader(logging.Handler):
    """Words each message, and keeps none."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


# Where new lines reached are worth keeping the input.
INSTRUMENTED = [
    "__main__",
    *(f"virnucpro.data.{name}" for name in ("arguments", "packing", "plan")),
]


def main() -> None:
    import atheris

    logger = logging.getLogger("virnucpro")
    logger.addHandler(Reader())
    logger.propagate = False
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__module__ in INSTRUMENTED:
            atheris.instrument_func(function)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

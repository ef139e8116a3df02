"""Draws parameters, records, lengths and IDs from the bytes of a fuzzer."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from fuzz_objects import (
    Arrays,
    Endless,
    FickleProtein,
    LongName,
    Meddler,
    Name,
    Number,
    Protein,
    ShyArray,
    ShyName,
    ShyNumber,
    ShyProtein,
    changing,
    interrupted,
    refuse,
)
from reference import find_limit, round_up

Record = dict[Any, Any]


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
    """Parameters; their meaning is that of the reference."""
    special_tokens = choices.one_of([0, 0, 1, 2, 2, 7])
    multiple_of = choices.one_of([1, 1, 1, 2, 8, 16])
    budget = round_up(special_tokens + 1, multiple_of) + choices.one_of(
        [choices.below(60), choices.below(2**16)]
    )
    limit = 1 + choices.one_of([choices.below(60), 1021, 2**62])
    most = choices.one_of([None, None, 1, 2, 3, 5])
    parameters = {
        "max_tokens_per_batch": budget,
        "max_sequence_length": limit,
        "special_tokens": special_tokens,
        "max_sequences_per_batch": most,
        "multiple_of": multiple_of,
    }
    rest = {
        "overlong": choices.one_of(["truncate", "drop", "split", "error"]),
        "num_threads": choices.one_of([1, 1, 2, 3]),
    }
    overlap = find_limit(**parameters) // 3 if rest["overlong"] == "split" else 0
    parameters_and_rest = {**parameters, **rest, "overlap": overlap}
    if not choices.rarely():
        return Drawn(parameters_and_rest, parameters)
    name = choices.one_of([*parameters, *rest, "method"])
    odd = choices.one_of([*ODD_VALUES, -1, 0, 2**62, 2**70, "best", ShyNumber(3), Number(9)])
    if choices.below(2):
        odd = choices.one_of([np.int8(9), np.uint64(9), np.float64(9), np.bool_(True)])
    meaning = {**parameters, name: odd} if name in parameters else parameters
    return Drawn({**parameters_and_rest, name: odd}, meaning, "either")


CONTAINERS: list[Any] = [list, list, list, tuple, iter, deque]


ODD_CONTAINERS: list[Any] = [
    interrupted,
    changing,
    lambda _: None,
    lambda _: 3,
    str,
    enumerate,
]


def as_odd_array(choices: Choices, array: Any) -> Drawn:
    """The same numbers in another memory layout, or an array of another kind."""
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
    """No IDs, or those of `number` sequences, in a list or an array."""
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

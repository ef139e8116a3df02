"""Objects that users may pass in and that misbehave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class OddError(Exception):
    """Raised by the odd objects below."""


def refuse(*_: object) -> Any:
    raise OddError


class Name(str):
    """A subclass that changes nothing."""

    __slots__ = ()


class Number(int):
    """A subclass that changes nothing."""

    __slots__ = ()


class Protein(dict[Any, Any]):
    """A subclass that changes nothing."""


class ShyName(str):
    """Raises in every method."""

    __slots__ = ()
    __len__ = __eq__ = __lt__ = __hash__ = __getitem__ = refuse
    __str__ = __repr__ = __format__ = __iter__ = __contains__ = refuse


class ShyNumber(int):
    """Raises in every method."""

    __slots__ = ()
    __int__ = __index__ = __eq__ = __lt__ = __hash__ = __str__ = __repr__ = __format__ = refuse


class ShyProtein(dict[Any, Any]):
    """Raises when a key is looked up."""

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
    """Raises when it is converted to an array."""

    __array__ = refuse


class Arrays:
    """Returns an array, or another value."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values


def interrupted(records: list[Any]) -> Iterator[Any]:
    yield from records
    raise OddError


def changing(records: list[Any]) -> Iterator[Any]:
    for record in records:
        yield record
        if isinstance(record, dict):
            record.clear()

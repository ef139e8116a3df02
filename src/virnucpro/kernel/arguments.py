"""Validation of arguments, and conversion to the types of the kernel."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from virnucpro.kernel.arrow import IdLoader, is_id_type, is_text, text_buffers
from virnucpro.text import quoted, shown

# IDs that the kernel sorts as Python does: str objects, numbers, fixed-width strings, or offsets
# and concatenated strings in UTF-8.
OrderedIds = (
    tuple[str, ...]
    | NDArray[np.int64]
    | NDArray[np.str_]
    | tuple[NDArray[np.int64], NDArray[np.uint8]]
)


def is_integer_type(kind: type) -> bool:
    """Return whether a type is an integer type other than bool."""
    return issubclass(kind, (int, np.integer)) and kind is not bool


def check_integer(value: object, name: str, minimum: int, maximum: int | None = None) -> int:
    """Return an integer of any type as an int, after checking its bounds."""
    if not is_integer_type(type(value)):
        raise TypeError(f"{name} must be an integer (got {quoted(value)})")
    number = operator.index(value)  # type: ignore[arg-type]
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum:,} (got {quoted(number)})")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum:,} (got {quoted(number)})")
    return number


def check_bool(value: object, name: str) -> bool:
    """Return a truth value as a bool; 0 and 1 are such values too."""
    if not isinstance(value, (int, np.bool_)) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False (got {quoted(value)})")
    return bool(value)


def check_index(value: Any, name: str) -> int:
    """Return an index, of any type that Python accepts as one, as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer (got {quoted(value)})") from None


def check_threads(num_threads: int | None) -> int:
    """Return the number of threads, by default the number of cores available to this process."""
    if num_threads is not None:
        return check_integer(num_threads, "num_threads", 1, 2**16)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_version(state: Any, name: str, version: int) -> None:
    """Check that a state is a dict of the given version."""
    if not isinstance(state, dict):
        raise TypeError(f"the state of a {name} must be a dict (got {type(state).__name__})")
    found = state.get("version")
    if found != version:
        raise ValueError(f"the state of a {name} must have version {version} (got {quoted(found)})")


def check_list(values: Iterable[Any], name: str, wanted: str) -> list[Any]:
    """Return the values of an iterable, which must not be a str, bytes, a dict or a table."""
    try:
        iterator = iter(values)
    except TypeError:
        iterator = None
    # Iteration would yield characters, keys or columns.
    if iterator is None or isinstance(values, (str, bytes, dict)) or hasattr(values, "columns"):
        raise TypeError(f"{name} must be {wanted} (got {type(values).__name__})")
    return list(iterator)


def check_lengths(lengths: ArrayLike) -> NDArray[np.integer[Any]]:
    """Return lengths as a contiguous integer array, without copying when possible."""
    return check_integers(lengths, "lengths")


def check_integers(values: ArrayLike, name: str) -> NDArray[np.integer[Any]]:
    """Return integers as a contiguous array, without copying when possible."""
    if not hasattr(values, "__array__"):
        wanted = "a list or an array of integers"
        return check_integer_objects(check_list(values, name, wanted), name)  # type: ignore[arg-type]
    array = check_dimension(values, name)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers (got {array.dtype})")
    return plain(array)


def check_integer_objects(values: list[Any], name: str) -> NDArray[np.int64]:
    """Return a list of Python integers as an array."""
    if not all(map(is_integer_type, set(map(type, values)))):
        position = next(i for i, n in enumerate(values) if not is_integer_type(type(n)))
        wrong = values[position]
        found = quoted(wrong)
        if name == "lengths" and hasattr(wrong, "__len__"):
            found = f"{type(wrong).__name__}; for sequences, pass [len(each) for each in sequences]"
        raise TypeError(f"{name}[{position}] must be an integer (got {found})")
    numbers = list(map(int, values))
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError:
        position = next(i for i, n in enumerate(numbers) if not -(2**63) <= n < 2**63)
        raise ValueError(
            f"{name}[{position}] does not fit in int64 (got {numbers[position]})"
        ) from None


def check_pairs(
    first: ArrayLike, second: ArrayLike, names: tuple[str, str]
) -> tuple[NDArray[np.signedinteger[Any]], NDArray[np.signedinteger[Any]]]:
    """Return two equally long integer arrays, each int32 or int64, copied only if necessary."""
    arrays = check_signed(first, names[0]), check_signed(second, names[1])
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same length "
            f"(got {len(arrays[0]):,} and {len(arrays[1]):,})"
        )
    return arrays


def check_signed(values: ArrayLike, name: str) -> NDArray[np.signedinteger[Any]]:
    """Return integers as a contiguous array of int32 or int64, without copying when possible."""
    array = check_integers(values, name)
    if array.dtype == np.uint64 and array.max() >= 2**63:
        return check_integer_objects(array.tolist(), name)
    is_narrow = np.can_cast(array.dtype, np.int32)
    return array.astype(np.int32 if is_narrow else np.int64, copy=False)


def check_ids(
    ids: Iterable[Any], num_sequences: int, describe: Callable[[int], str] = "ids[{}]".format
) -> OrderedIds:
    """Return IDs, all str or all int, in a form that the kernel sorts as Python does.

    Errors refer to the ID at position i by ``describe(i)``.
    """
    arrow = sys.modules.get("pyarrow")
    if arrow is not None and isinstance(ids, (arrow.Array, arrow.ChunkedArray)):
        check_count(len(ids), num_sequences)
        return check_arrow_ids(ids)
    array = check_dimension(ids, "ids") if hasattr(ids, "__array__") else None
    if array is None or array.dtype.kind in "OT" or array.size == 0:
        wanted = "a list or an array of IDs"
        objects = tuple(check_list(ids, "ids", wanted) if array is None else array.tolist())
        check_count(len(objects), num_sequences)
        return check_id_objects(objects, describe)
    check_count(len(array), num_sequences)
    if array.dtype.kind == "U":
        return plain(array)
    if array.dtype.kind == "i":
        return plain(array.astype(np.int64, copy=False))
    if array.dtype.kind == "u":
        # Map to signed numbers in the same order.
        return (array.astype(np.uint64) ^ np.uint64(2**63)).view(np.int64)
    raise TypeError(f"ids must be str or int (got {array.dtype})")


def check_arrow_ids(ids: Any) -> OrderedIds:
    """Return the IDs of an Arrow array in a form that the kernel sorts as Python does."""
    if len(ids) == 0:
        return ()
    if not is_id_type(ids.type):
        raise TypeError(f"ids must be str or int (got {shown(ids.type)})")
    ids = IdLoader().load(ids, "ids")
    if ids.null_count:
        raise ValueError(f"ids must not be null (got {ids.null_count:,} nulls)")
    return text_buffers(ids) if is_text(ids.type) else check_ids(ids.to_numpy(), len(ids))


def take_ids(ids: OrderedIds, rows: NDArray[Any]) -> OrderedIds:
    """Return the IDs of rows, which may repeat."""
    if isinstance(ids, np.ndarray):
        return ids.take(rows)
    if not ids or isinstance(ids[0], str):
        return tuple(ids[row] for row in rows.tolist())
    offsets, texts = ids
    begins = offsets[rows]
    lengths = offsets[rows + 1] - begins
    ends = np.cumsum(lengths)
    places = np.arange(int(lengths.sum())) + np.repeat(begins - ends + lengths, lengths)
    return np.append(0, ends), texts[places]


def check_count(num_ids: int, num_sequences: int) -> None:
    """Check that there is one ID per sequence."""
    if num_ids != num_sequences:
        raise ValueError(
            f"ids must have one ID per sequence (got {num_ids} for {num_sequences} sequences)"
        )


def check_id_objects(
    ids: tuple[Any, ...], describe: Callable[[int], str]
) -> tuple[str, ...] | NDArray[np.int64]:
    """Return Python objects, all str or all int, in a form that the kernel sorts as Python does."""
    kinds = set(map(kind_of_id, set(map(type, ids))))
    if kinds <= {"str"}:
        return ids
    if kinds == {"int"}:
        numbers = list(map(int, ids))
        try:
            return np.array(numbers, dtype=np.int64)
        except OverflowError:
            rank = {number: i for i, number in enumerate(sorted(set(numbers)))}
            return np.array([rank[number] for number in numbers], dtype=np.int64)
    first = kind_of_id(type(ids[0]))
    wanted = f"{first} like {describe(0)}" if first else "str or int"
    position = next(i for i, x in enumerate(ids) if not first or kind_of_id(type(x)) != first)
    raise TypeError(f"{describe(position)} must be {wanted} (got {type(ids[position]).__name__})")


def kind_of_id(kind: type) -> str | None:
    """Return "str" or "int" for types whose values sort as such, None for other types."""
    if issubclass(kind, str):
        return "str"
    return "int" if is_integer_type(kind) else None


def check_out(
    out: NDArray[Any] | None, lengths: NDArray[Any], num_sequences: int
) -> NDArray[np.signedinteger[Any]]:
    """Return a valid `out` for one number below `num_sequences` per row; a new array if None."""
    narrow = num_sequences < 2**31
    if out is None:
        return np.empty(len(lengths), np.int32 if narrow else np.int64)
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a plain NumPy array (got {type(out).__name__})")
    if out.dtype not in (np.int32, np.int64) or not out.dtype.isnative:
        raise TypeError(f"out must be int32 or int64 (got {out.dtype})")
    if out.dtype == np.int32 and not narrow:
        raise ValueError(f"out must be int64 for {num_sequences:,} sequences (got int32)")
    if out.shape != lengths.shape:
        raise ValueError(f"out must have the shape of lengths, {lengths.shape} (got {out.shape})")
    if not out.flags.c_contiguous or not out.flags.aligned or not out.flags.writeable:
        raise ValueError("out must be contiguous, aligned and writeable")
    if np.may_share_memory(out, lengths):
        raise ValueError("out must not overlap lengths")
    return out


def check_dimension(values: Any, name: str) -> NDArray[Any]:
    """Return a one-dimensional array, without copying when possible."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array")
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional (got {array.ndim} dimensions)")
    return array


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous, aligned array in native byte order, without copying when possible."""
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    native = None if array.dtype.isnative else array.dtype.newbyteorder("=")
    return np.require(array, native, ["C_CONTIGUOUS", "ALIGNED"])

"""Records of data sets: their lengths, and their parts."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from virnucpro.data.records import Record
from virnucpro.text import quoted, shown

# Keys that are added to records, which they must not have before.
NEW_KEYS = ("row", "tokens", "start", "stop")
# Keys of values that must be as long as the record: one for each token.
TOKEN_KEYS = frozenset(
    {
        *("input_ids", "labels", "attention_mask", "position_ids", "token_type_ids"),
        "special_tokens_mask",
    }
)


def check_record(item: Any, row: int, is_split: bool) -> int:
    """Return the length of a record; raise unless it is a dict that can be cut."""
    if not isinstance(item, Mapping):
        key, name = "sequence" if isinstance(item, str) else "input_ids", type(item).__name__
        remedy = f'; for example {{"{key}": ...}}' if hasattr(item, "__len__") else ""
        raise TypeError(f"the record of row {row:,} must be a dict (got {name}){remedy}")
    for key in NEW_KEYS if is_split else NEW_KEYS[:2]:
        if key in item:
            raise ValueError(
                f"{describe(item, row)} has a key {quoted(key)}, which is added to records: "
                "rename yours"
            )
    for key in ("sequence", "input_ids"):
        if key in item:
            return len(item[key])
    keys = ", ".join(map(repr, item)) or "no keys"
    raise ValueError(
        f"{describe(item, row)} has no 'sequence' and no 'input_ids' (it has {shown(keys)})"
    )


def describe(item: Mapping[str, Any], row: int) -> str:
    """Return a record's name for a message."""
    return (
        f"record {quoted(item['id'])} (row {row:,})"
        if "id" in item
        else f"the record of row {row:,}"
    )


def cut_record(item: Mapping[str, Any], row: int, start: int, stop: int, length: int) -> Record:
    """Return a copy of a record from `start` to `stop`, given its length.

    Raises:
        ValueError: It has a value for each token that is not as long.
    """
    record = dict(item)
    is_cut = stop - start < length
    for key, value in item.items():
        if has_length(key, value, length):
            if is_cut:
                record[key] = value[start:stop]
        elif key in TOKEN_KEYS and has_elements(value):
            if key == "labels" and item.get("truncated") and len(value) > length:
                # A record truncated elsewhere may have the labels of the full sequence.
                record[key] = value[start:stop]
            elif is_cut or "sequence" not in item or len(value) != len(item.get("input_ids", ())):
                raise ValueError(
                    f"{describe(item, row)} has {len(value):,} values in {quoted(key)} for "
                    f"{length:,} tokens"
                )
    return record


def has_elements(value: Any) -> bool:
    """Return whether a value is a list, an array, a tensor or a text, and not a single number."""
    if isinstance(value, (Mapping, Set)):
        return False
    try:
        len(value)
    except TypeError:
        return False
    return True


def has_length(key: str, value: Any, length: int) -> bool:
    """Return whether a value of a record is cut with it."""
    return key not in ("id", "file") and has_elements(value) and len(value) == length

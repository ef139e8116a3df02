"""Arrow arrays that others made: they are checked before their memory is read.

pyarrow trusts the offsets, indices and views of an array, as NumPy and the kernel do. In a damaged
file, they may lead outside of the memory of the array. pyarrow is not imported here, since it is
optional.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro.memory import SMALL, check_memory
from virnucpro.text import first_line


def check_array(values: Any, name: str) -> None:
    """Check an Arrow array, chunked array, record batch or table.

    Raises:
        ValueError: It is damaged.
        MemoryError: Its texts would take more memory than there is.

    Cost: O(n), 0.02 s for a million IDs of 12 characters.
    """
    try:
        values.validate()
        for chunk in chunks_of(values):
            check_memory(num_view_bytes(chunk), f"{name}: texts")
        values.validate(full=True)
    except sys.modules["pyarrow"].ArrowException as error:
        raise ValueError(f"{name}: damaged: {first_line(error)}") from error


def chunks_of(values: Any) -> list[Any]:
    """Return the arrays of an array, a chunked array, a record batch or a table."""
    if hasattr(values, "columns"):
        return [chunk for column in values.columns for chunk in chunks_of(column)]
    return list(values.chunks) if hasattr(values, "chunks") else [values]


def num_view_bytes(array: Any) -> int:
    """Return the bytes of the texts of an array of views, which may share them; 0 for others."""
    if str(array.type) not in ("string_view", "binary_view") or len(array) == 0:
        return 0
    views = np.frombuffer(array.buffers()[1], np.int32, 4 * len(array), 16 * array.offset)
    return int(views[::4].sum(dtype=np.int64))


def is_text(kind: Any) -> bool:
    """Return whether an Arrow type is one of strings."""
    return str(kind) in ("string", "large_string", "string_view")


def is_id_type(kind: Any) -> bool:
    """Return whether an Arrow type is one of strings or integers, or a dictionary of these."""
    types = sys.modules["pyarrow"].types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return is_text(kind) or types.is_integer(kind)


class IdLoader:
    """Loads the IDs of Arrow arrays, whose dictionaries are often one and the same."""

    def __init__(self) -> None:
        self._dictionary: Any = None
        self._values: Any = None
        self._key: Any = None

    def load(self, ids: Any, name: str) -> Any:
        """Return IDs, checked, as one array of integers or of large strings.

        Args:
            ids: An array or a chunked array of a type of IDs (see `is_id_type`).
            name: What it is called in errors.

        Raises:
            ValueError: The array is damaged.
            MemoryError: Decoded, it would take more memory than there is.
        """
        arrow = sys.modules["pyarrow"]
        is_dictionary = arrow.types.is_dictionary(ids.type)
        load = self._decode if is_dictionary else load_plain
        chunks = [load(chunk, name) for chunk in chunks_of(ids)]
        if len(chunks) == 1:
            return chunks[0]
        check_memory(sum(chunk.nbytes for chunk in chunks), f"{name}: texts")
        return arrow.concat_arrays(chunks) if chunks else load(arrow.array([], ids.type), name)

    def _decode(self, ids: Any, name: str) -> Any:
        """Return the values of a dictionary that its indices refer to."""
        check_array(ids.indices, name)
        values = self._load_dictionary(ids.dictionary, name)
        indices = ids.indices.drop_null().to_numpy()
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(values):
            raise ValueError(f"{name}: damaged: an index is not one of a dictionary")
        if is_text(values.type):
            sizes = np.diff(text_buffers(values)[0])
            check_memory(num_decoded_bytes(sizes, indices), f"{name}: texts")
        return values.take(ids.indices)

    def _load_dictionary(self, dictionary: Any, name: str) -> Any:
        """Return the values of a dictionary, from before if it is in the same memory."""
        key = find_memory(dictionary)
        if key != self._key:
            self._values = load_plain(dictionary, name)
            # Kept, so that no other dictionary can be in its memory.
            self._dictionary, self._key = dictionary, key
        return self._values


def find_memory(array: Any) -> tuple[Any, ...]:
    """Return where in memory an array is."""
    places = ((buffer.address, buffer.size) if buffer else None for buffer in array.buffers())
    return array.type, array.offset, len(array), *places


def load_plain(ids: Any, name: str) -> Any:
    """Return IDs without a dictionary, checked, as integers or large strings."""
    check_array(ids, name)
    return ids.cast(sys.modules["pyarrow"].large_string()) if is_text(ids.type) else ids


def num_decoded_bytes(sizes: NDArray[np.int64], indices: NDArray[Any]) -> int:
    """Return the bytes of the texts that indices repeat; a bound if it is small."""
    bound = int(sizes.max(initial=0)) * len(indices)
    return bound if bound < SMALL else int(sizes[indices].sum())


def text_buffers(ids: Any) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the offsets and the bytes of an array of large strings, without copying."""
    _, offsets, texts = ids.buffers()
    if len(ids) == 0:
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    found = np.frombuffer(offsets, np.int64, len(ids) + 1, 8 * ids.offset)
    return found, np.frombuffer(texts or b"", np.uint8)

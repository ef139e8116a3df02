"""Arrays of every kind in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from proteins import short_lengths

from virnucpro.data import GreedyPacker

Array = NDArray[Any]


def same_in_memory(values: Array, folder: Path) -> dict[str, Array]:
    """Return the same values in every memory layout."""
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
    lengths = short_lengths(150_000)
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
    lengths = short_lengths(3000) % 20
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
    lengths = short_lengths(1000)
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

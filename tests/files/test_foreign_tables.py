"""Tables and arrays that others made are checked before they are used, and fit in memory."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from virnucpro import memory
from virnucpro.data import GreedyPacker
from virnucpro.files import tables
from virnucpro.files.arrow_messages import check_messages
from virnucpro.files.sequences import read_files

MIB = 2**20


def damaged(kind: Any, numbers: list[int], content: bytes, number: type = np.int32) -> Any:
    """Return an array of texts whose offsets or views are changed once it is made."""
    memory: Any = np.zeros(len(numbers), number)
    length = len(numbers) // 4 if number is np.uint32 else len(numbers) - 1
    array = pa.Array.from_buffers(kind, length, [None, pa.py_buffer(memory), pa.py_buffer(content)])
    memory[:] = numbers
    return array


def dictionary(indices: list[int], values: list[str | None]) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), values, safe=False)


BAD_ARRAYS: dict[str, Callable[[], Any]] = {
    "offset behind the end": lambda: damaged(pa.string(), [0, 2**30], b"abc"),
    "offset that decreases": lambda: damaged(pa.large_string(), [0, 3, 1], b"abc", np.int64),
    "negative offset": lambda: damaged(pa.string(), [-(2**30), 1], b"abc"),
    "not UTF-8": lambda: damaged(pa.string(), [0, 1, 2], b"a\xff"),
    "index behind the end": lambda: dictionary([0, 2**30], ["a", "b"]),
    "negative index": lambda: dictionary([0, -5], ["a", "b"]),
}
if hasattr(pa, "string_view"):
    BAD_ARRAYS["view behind the end"] = lambda: damaged(
        pa.string_view(), [20, 0, 0, 30], b"x" * 40, np.uint32
    )
    BAD_ARRAYS["negative view"] = lambda: damaged(
        pa.string_view(), [2**32 - 1, 0, 0, 0], b"x" * 40, np.uint32
    )
    BAD_ARRAYS["other start of a view"] = lambda: damaged(
        pa.string_view(), [20, 0, 0, 0], b"x" * 40, np.uint32
    )


@pytest.mark.parametrize("make", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_damaged_ids(make: Callable[[], Any]) -> None:
    array = make()
    for ids in (array, pa.chunked_array([array])):
        with pytest.raises(ValueError, match=r"^ids: damaged: [^\n]+$"):
            GreedyPacker(64).pack_lengths(np.ones(len(ids), np.int8), ids)


def write_patched(path: Path, new: Any, table: Any, number: int) -> None:
    """Write an Arrow table with another number for each 32-bit 1111, such as a size of a text."""
    with new(str(path), table.schema) as writer:
        writer.write_table(table)
    content = path.read_bytes()
    assert ONES in content
    path.write_bytes(content.replace(ONES, number.to_bytes(4, "little", signed=True)))


ONES = (1111).to_bytes(4, "little")
KINDS = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
KINDS += [pa.string_view()] if hasattr(pa, "string_view") else []


@pytest.mark.parametrize("number", [2**30, -1])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_damaged_columns(tmp_path: Path, kind: Any, new: Any, number: int) -> None:
    ids = pa.array(["x" * 1111, "y" * 50]).cast(kind)
    path = tmp_path / "a.arrow"
    write_patched(path, new, pa.table({"id": ids, "length": [1, 2]}), number)
    with pytest.raises(ValueError, match=f"^{path}: column 'id': damaged: [^\n]+$"):
        read_files([str(path)])


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_columns_that_are_not_used(tmp_path: Path, new: Any) -> None:
    """They are not looked at: neither their types nor whether they are damaged."""
    columns = {"id": ["a", "b"], "bad": ["x" * 1111, "y"], "list": [[1.5], []], "length": [1, 2]}
    write_patched(tmp_path / "a.arrow", new, pa.table(columns), 2**30)
    assert read_files([str(tmp_path / "a.arrow")]).lengths.tolist() == [1, 2]
    rows = (f"{'a' * 2**10}\t{n if n < 2**15 else 'x'}\t1\n" for n in range(2**15 + 1))
    (tmp_path / "a.tsv").write_text(f"id\tmore\tlength\n{''.join(rows)}")
    assert len(read_files([str(tmp_path / "a.tsv")]).lengths) == 2**15 + 1


GOOD_IDS: dict[str, Callable[[], Any]] = {
    "string": lambda: pa.array(["a", "b", "a"]),
    "large": lambda: pa.array(["a", "b", "a"], pa.large_string()),
    "dictionary": lambda: dictionary([0, 1, 0], ["a", "b"]),
    "slice": lambda: dictionary([1, 0, 1, 0, 1], ["a", "b", None])[1:4],
    "chunks": lambda: pa.chunked_array([dictionary([0], ["a"]), dictionary([1, 0], ["a", "b"])]),
    "large dictionary": lambda: pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 0], pa.uint64()), pa.array(["a", "b"], pa.large_string())
    ),
    "numbers": lambda: pa.array([7, 9, 7], pa.uint16()),
    "dictionary of numbers": lambda: pa.array([7, 9, 7]).dictionary_encode(),
}
if hasattr(pa, "string_view"):
    GOOD_IDS["view"] = lambda: pa.array(["x", "a", "b", "a"]).cast(pa.string_view())[1:]
    GOOD_IDS["dictionary of views"] = lambda: pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 0]), pa.array(["a", "b"]).cast(pa.string_view())
    )


@pytest.mark.parametrize("make", GOOD_IDS.values(), ids=GOOD_IDS)
def test_types_of_ids(tmp_path: Path, make: Callable[[], Any]) -> None:
    ids = make()
    assert list(GreedyPacker(64).pack_lengths([1, 1, 1], ids).indices) == [0, 2, 1]
    path = tmp_path / "a.arrow"
    table = pa.table({"id": ids, "length": [1, 1, 1]})
    options = pa.ipc.IpcWriteOptions(unify_dictionaries=True)
    with pa.ipc.new_file(str(path), table.schema, options=options) as writer:
        writer.write_table(table)
    assert read_files([str(path)]).ids.to_pylist() == [str(name) for name in ids.to_pylist()]


class Text(pa.ExtensionType):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(pa.string(), "virnucpro.test")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""


OTHER_IDS: dict[str, Callable[[], Any]] = {
    "float": lambda: pa.array([1.5]),
    "bool": lambda: pa.array([True]),
    "binary": lambda: pa.array([b"a"]),
    "decimal": lambda: pa.array([Decimal("1.5")]),
    "list": lambda: pa.array([["a"]]),
    "struct": lambda: pa.array([{"id": "a"}]),
    "null": lambda: pa.nulls(1),
    "extension": lambda: pa.ExtensionArray.from_storage(Text(), pa.array(["a"])),
    "runs": lambda: pa.RunEndEncodedArray.from_arrays([1], ["a"]),
    "dictionary of floats": lambda: pa.array([1.5]).dictionary_encode(),
    "dates": lambda: pa.array([1], pa.date32()),
}


@pytest.mark.parametrize("make", OTHER_IDS.values(), ids=OTHER_IDS)
def test_other_types(tmp_path: Path, make: Callable[[], Any]) -> None:
    ids = make()
    with pytest.raises(TypeError, match=r"^ids must be str or int \(got [^\n]+\)$"):
        GreedyPacker(64).pack_lengths([1], ids)
    path = tmp_path / "a.arrow"
    if isinstance(ids, pa.ExtensionArray):
        # In a file, it is a string, since its type is not registered.
        return
    for columns, message in (
        ({"id": ids, "length": [1]}, "'id' must be strings or integers"),
        ({"id": ["a"], "length": ids}, "'length' must contain integers"),
    ):
        table = pa.table(columns)
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(ValueError, match=rf"^{path}: column {message} \(got [^\n]+\)$"):
            read_files([str(path)])


@pytest.mark.parametrize("values", [["a", None], [None, "b"]])
def test_nulls_in_a_dictionary(tmp_path: Path, values: list[str | None]) -> None:
    ids = dictionary([0, 1], values)
    with pytest.raises(ValueError, match=r"^ids must not be null \(got 1 nulls\)$"):
        GreedyPacker(64).pack_lengths([1, 1], ids)
    path = tmp_path / "a.arrow"
    table = pa.table({"id": ids, "length": [1, 1]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"a\.arrow: column 'id' is null in row [01]$"):
        read_files([str(path)])


@pytest.fixture
def _little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 100 MiB be available."""
    for module in ("virnucpro.memory", "virnucpro.files.tables"):
        monkeypatch.setattr(f"{module}.available_memory", lambda: 100 * MIB)


def shared_text(number: int) -> Any:
    """Return a dictionary whose only text is repeated."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(number, np.int32)), ["x" * MIB])


def shared_view(number: int) -> Any:
    views = np.tile(np.array([MIB, 0x78787878, 0, 0], np.int32), number)
    buffers = [None, pa.py_buffer(views), pa.py_buffer(b"x" * MIB)]
    return pa.Array.from_buffers(pa.string_view(), number, buffers)


def write_arrow(path: Path, ids: Any, new: Any = pa.ipc.new_file, **options: Any) -> None:
    table = pa.table({"id": ids, "length": np.ones(len(ids), np.int32)})
    options = pa.ipc.IpcWriteOptions(**options)
    with new(str(path), table.schema, options=options) as writer:
        writer.write_table(table)


def write_parquet(path: Path, ids: Any, groups: int = 1, **options: Any) -> None:
    table = pa.table({"id": ids, "length": np.zeros(len(ids), np.int8)})
    with pq.ParquetWriter(path, table.schema, compression="zstd", **options) as writer:
        for _ in range(groups):
            writer.write_table(table)


def repeated_rows(path: Path) -> None:
    ids = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int8)), ["x"])
    write_parquet(path, ids, groups=4)


def text_table(path: Path) -> None:
    content = b"id\tlength\n" + (b"x" * 2000 + b"\t1\n") * 70_000
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


# Kept, since threads of pyarrow may use them after a test.
POOLS: list[Any] = []

plain = {"use_dictionary": False}
BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "rows.parquet": (repeated_rows, "4,000,000 rows"),
    "shared.parquet": (lambda path: write_parquet(path, shared_text(9999)), "column 'id': texts"),
    "bare.parquet": (
        lambda path: write_parquet(path, shared_text(9999), store_schema=False),
        "column 'id': texts",
    ),
    "plain.parquet": (
        lambda path: write_parquet(path, ["x" * MIB] * 110, **plain, write_batch_size=1),
        "110 rows",
    ),
    "prefix.parquet": (
        lambda path: write_parquet(
            path, ["x" * MIB] * 160, **plain, column_encoding={"id": "DELTA_BYTE_ARRAY"}
        ),
        "IDs and lengths",
    ),
    "shared.arrow": (lambda path: write_arrow(path, shared_text(9999)), "column 'id': texts"),
    "zstd.arrow": (
        lambda path: write_arrow(path, ["x" * MIB] * 110, compression="zstd"),
        "compressed columns",
    ),
    "lz4.ipc": (
        lambda path: write_arrow(path, ["x" * MIB] * 110, pa.ipc.new_stream, compression="lz4"),
        "compressed columns",
    ),
    "a.tsv": (text_table, "IDs and lengths"),
    "a.tsv.gz": (text_table, "IDs and lengths"),
}
if hasattr(pa, "string_view"):
    BOMBS["view.arrow"] = (
        lambda path: write_arrow(path, shared_view(9999)),
        "column 'id': texts",
    )


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("name", BOMBS)
def test_small_files_of_much_data(tmp_path: Path, name: str) -> None:
    write, what = BOMBS[name]
    path = tmp_path / name
    write(path)
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(
            MemoryError, match=f"^{path}: [^\n]*{what} need about .* [MG]iB of memory"
        ):
            read_files([str(path)])
    finally:
        pa.set_memory_pool(before)
    if what != "IDs and lengths":
        # Before the memory was taken.
        assert pool.max_memory() < 60 * MIB


@pytest.mark.usefixtures("_little_memory")
def test_arrays_of_much_data() -> None:
    made = [shared_text(9999)] + ([shared_view(9999)] if hasattr(pa, "string_view") else [])
    for ids in made:
        with pytest.raises(MemoryError, match=r"^ids: texts need about 9\.8 GiB of memory, "):
            GreedyPacker(64).pack_lengths(np.ones(len(ids), np.int8), ids)


@pytest.mark.usefixtures("_little_memory")
def test_long_ids_are_read_in_small_batches(tmp_path: Path) -> None:
    """What fits is read, whichever its encoding is, and other columns do not matter."""
    ids = ["x" * MIB, *map(str, range(9999))]
    for name, options in (
        ("a.parquet", {}),
        ("b.parquet", plain),
        ("c.parquet", {**plain, "column_encoding": {"id": "DELTA_BYTE_ARRAY"}}),
    ):
        write_parquet(tmp_path / name, ids, **options)
        assert read_files([str(tmp_path / name)]).ids.to_pylist() == ids


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_sizes_of_messages(monkeypatch: pytest.MonkeyPatch, new: Any, compression: Any) -> None:
    """The bytes of the buffers of each record batch and dictionary, if they are compressed."""
    found: list[int] = []
    monkeypatch.setattr(
        "virnucpro.files.arrow_messages.check_memory", lambda size, _: found.append(size)
    )
    table = pa.table({"id": dictionary([0] * 3000, ["x" * 7000]), "length": [5] * 3000})
    sink = pa.BufferOutputStream()
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=2000)
    assert check_messages(pa.BufferReader(sink.getvalue())) == (new is pa.ipc.new_file)
    sizes = [7000 + 8, 2000 * 12, 1000 * 12]
    assert [size for size in found if size] == (sizes if compression else [])


def test_wide_text_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("id\tlength" + "\t" * MIB + "\n")
    with pytest.raises(ValueError, match=r"a\.tsv: its first line has 1,048,576 bytes or more"):
        read_files([str(path)])


def test_available_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of what the machine has and what the control groups and their parents leave."""
    files = {
        "/proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 800 kB\n",
        "/proc/self/cgroup": "4:memory:/a/b\n3:cpu:/\n0::/c\n",
        "/groups/memory/a/memory.limit_in_bytes": "700000\n",
        "/groups/memory/a/memory.usage_in_bytes": "300000\n",
        "/groups/memory/a/memory.stat": "cache 9\ntotal_inactive_file 1000\n",
        "/groups/c/memory.max": "max\n",
        "/groups/c/memory.current": "5\n",
    }
    monkeypatch.setattr(memory, "CGROUPS", Path("/groups"))
    monkeypatch.setattr(memory, "read_text", lambda path: files.get(str(path), ""))
    assert memory.available_memory() == 401_000
    files["/groups/c/memory.max"] = "105\n"
    assert memory.available_memory() == 100
    files["/groups/memory.max"], files["/groups/memory.current"] = "5", "6"
    assert memory.available_memory() == 0
    files.clear()
    assert memory.available_memory() is None
    memory.check_memory(2**62, "nothing")


def test_many_row_groups_are_read_in_linear_time(tmp_path: Path) -> None:
    """The file is opened a few times, not once per row group."""
    path = tmp_path / "a.parquet"
    table = pa.table({"id": [f"s{number}" for number in range(500)], "length": [5] * 500})
    pq.write_table(table, path, row_group_size=5)
    opened = []
    open_source = tables.open_source

    def count(path: Any) -> Any:
        opened.append(path)
        return open_source(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "open_source", count)
        assert len(read_files([str(path)]).lengths) == 500
    assert len(opened) <= 3

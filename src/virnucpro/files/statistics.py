"""Compare what the metadata of Parquet files says about their rows with the rows.

Other readers leave out row groups and pages whose statistics say that no row matches a filter.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from virnucpro.files import tables
from virnucpro.files.plan_reader import METADATA, PlanFile, open_parquet
from virnucpro.files.plan_schema import KINDS, explain_errors
from virnucpro.files.tables import PLAN_KEY
from virnucpro.files.thrift import CompactReader
from virnucpro.text import quoted

# The key of the schema in the metadata of Parquet files, Base64 of an Arrow message.
SCHEMA_KEY = b"ARROW:schema"


class PageKind(NamedTuple):
    """The IDs of the fields of a kind of page: its header in `PageHeader`, and what that has."""

    header: int
    encoding: int
    statistics: int


# Field IDs of parquet.thrift: FileMetaData and RowGroup,
NUM_ROWS, GROUPS, PAIRS = 3, 4, 5
COLUMNS, GROUP_ROWS, SORTING = 1, 3, 4
# ColumnChunk and ColumnMetaData, with what plans do not have,
CHUNK, NUM_VALUES, CHUNK_SIZE, DATA_OFFSET, DICTIONARY_OFFSET = 3, 5, 7, 9, 11
STATISTICS, ENCODING_COUNTS = 12, 13
NOT_IN_COLUMNS = {1: "another file", 4: "an index", 6: "an index", 8: "a key", 9: "a key"}
NOT_IN_CHUNKS = {10: "an index", 14: "a Bloom filter"}
# PageHeader and the headers of pages by type,
PAGE_TYPE, PAGE_SIZE, PAGE_VALUES = 1, 3, 1
DICTIONARY_PAGE = 2
PAGE_KINDS = {0: PageKind(5, 2, 5), DICTIONARY_PAGE: PageKind(7, 2, 0), 3: PageKind(8, 4, 8)}
# and Statistics, which has the least and the greatest value twice.
BOUNDS = {1: "max", 2: "min", 5: "max", 6: "min"}
NULL_COUNT, DISTINCT_COUNT = 3, 4


def check_metadata(file: PlanFile) -> Iterator[str]:
    """Yield the errors in the metadata of a Parquet plan, or of the files in its folder.

    The numbers of rows and values, and the statistics of each row group and page, must be those of
    the rows; indexes and Bloom filters, which plans do not have, are errors, since they are not
    checked. All copies of the summary must be the same. A folder must have no other files that
    readers take for parts of it. Columns that are not those of a plan are left out.

    Raises:
        ValueError: The metadata is damaged.
        OSError: A file cannot be read.

    Cost: O(n); memory for a column of a row group.
    """
    if file.is_arrow:
        return
    files = [file.path / METADATA, *file.parts] if file.path.is_dir() else file.parts
    for path in files:
        place = f"file {quoted(path.name)}: " if file.path.is_dir() else ""
        with explain_errors(file.name_of(path)):
            try:
                errors = list(check_file(path, file.schema.metadata[PLAN_KEY]))
            except (LookupError, TypeError, AttributeError, OverflowError) as error:
                raise pa.ArrowInvalid("its metadata is incomplete") from error
        yield from (f"{place}{error}" for error in errors)
    if file.path.is_dir():
        yield from find_other_files(file.path, set(files))


def check_file(path: Path, summary: bytes) -> Iterator[str]:
    """Yield the errors in the metadata of a Parquet file, given the summary of the plan."""
    with open_parquet(path) as content, path.open("rb") as source:
        source.seek(-8, 2)
        size = int.from_bytes(source.read(4), "little")
        source.seek(-8 - size, 2)
        metadata = CompactReader(source.read(size)).read_struct()
        if any(copy != summary for copy in find_summaries(metadata)):
            yield "the copies of the summary in its metadata differ"
        groups = metadata[GROUPS]
        num_rows = sum(group[GROUP_ROWS] for group in groups)
        if num_rows != metadata[NUM_ROWS]:
            yield f"its row groups have {num_rows:,} rows, but it has {metadata[NUM_ROWS]:,}"
        if any(SORTING in group for group in groups):
            yield "its row groups have an order of rows, which is not checked"
        for place in range(content.metadata.num_columns):
            name = content.schema.column(place).path
            faults = []
            for number, group in enumerate(groups if name in KINDS else ()):
                values = plain(tables.read_column(path, content, number, name))
                faults += [
                    f"column {quoted(name)} of row group {number:,}: {fault}"
                    for fault in check_column(group[COLUMNS][place], values, group, source)
                ]
            if faults:
                yield f"{faults[0]} (errors in this column: {len(faults):,})"


def find_summaries(metadata: dict[int, Any]) -> list[bytes | None]:
    """Return the copies of the summary in the metadata of a file, None for one that is missing."""
    pairs = [(pair[1], pair.get(2)) for pair in metadata.get(PAIRS, ())]
    copies = [value for key, value in pairs if key == PLAN_KEY]
    for key, value in pairs:
        if key == SCHEMA_KEY:
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value)))
            inner = (schema.metadata or {}).get(PLAN_KEY)
            # The files of a folder may have none.
            copies += [inner] if copies or inner else []
    return copies


def check_column(
    column: dict[int, Any], values: pa.ChunkedArray, group: dict[int, Any], source: Any
) -> Iterator[str]:
    """Yield the errors in the metadata of a column in a row group, given its values."""
    chunk, num_rows = column[CHUNK], group[GROUP_ROWS]
    for part, names in ((column, NOT_IN_COLUMNS), (chunk, NOT_IN_CHUNKS)):
        for field in sorted(part.keys() & names.keys()):
            yield f"it has {names[field]}, which is not checked"
    if not len(values) == num_rows == chunk[NUM_VALUES]:
        yield (
            f"it has {len(values):,} values, but its metadata has {chunk[NUM_VALUES]:,}, and that "
            f"of the row group {num_rows:,}"
        )
    yield from compare_statistics(chunk.get(STATISTICS, {}), values)
    yield from check_pages(chunk, values, source)


def check_pages(chunk: dict[int, Any], values: pa.ChunkedArray, source: Any) -> Iterator[str]:
    """Yield the errors in the headers of the pages of a column in a row group."""
    begin = chunk.get(DICTIONARY_OFFSET, chunk[DATA_OFFSET])
    source.seek(0, 2)
    size = max(0, min(chunk[CHUNK_SIZE], source.tell() - begin))
    source.seek(begin)
    reader = CompactReader(source.read(size))
    first, row = None, 0
    encodings: Counter[tuple[int, int]] = Counter()
    while reader.at < size:
        at = begin + reader.at
        page = reader.read_struct()
        reader.skip(page[PAGE_SIZE])
        kind = PAGE_KINDS[page[PAGE_TYPE]]
        header = page[kind.header]
        encodings[page[PAGE_TYPE], header[kind.encoding]] += 1
        if page[PAGE_TYPE] == DICTIONARY_PAGE:
            continue
        first = at if first is None else first
        of_page = values.slice(row, header[PAGE_VALUES])
        row += header[PAGE_VALUES]
        for fault in compare_statistics(header.get(kind.statistics, {}), of_page):
            yield f"in a page, {fault}"
    is_first = first in (None, chunk[DATA_OFFSET])
    if not is_first or (size, row) != (chunk[CHUNK_SIZE], len(values)):
        yield "its pages are not those that its metadata has"
    counted = {(part[1], part[2]): part[3] for part in chunk.get(ENCODING_COUNTS, ())}
    if counted and counted != encodings:
        yield "the encodings of its pages are not those that its metadata has"


def compare_statistics(fields: dict[int, Any], values: pa.ChunkedArray) -> Iterator[str]:
    """Yield the differences between statistics in metadata and those of the values."""
    ends = pc.min_max(values).as_py() if fields.keys() & BOUNDS.keys() else {}
    for field, name in BOUNDS.items():
        if field in fields and not is_bound(fields[field], ends[name], values.type, name):
            found = fields[field]
            if pa.types.is_integer(values.type):
                found = int.from_bytes(found, "little", signed=True)
            yield f"{name} is {quoted(found)} in its statistics, expected {quoted(ends[name])}"
    counts = []
    if NULL_COUNT in fields:
        counts.append(("null_count", fields[NULL_COUNT], values.null_count))
    if DISTINCT_COUNT in fields:
        counts.append(("distinct_count", fields[DISTINCT_COUNT], pc.count_distinct(values).as_py()))
    for name, count, expected in counts:
        if count != expected:
            yield f"{name} is {quoted(count)} in its statistics, expected {expected:,}"


def is_bound(found: bytes, value: Any, kind: pa.DataType, name: str) -> bool:
    """Return whether bytes are the least or the greatest value, or a bound that is shorter."""
    if isinstance(value, bytes):
        is_below = found < value if name == "min" else found > value
        return found == value or (len(found) < len(value) and is_below)
    if value is None:
        return False
    return found == int(value).to_bytes(max(1, kind.bit_width // 8), "little", signed=True)


def plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return values as their statistics have them: text as bytes, without dictionaries."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return values.cast(pa.large_binary()) if is_text else values


def find_other_files(folder: Path, files: set[Path]) -> Iterator[str]:
    """Yield an error if a folder has files that are not of the plan and not hidden."""
    others = []
    for path in sorted(folder.rglob("*")):
        names = path.relative_to(folder).parts
        if path not in files and not path.is_dir() and not any(name[0] in "._" for name in names):
            others.append("/".join(names))
    if others:
        yield f"the folder has another file, {quoted(others[0])} (other files: {len(others):,})"

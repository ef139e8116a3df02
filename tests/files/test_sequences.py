"""What is read from tables of lengths, and what is refused with one line."""

from __future__ import annotations

import gzip
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pysam
import pytest
from command import run
from fasta import bgzip, fasta
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.files.fasta import ReadOptions
from virnucpro.files.inputs import find_inputs, total_size
from virnucpro.files.sequences import read_files


def read(path: Path, **options: Any) -> list[tuple[str, int]]:
    sequences = read_files([str(path)], ReadOptions(**options))
    return list(zip(sequences.ids.to_pylist(), sequences.lengths.tolist(), strict=True))


IDS = ["b", "a", "007", "", "x y"]
LENGTHS = [300, 2, 0, 5000, 1]


def test_tables(tmp_path: Path) -> None:
    table = pa.table({"name": IDS, "size": pa.array(LENGTHS, pa.uint16()), "other": [1.5] * 5})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    pyarrow.feather.write_feather(table, tmp_path / "a.arrow")
    with pa.ipc.new_stream(str(tmp_path / "stream.ipc"), table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    lines = ["name\tsize\tother", *(f"{n}\t{k}\tz" for n, k in zip(IDS, LENGTHS, strict=True))]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    (tmp_path / "a.TSV.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    expected = list(zip(IDS, LENGTHS, strict=True))
    for name in ("a.parquet", "a.arrow", "stream.ipc", "a.tsv", "a.TSV.gz"):
        path = tmp_path / name
        assert read(path, id_column="name", length_column="size") == expected, name
        plan = tmp_path / "plan.parquet"
        columns = ("--id-column", "name", "--length-column", "size")
        assert run("pack", path, "-o", plan, *columns).returncode == 0
        assert run("verify", plan, path).returncode == 0
        assert pq.read_table(plan)["id"].to_pylist() == [
            "x y" if n == "x y" else n for n in ["", "b", "a", "x y", "007"]
        ]


def test_numbers_as_ids_and_dictionaries(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [10, 9], "length": [1, 1]}), path)
    assert read(path) == [("10", 1), ("9", 1)]
    names = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"id": names, "length": [1, 2, 3]}), path)
    assert read(path) == [("x", 1), ("y", 2), ("x", 3)]


def test_index_of_samtools(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(fasta([("b", "MKT" * 100), ("007", "MK")]))
    pysam.faidx(str(tmp_path / "a.fa"))
    assert read(tmp_path / "a.fa.fai") == [("b", 300), ("007", 2)]


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def cut_tsv(path: Path) -> None:
    content = bgzip(path, b"id\tlength\n" + b"abcdefgh\t12\n" * 20_000).read_bytes()
    path.write_bytes(content[: int.from_bytes(content[16:18], "little") + 1])


def cut_stream(path: Path) -> None:
    some = pa.table({"id": ["a"] * 9, "length": [1] * 9})
    with pa.ipc.new_stream(str(path), some.schema) as stream:
        stream.write_table(some, max_chunksize=3)
    path.write_bytes(path.read_bytes()[:-8])


def writes(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


BAD_TABLES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("missing.parquet", lambda _: None, "no such file"),
    ("name.parquet", table(name=["a"], length=[1]), "no column 'id' (it has name, length)"),
    ("size.parquet", table(id=["a"], size=[1]), "no column 'length' (it has id, size)"),
    ("null.parquet", table(id=["a", "b"], length=[1, None]), "column 'length' is null in row 1"),
    ("ids.parquet", table(id=[None, "b"], length=[1, 1]), "column 'id' is null in row 0"),
    ("text.parquet", table(id=["a"], length=["1"]), "must contain integers (got string)"),
    ("float.parquet", table(id=["a"], length=[1.0]), "must contain integers (got double)"),
    ("minus.parquet", table(id=["a", "b"], length=[1, -2]), "is negative in row 1 (got -2)"),
    (
        "empty.parquet",
        table(id=pa.array([], "string"), length=pa.array([], "int64")),
        "no sequence",
    ),
    ("spoilt.parquet", writes(b"PAR1PAR1"), "Parquet"),
    ("spoilt.arrow", writes(b"ARROW1"), "."),
    ("twice.tsv", writes(b"id\tid\tlength\na\tb\t1\n"), "more than one column 'id'"),
    ("sum.parquet", table(id=["a", "b"], length=[2**62, 2**62]), "does not fit in 64 bits"),
    ("cut.tsv.gz", cut_tsv, "the bgzip end-of-file block is missing"),
    ("cut.ipc", cut_stream, "end-of-stream mark is missing"),
    ("empty.tsv", writes(b""), "Empty CSV file"),
    ("header.tsv", writes(b"id\tlength\n"), "no sequence"),
    ("letters.tsv", writes(b"id\tlength\na\tmany\n"), "must contain integers (got string)"),
    ("ragged.tsv", writes(b"id\tlength\na\t1\nb\n"), "Expected 2 columns, got 1"),
    ("a.fq.fai", writes(b"a\t2\t3\t2\t3\t9\n"), "Expected 5 columns, got 6"),
]


@pytest.mark.parametrize(
    ("name", "make", "message"), BAD_TABLES, ids=[bad[0] for bad in BAD_TABLES]
)
def test_bad_tables_are_reported_in_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], Any], message: str
) -> None:
    make(tmp_path / name)
    result = run("pack", tmp_path / name, "-o", tmp_path / "plan.parquet")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"virnucpro: error: {tmp_path / name}: ") or name == "sum.parquet"
    assert message in line
    assert not (tmp_path / "plan.parquet").exists()


@given(st.lists(st.sampled_from(["a", "b", "c", "dd", "é", ""]), min_size=1, max_size=20))
def test_duplicates_are_found(ids: list[str]) -> None:
    with NamedTemporaryFile(suffix=".parquet") as file:
        pq.write_table(pa.table({"id": ids, "length": np.arange(len(ids))}), file.name)
        number, some = read_files([file.name]).find_duplicates()
    assert number == len(ids) - len(set(ids))
    repeated = {name for name, count in Counter(ids).items() if count > 1}
    assert set(some) <= repeated
    assert len(some) == min(3, len(repeated))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_residues_of_rows_are_read(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    """Those of any rows, in their order; what else is read is the same as without them."""
    records = [(f"s{i}", "ACDE"[i % 4] * (i % 7)) for i in range(40)]
    names = [str(tmp_path / "a.fa"), str(tmp_path / "b.fa")]
    for name, part in zip(names, (records[:15], records[15:]), strict=True):
        Path(name).write_bytes(compress(fasta(part)))
    progress: list[int] = []
    sequences = read_files(names, progress=progress.append, keep_texts=True)
    assert progress[-1] == sum(Path(name).stat().st_size for name in names)
    rows = np.random.default_rng(0).integers(0, 40, 100)
    assert sequences.read(rows) == [records[row][1] for row in rows.tolist()]
    assert sequences.read(rows[:0]) == []
    plain = read_files(names)
    assert plain.texts == []
    assert sequences.inputs == plain.inputs
    assert sequences.changes == plain.changes
    assert sequences.ids.equals(plain.ids)
    assert sequences.lengths.tolist() == plain.lengths.tolist()
    Path(names[0]).write_bytes(compress(fasta(records[:15][::-1])))
    if compress is bytes:
        with pytest.raises(ValueError, match=r"a\.fa: the file has changed"):
            sequences.read(rows)
    else:
        # The copy is of the file that was read.
        assert sequences.read(rows) == [records[row][1] for row in rows.tolist()]


def test_pipes_are_not_read_twice(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=f"^{pipe}: not a regular file, so it cannot be read more"):
        read_files([str(pipe)], keep_texts=True)
    for keep_texts in (False, True):
        with pytest.raises(IsADirectoryError, match=f"^{tmp_path}: is a folder$"):
            read_files([str(tmp_path)], keep_texts=keep_texts)


def test_tables_have_no_residues(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a"], "length": [1]}), path)
    with pytest.raises(ValueError, match=f"^{path}: a table of lengths, which has no residues$"):
        read_files([str(path)], keep_texts=True)


@pytest.mark.parametrize("keep_texts", [False, True])
def test_progress_goes_up_to_the_size_of_the_files(tmp_path: Path, keep_texts: bool) -> None:
    text = fasta((f"s{i}", "ACDE" * (i % 300)) for i in range(10_000))
    (tmp_path / "a.fa").write_bytes(text)
    (tmp_path / "b.fa.gz").write_bytes(gzip.compress(text))
    names = ["a.fa", "b.fa.gz"]
    if not keep_texts:
        table = pa.table({"id": [str(i) for i in range(200_000)], "length": range(200_000)})
        pq.write_table(table, tmp_path / "c.parquet")
        pa.feather.write_feather(table, str(tmp_path / "d.arrow"), chunksize=20_000)
        lines = "".join(f"{i}\t{i}\n" for i in range(200_000))
        (tmp_path / "e.tsv").write_text("id\tlength\n" + lines)
        (tmp_path / "f.tsv.gz").write_bytes(gzip.compress(("id\tlength\n" + lines).encode()))
        names += ["c.parquet", "d.arrow", "e.tsv", "f.tsv.gz"]
    inputs = find_inputs(str(tmp_path / name) for name in names)
    progress: list[int] = []
    read_files([file.path for file in inputs], None, progress.append, keep_texts)
    assert progress == sorted(progress)
    assert progress[-1] == total_size(inputs)
    assert len(set(progress)) >= (20 if len(names) > 2 else 4)

"""Inputs and plans in an object store."""

from __future__ import annotations

import gc
import gzip
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from fasta import fasta
from object_store import BUCKET, ObjectStore

from virnucpro.data import GreedyPacker, PackedPlanDataset, PackingPlan, ReadOptions, pack_files
from virnucpro.files.fasta import read_fasta
from virnucpro.files.inputs import find_inputs
from virnucpro.files.output import write_file
from virnucpro.files.places import open_input, resolve
from virnucpro.files.plan_reader import METADATA, read_summary
from virnucpro.files.record_file import RecordFile
from virnucpro.files.sequences import read_files
from virnucpro.files.tables import open_table

pytestmark = pytest.mark.process

RECORDS = [("a", "MKTAY"), ("b", "MKTAYIAK"), ("c", "MK")]
FILES = ["a b.fa", "a%20b.fa", "d/é.fa", "d/q?*[1].fa", "d/h#x+&=;.fa", "d-1/x.fa", "_e/f.fa"]
FILES += ["d/README", "d/x.fai", "d/.h/y.fa", "d/s/t/z.tsv.gz"]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def copies(temporary: Path) -> list[Path]:
    """Return the temporary copies that exist."""
    gc.collect()
    return [path for path in temporary.rglob("*") if path.is_file()]


@pytest.fixture
def tree(tmp_path: Path, store: ObjectStore) -> Path:
    """The same files in a folder of this machine and in the store."""
    folder = tmp_path / "tree"
    for name in FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(fasta(RECORDS))
        store.write(name, fasta(RECORDS))
    return folder


@pytest.mark.parametrize(
    ("path", "key"),
    [
        *(("", ""), ("d", "d"), ("d/", "d/"), ("a b.fa", "a b.fa"), ("a%20b.fa", "a%2520b.fa")),
        *(("d/*.fa", "d/*.fa"), ("**/x.fa", "**/x.fa"), ("**", "**"), ("d/**/*.gz", "d/**/*.gz")),
        *(("d/q[?]*", "d/q%3F*"), ("*/s/*/z*", "*/s/*/z*"), ("d/.h/*", "d/.h/*")),
        *(("_e/f.fa", "_e/f.fa"), ("d/[!a-z]*", "d/[!a-z]*"), ("d/q?*[1].fa", "d/q%3F*[1].fa")),
    ],
)
def test_names_stand_for_the_same_files_as_on_this_machine(
    tree: Path, store: ObjectStore, path: str, key: str
) -> None:
    paths = [Path(file.path) for file in find_inputs([f"{tree}/{path}"])]
    local = [path.relative_to(tree).as_posix() for path in paths]
    found = find_inputs([store.uri(key)])
    assert [resolve(file.name)[1] for file in found] == [f"{BUCKET}/{name}" for name in local]
    assert local
    for file in pickle.loads(pickle.dumps(found)):
        # The name leads there again, and stands for nothing else.
        assert find_inputs([file.name]) == [file]
        assert open_input(file.path).read() == fasta(RECORDS)


def test_what_is_not_there(store: ObjectStore) -> None:
    store.write("a/README", b"")
    for uri, message in {
        store.uri("b.fa"): "no such file",
        store.uri("b/*"): "matches no file: s3://proteins/b?.* is not a folder",
        store.uri("a/*.fa"): "matches no file",
        store.uri("a"): r"is a folder without FASTA files or tables \(it has 1 others, .*README",
        f"s3://missing/a{store.query}": "no such file",
        f"s3://missing/*{store.query}": "matches no file",
        f"s3://{store.query}": "Missing bucket name",
        store.uri("a") + "&hush=hush": "its query has a part that pyarrow does not know",
        "ftp://host/a.fa": "pyarrow has no file system for ftp://",
        "s3://AKIA:hu sh@bucket/a": "not a URI that pyarrow can read",
    }.items():
        with pytest.raises((ValueError, OSError), match=message) as caught:
            find_inputs([uri])
        assert "hush" not in str(caught.value)
        assert "hu sh" not in str(caught.value)


def test_keys_in_the_environment_or_the_uri(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a.fa", fasta(RECORDS))
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    assert list(read_fasta("s3://proteins/a.fa")) == RECORDS
    access, secret = (os.environ.pop(name) for name in list(store.environment)[:2])
    secret = secret.replace("/", "%2F").replace("+", "%2B")
    uri = f"s3://{access}:{secret}@proteins/a.fa"
    assert list(read_fasta(uri)) == RECORDS
    (found,) = find_inputs([uri])
    assert found == ("s3://proteins/a.fa", uri, len(fasta(RECORDS)))
    assert read_files([uri]).inputs[0].name == "s3://proteins/a.fa"


@pytest.fixture
def denied(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store that knows nobody."""
    store.write("a.fa", fasta(RECORDS))
    store.post("reset-auth", b"0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    yield store
    store.post("reset-auth", b"inf")


def test_access_denied(denied: ObjectStore, tmp_path: Path) -> None:
    message = r"^s3://proteins/.*: cannot be read \(.*ACCESS_DENIED"
    for name in ("a.fa", "*.fa", ""):
        with pytest.raises(OSError, match=message):
            find_inputs([denied.uri(name)])
    for function in (open_input, read_summary, PackingPlan.load, lambda uri: list(read_fasta(uri))):
        with pytest.raises(OSError, match=message):
            function(denied.uri("a.fa"))
    (tmp_path / "a.fa").write_bytes(fasta(RECORDS))
    with pytest.raises(OSError, match=message):
        pack_files(tmp_path / "a.fa", denied.uri("plan.parquet"), GreedyPacker(100))


def test_files_are_read_as_on_this_machine(store: ObjectStore, tmp_path: Path) -> None:
    table = pa.table({"id": [f"s{i}" for i in range(1000)], "length": range(1000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    with pa.ipc.new_file(tmp_path / "b.arrow", table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "c.tsv").write_text("id\tlength\nx\t5\n")
    (tmp_path / "d.tsv.gz").write_bytes(gzip.compress(b"id\tlength\ny\t5\n"))
    # Longer than what is read at a time.
    records = [(f"r{i}", "MKTAYIAK" * 1000) for i in range(1200)]
    (tmp_path / "e.fa").write_bytes(fasta(records))
    (tmp_path / "f.fa.gz").write_bytes(gzip.compress(fasta(RECORDS)))
    (tmp_path / "g.fa.fai").write_text("z\t5\t3\t5\t6\n")
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        store.write(name, (tmp_path / name).read_bytes())
    local = read_files([str(tmp_path / name) for name in names])
    remote = read_files([store.uri(name) for name in names])
    assert remote.ids.equals(local.ids)
    assert (remote.lengths == local.lengths).all()
    assert [file.name for file in remote.inputs] == [store.uri(name) for name in names]
    assert [(file.bytes, file.sha256) for file in remote.inputs] == [
        (file.bytes, file.sha256) for file in local.inputs
    ]
    file = open_input(store.uri("c.tsv"))
    assert (file.read(3), file.tell(), file.seek(-2, 2), file.read(), file.read()) == (
        *(b"id\t", 3, 12, b"5\n"),
        b"",
    )
    store.write("a.parquet", b"PAR1" + bytes(100))
    with pytest.raises((ValueError, OSError), match=r"^s3://.*a\.parquet.*: damaged"):
        read_files([store.uri("a.parquet")])


def test_files_that_change_while_they_are_read(store: ObjectStore) -> None:
    uri = store.uri("a.fa")
    for change in (
        lambda: store.write("a.fa", b">a\nMK\n"),
        lambda: store.files.delete_file(f"{BUCKET}/a.fa"),
    ):
        store.write("a.fa", fasta(RECORDS))
        with open_input(uri) as file:
            change()
            with pytest.raises(OSError, match=r"^s3://proteins/a\.fa?.*: (changed|cannot be read)"):
                file.read()


def test_tables_that_change_between_two_reads(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a.tsv", b"id\tlength\nx\t5\n")

    def replace(*arguments: Any) -> Any:
        store.write("a.tsv", b"id\tlength\nx\t5\ny\t6\n")
        return open_table(*arguments)

    monkeypatch.setattr("virnucpro.files.sequences.open_table", replace)
    with pytest.raises(OSError, match=r"^s3://proteins/a\.tsv.*: changed while it was read$"):
        read_files([store.uri("a.tsv")])


def test_records_are_read_from_a_copy(store: ObjectStore, temporary: Path) -> None:
    store.write("a.fa", fasta(RECORDS))
    file = RecordFile(store.uri("a.fa"), ReadOptions())
    assert file.read([2, 0]) == [RECORDS[2], RECORDS[0]]
    assert len(copies(temporary)) == 1
    state = pickle.dumps(file)
    del file
    assert copies(temporary) == []
    file = pickle.loads(state)
    assert file.read([1]) == [RECORDS[1]]
    del file
    store.write("a.fa", fasta(RECORDS[:2]))
    with pytest.raises(ValueError, match=r"^s3://proteins/a\.fa.*: the file has changed since"):
        pickle.loads(state).read([1])
    store.files.delete_file(f"{BUCKET}/a.fa")
    with pytest.raises(FileNotFoundError, match=r"^s3://proteins/a\.fa.*: no such file$"):
        pickle.loads(state).read([1])
    assert copies(temporary) == []


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_plans(store: ObjectStore, tmp_path: Path, temporary: Path, suffix: str) -> None:
    (tmp_path / "a.fa").write_bytes(fasta(RECORDS))
    uri = store.uri(f"my%20plans/plan{suffix}")
    packer = GreedyPacker(12)
    summary = pack_files(tmp_path / "a.fa", uri, packer)
    pack_files(tmp_path / "a.fa", tmp_path / f"plan{suffix}", packer)
    assert store.keys() == [f"my plans/plan{suffix}"]
    assert store.read(f"my plans/plan{suffix}") == (tmp_path / f"plan{suffix}").read_bytes()
    assert copies(temporary) == []
    assert read_summary(uri) == summary
    plan = PackingPlan.load(uri)
    assert plan == PackingPlan.load(tmp_path / f"plan{suffix}")
    assert pickle.loads(pickle.dumps(plan)) == plan
    plan.save(uri)
    assert PackingPlan.load(uri) == plan
    del plan
    assert copies(temporary) == []


def test_plan_data_sets_keep_one_copy(store: ObjectStore, temporary: Path) -> None:
    store.write("a.fa.gz", gzip.compress(fasta(RECORDS)))
    uri = store.uri("plan.parquet")
    pack_files(store.uri("a.fa.gz"), uri, GreedyPacker(12), sequences=True)
    dataset = PackedPlanDataset(uri)
    batches = list(dataset)
    assert sorted(record["id"] for batch in batches for record in batch) == ["a", "b", "c"]
    before = copies(temporary)
    assert len(before) == 1
    assert list(dataset) == batches == list(PackedPlanDataset(uri))
    again = pickle.loads(pickle.dumps(dataset))
    assert copies(temporary) == before
    assert list(again) == batches
    # A plan that is replaced is noticed.
    pack_files(store.uri("a.fa.gz"), uri, GreedyPacker(100), sequences=True)
    with pytest.raises(ValueError, match=r"^s3://.*: the plan has changed since the data set was"):
        list(dataset)
    del dataset, again
    assert copies(temporary) == []


def test_folders_of_plans(store: ObjectStore, tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "a.fa").write_bytes(fasta(RECORDS))
    path = tmp_path / "plan.parquet"
    pack_files(tmp_path / "a.fa", path, GreedyPacker(12))
    table = pq.read_table(path)
    pq.write_metadata(table.schema, tmp_path / METADATA)
    for name, data in {
        METADATA: (tmp_path / METADATA).read_bytes(),
        "part-00000.parquet": path.read_bytes(),
        "_SUCCESS": b"",
    }.items():
        store.write(f"plan/{name}", data)
    expected = PackingPlan.load(path)
    assert PackingPlan.load(store.uri("plan")) == PackingPlan.load(store.uri("plan/")) == expected
    store.write("plan/part-00000.parquet", path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"^s3://proteins/plan\?.*: not a plan file \(damaged"):
        PackingPlan.load(store.uri("plan"))
    store.files.delete_file(f"{BUCKET}/plan/{METADATA}")
    with pytest.raises(ValueError, match="a folder without a file _common_metadata"):
        PackingPlan.load(store.uri("plan"))
    for key, message in {"none": "no such file", "plan/_SUCCESS": "neither Parquet nor"}.items():
        with pytest.raises((ValueError, OSError), match=f"^s3://.*: .*{message}"):
            PackingPlan.load(store.uri(key))
    assert copies(temporary) == []


def write_and(uri: str, action: Callable[[], None]) -> None:
    """Write a file to a place, and do something before it is complete."""
    with write_file(uri) as file:
        file.write(bytes(2**24))
        action()


def test_failures_leave_nothing(store: ObjectStore, temporary: Path) -> None:
    def stop() -> None:
        raise RuntimeError("stop")

    store.write("old", b"old")
    for key in ("old", "new"):
        with pytest.raises(RuntimeError, match="stop"):
            write_and(store.uri(key), stop)
    assert (store.keys(), store.read("old")) == (["old"], b"old")
    message = r"^s3://proteins/new\?.*: cannot be written \(.*NO_SUCH_BUCKET"
    with pytest.raises(OSError, match=message):
        write_and(store.uri("new"), lambda: store.post("reset"))
    assert copies(temporary) == []
    store.clear()
    write_and(store.uri("new"), lambda: None)
    assert store.read("new") == bytes(2**24)
    assert copies(temporary) == []


@pytest.mark.parametrize(
    ("output", "inputs", "message"),
    [
        ("in/a.fa", ["in/a.fa"], "output is also an input"),
        ("in/b", ["in"], "output is inside an input folder"),
        ("in", [], "is a folder"),
        ("new/", [], "is a folder"),
    ],
)
def test_bad_outputs(store: ObjectStore, output: str, inputs: list[str], message: str) -> None:
    store.write("in/a.fa", fasta(RECORDS))
    with (
        pytest.raises((ValueError, OSError), match=rf"^s3://proteins/{output}\?.*: {message}$"),
        write_file(store.uri(output), map(store.uri, inputs)),
    ):
        pytest.fail("the output was opened")


def test_bad_places_of_outputs(store: ObjectStore) -> None:
    for uri, message in {
        f"s3://missing/a{store.query}": "its bucket does not exist",
        "ftp://host/a": "pyarrow has no file system for ftp://",
        "s3://proteins/a?endpoint_override=127.0.0.1:1&scheme=http": "cannot be read",
    }.items():
        with pytest.raises((ValueError, OSError), match=message), write_file(uri):
            pytest.fail("the output was opened")

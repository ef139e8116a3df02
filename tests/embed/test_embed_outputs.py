"""Folders that embeddings cannot be written to, or that have other files."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from embedding_job import Job, StopError, files_of
from object_store import ObjectStore


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_magic(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4] + b"PAR2")


def drop_metadata(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(), path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def exchange(path: Path) -> None:
    """Give a part the name of another one."""
    other = sorted(path.parent.iterdir())[1]
    other.replace(path)


DAMAGES = [truncate, flip_magic, drop_metadata, make_folder, exchange]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_parts_are_named(job: Job, damage: Callable[[Path], None]) -> None:
    path = job.parts()[0]
    damage(path)
    job.parts()[-1].unlink()
    before = job.state()
    with pytest.raises((ValueError, OSError), match=path.name):
        job.run()
    assert job.state() == before


@pytest.mark.parametrize(
    "name", ["notes.txt", "part-00000-of-00007.parquet", "other.parquet", "folder/"]
)
def test_foreign_files_are_named(job: Job, name: str) -> None:
    path = job.output / name
    path.mkdir() if name.endswith("/") else path.write_bytes(b"mine")
    before = job.state()
    with pytest.raises(ValueError, match=path.name):
        job.run()
    assert job.state() == before


def test_hidden_files_are_left_alone(job: Job) -> None:
    for name in (".hidden", "_SUCCESS"):
        (job.output / name).write_bytes(b"mine")
    before = job.state()
    assert job.run().written == 0
    assert job.state() == before


def test_a_full_disk_is_an_error_before_the_work(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    shutil.rmtree(job.output)
    stages = []
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40 - 1000, 1000))
        with pytest.raises(OSError, match=r"out: not enough space: .* 1 KiB are free") as caught:
            job.run(progress=lambda stage, *_: stages.append(stage))
    assert "embedding" not in stages
    assert str(caught.value).isprintable()
    assert not job.output.exists() or not job.parts()
    job.run()


def outputs(job: Job) -> dict[str, tuple[Path, str]]:
    """Return outputs that are refused, and the reasons."""
    (job.folder / "a file").touch()
    (job.folder / "plan").mkdir()
    return {
        "file": (job.folder / "a file", "a file: is not a folder"),
        "in a file": (job.input / "out", "its folder does not exist"),
        "parent": (job.folder / "missing" / "out", "its folder does not exist"),
        "input": (job.input, "is not a folder"),
        "in the input": (job.folder / "in" / "out", "output is inside an input folder"),
        "model": (job.model, "model: has config.json, which is not a part"),
    }


@pytest.mark.parametrize("name", ["file", "in a file", "parent", "input", "in the input", "model"])
def test_places_that_are_refused(job: Job, name: str) -> None:
    place, reason = outputs(job)[name]
    inputs = job.input
    if name == "in the input":
        inputs = job.folder / "in"
        inputs.mkdir()
        shutil.copy(job.input, inputs)
    before = files_of(job.folder)
    with pytest.raises((ValueError, OSError), match=reason):
        job.run(inputs=inputs, output=place)
    assert files_of(job.folder) == before


def test_an_empty_folder_and_a_link_are_outputs(job: Job) -> None:
    (job.folder / "empty").mkdir()
    (job.folder / "link").symlink_to("empty")
    run = job.run(output=job.folder / "link")
    assert run.complete == run.parts == len(list((job.folder / "empty").iterdir()))
    assert job.run(output=job.folder / "empty").written == 0
    assert (job.folder / "link").is_symlink()


def test_a_store_of_objects(job: Job, store: ObjectStore) -> None:
    output = store.uri("out")
    keys = [f"out/{path.name}" for path in job.parts()]

    def progress(_stage: str, _done: int, _total: int | None) -> None:
        if len(store.keys()) > 1:
            raise StopError

    with pytest.raises(StopError):
        job.run(output=output, progress=progress)
    before = store.keys()
    assert 1 < len(before) < len(keys)
    run = job.run(output=output)
    assert (run.written, run.complete) == (len(keys) - len(before), len(keys))
    assert store.keys() == keys
    for path in job.parts():
        assert store.read(f"out/{path.name}") == path.read_bytes()
    store.write("out/notes.txt", b"mine")
    with pytest.raises(ValueError, match=r"has notes\.txt, which is not a part"):
        job.run(output=output)
    store.write(keys[0], store.read(keys[0])[:-100])
    store.files.delete_file("proteins/out/notes.txt")
    with pytest.raises(ValueError, match=f"{keys[0]}.*: not a part of embeddings"):
        job.run(output=output)
    assert store.keys() == keys

"""Embedding jobs that are stopped and resumed, and what is in the way of resuming them."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoints import save_checkpoint
from fasta import fasta
from models import proteins

from virnucpro.data import EmbeddingRun, GreedyPacker, ReadOptions, embed_files, pack_files
from virnucpro.files import embedding_parts
from virnucpro.jobs import embed_work

PROTEINS = [(each["id"], each["sequence"]) for each in proteins(120)]


def files_of(folder: Path) -> dict[Path, object]:
    """Return what is in a folder, and what tells whether a file was written again."""
    found: dict[Path, object] = {}
    for path in folder.rglob("*"):
        stat = path.stat()
        found[path] = (stat.st_ino, stat.st_mtime_ns, path.read_bytes()) if path.is_file() else None
    return found


def read(output: Path) -> pa.Table:
    """Return all parts, in order."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(output.iterdir())])


class Job:
    """A job in a folder, with its input and model, and an output that was complete once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.input, self.model, self.output = folder / "a.fa", folder / "model", folder / "out"
        self.input.write_bytes(fasta(PROTEINS))
        save_checkpoint(self.model)
        assert self.run().complete
        self.whole = read(self.output)
        for path in (self.input, self.model, self.output):
            copy = folder / "saved" / path.name
            copy.parent.mkdir(exist_ok=True)
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, copy)

    def restore(self) -> None:
        """Undo what a test has changed."""
        for path in self.folder.iterdir():
            if path.name != "saved":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.folder / "saved", self.folder, dirs_exist_ok=True)

    def run(self, **changed: Any) -> EmbeddingRun:
        arguments = {
            "inputs": self.input,
            "output": self.output,
            "model": self.model,
            "max_tokens": 256,
            "device": "cpu",
        }
        return embed_files(**{**arguments, **changed})

    def parts(self) -> list[Path]:
        return sorted(self.output.iterdir())

    def state(self) -> dict[Path, object]:
        """Return the files of the output, and what tells whether they were written again."""
        return files_of(self.output)


@pytest.fixture(scope="module", autouse=True)
def _small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embed_work, "MIN_PART_RESIDUES", 1000)
        yield


@pytest.fixture(scope="module")
def whole_job(_small_parts: None, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def job(whole_job: Job) -> Job:
    whole_job.restore()
    return whole_job


# Arguments, and what the error says about them.
OTHER_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "max_tokens": ({"max_tokens": 300}, "max_tokens"),
    "max_sequence_length": ({"max_sequence_length": 100}, "max_sequence_length"),
    "overlong": ({"overlong": "drop"}, "overlong"),
    "split": ({"overlong": "split"}, "overlong"),
    "options": ({"options": ReadOptions(uppercase=False)}, "uppercase"),
    "deduplicate": ({"deduplicate": False}, "deduplicate"),
    "states": ({"states": True}, "states"),
    "dtype": ({"dtype": "bfloat16"}, "dtype"),
    "embedding_dtype": ({"embedding_dtype": "float16"}, "embedding_dtype"),
}


def change_weight(job: Job) -> None:
    from safetensors.torch import load_file, save_file

    path = job.model / "model.safetensors"
    weights = load_file(path)
    name = max(weights)
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, path, {"format": "pt"})


def change_config(job: Job) -> None:
    path = job.model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_norm_eps": 1e-6}))


def change_vocabulary(job: Job) -> None:
    path = job.model / "vocab.txt"
    path.write_text(path.read_text().replace("L\nA\n", "A\nL\n"))


def change_residue(job: Job) -> None:
    job.input.write_bytes(job.input.read_bytes().replace(b"L", b"V", 1))


def change_id(job: Job) -> None:
    job.input.write_bytes(job.input.read_bytes().replace(b">s5 ", b">t5 "))


def change_order(job: Job) -> None:
    job.input.write_bytes(fasta(PROTEINS[::-1]))


def add_sequence(job: Job) -> None:
    job.input.write_bytes(fasta([*PROTEINS, ("new", "MKTAY")]))


# What is changed between two runs, and what the error says.
OTHER_FILES: dict[str, tuple[Callable[[Job], object], str]] = {
    "weight": (change_weight, "model"),
    "config": (change_config, "model"),
    "vocabulary": (change_vocabulary, "model"),
    "residue": (change_residue, "a.fa"),
    "id": (change_id, "a.fa"),
    "order": (change_order, "a.fa"),
    "one more": (add_sequence, "a.fa"),
}


def test_a_complete_job_does_nothing(job: Job) -> None:
    before = job.state()
    run = job.run()
    assert (run.written, run.complete, run.parts) == (0, len(before), len(before))
    assert job.state() == before


@pytest.mark.parametrize("name", OTHER_ARGUMENTS)
def test_other_arguments_are_refused(job: Job, name: str) -> None:
    changed, words = OTHER_ARGUMENTS[name]
    job.parts()[0].unlink()
    before = job.state()
    with pytest.raises(ValueError, match=f"^{job.output}: cannot be resumed: .*{words}"):
        job.run(**changed)
    assert job.state() == before


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_refused(job: Job, name: str) -> None:
    change, words = OTHER_FILES[name]
    change(job)
    job.parts()[0].unlink()
    before = job.state()
    with pytest.raises(ValueError, match=f"^{job.output}: cannot be resumed: .*{words}"):
        job.run()
    assert job.state() == before


def test_other_inputs_are_refused(job: Job) -> None:
    (job.folder / "b.fa").write_bytes(b">b\nMKTAY\n")
    before = job.state()
    for names, words in {
        ("b.fa",): "an input was .*a.fa .got .*b.fa",
        ("a.fa", "b.fa"): "it was made of 1 files",
    }.items():
        inputs = [job.folder / name for name in names]
        with pytest.raises(ValueError, match=f"^{job.output}: cannot be resumed: {words}"):
            job.run(inputs=inputs)
        assert job.state() == before


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


def test_parts_that_are_divided_otherwise_are_refused(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_work, "MIN_PART_RESIDUES", 2000)
    job.parts()[0].unlink()
    before = job.state()
    with pytest.raises(ValueError, match=f"^{job.output}: cannot be resumed: .*parts"):
        job.run()
    assert job.state() == before


def test_a_missing_part_is_made_again(job: Job) -> None:
    before = job.state()
    parts = job.parts()
    for path in (parts[0], parts[-1]):
        path.unlink()
    run = job.run()
    assert (run.written, run.complete) == (2, len(parts))
    assert read(job.output).equals(job.whole, check_metadata=True)
    kept = parts[1:-1]
    assert {name: job.state()[name] for name in kept} == {name: before[name] for name in kept}


def test_a_moved_job_is_resumed(job: Job) -> None:
    moved = job.folder / "elsewhere"
    moved.mkdir()
    shutil.move(job.model, moved / "model")
    shutil.move(job.output, moved / "out")
    sorted((moved / "out").iterdir())[0].unlink()
    run = job.run(model=moved / "model", output=moved / "out")
    assert (run.written, run.complete) == (1, run.parts)


class StopError(Exception):
    """Raised by a test in the middle of a run."""


def stop_after(parts: int, job: Job) -> Callable[..., None]:
    """Return a callback that ends a run once it has written some parts."""

    def progress(_stage: str, _done: int, _total: int | None) -> None:
        if job.output.exists() and len(job.parts()) >= parts:
            raise StopError

    return progress


def test_a_run_that_ends_early_is_resumed(job: Job) -> None:
    num_parts = len(job.parts())
    shutil.rmtree(job.output)
    with pytest.raises(StopError):
        job.run(progress=stop_after(2, job))
    before = job.state()
    assert 2 <= len(before) < num_parts
    names = {path.name for path in job.folder.iterdir()}
    assert names == {"a.fa", "model", "out", "saved"}
    run = job.run()
    assert run.written == num_parts - len(before)
    assert {name: state for name, state in job.state().items() if name in before} == before
    assert read(job.output).equals(job.whole, check_metadata=True)


def test_a_file_that_changes_meanwhile_is_an_error(job: Job) -> None:
    num_parts = len(job.parts())
    shutil.rmtree(job.output)

    def progress(stage: str, _done: int, _total: int | None) -> None:
        if stage == "embedding" and job.output.exists() and job.parts():
            job.input.write_bytes(fasta(PROTEINS[::-1]))

    with pytest.raises((ValueError, OSError), match=r"a\.fa.*changed"):
        job.run(progress=progress)
    assert 0 < len(job.parts()) < num_parts
    for path in job.parts():
        whole = job.folder / "saved" / "out" / path.name
        assert path.read_bytes() == whole.read_bytes()


def test_shards_make_the_same_parts(job: Job) -> None:
    parts = len(job.parts())
    shutil.rmtree(job.output)
    for shard in (2, 3, 1):
        run = job.run(shard=(shard, 3))
        assert run.parts == parts
        assert run.written == len(range(shard - 1, parts, 3))
        assert run.complete == len(job.parts())
    assert read(job.output).equals(job.whole, check_metadata=True)


def test_the_folder_of_another_shard_may_appear_meanwhile(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(job.output)
    find = embedding_parts.find

    def find_before_it_appears(path: str) -> Any:
        found = find(path)
        Path(path).mkdir(exist_ok=True)
        return found

    monkeypatch.setattr(embedding_parts, "find", find_before_it_appears)
    assert job.run(shard=(1, 2)).written == len(job.parts())


def test_any_number_of_shards_goes_on(job: Job) -> None:
    parts = len(job.parts())
    shutil.rmtree(job.output)
    first = job.run(shard=(1, 2))
    assert job.run(shard=(1, 2)).written == 0
    rest = job.run()
    assert first.written + rest.written == parts
    assert read(job.output).equals(job.whole, check_metadata=True)


def test_a_full_disk_is_an_error_before_the_work(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    shutil.rmtree(job.output)
    stages = []
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40 - 1000, 1000))
        with pytest.raises(OSError, match=r"out: not enough space: .* 0 MiB are free") as caught:
            job.run(progress=lambda stage, *_: stages.append(stage))
    assert "embedding" not in stages
    assert str(caught.value).isprintable()
    assert not job.output.exists() or not job.parts()
    job.run()


def test_plans_are_resumed_and_other_plans_refused(job: Job) -> None:
    plan, output = job.folder / "plan.parquet", job.folder / "of the plan"
    arguments: dict[str, Any] = {"inputs": plan, "output": output, "max_tokens": None}
    pack_files(job.input, plan, GreedyPacker(256), sequences=True)
    whole = job.run(**arguments)
    expected = read(output)
    sorted(output.iterdir())[1].unlink()
    # The residues are in the plan.
    job.input.unlink()
    assert job.run(**arguments).written == 1
    assert read(output).equals(expected, check_metadata=True)
    assert whole.summary.plan is not None
    job.input.write_bytes(fasta(PROTEINS))
    pack_files(job.input, plan, GreedyPacker(256, max_sequence_length=100), sequences=True)
    before = files_of(output)
    with pytest.raises(ValueError, match=f"^{output}: cannot be resumed: .*the plan has changed"):
        job.run(**arguments)
    assert files_of(output) == before


def outputs(job: Job) -> dict[str, tuple[Path, str]]:
    """Return outputs that are refused, and the reasons."""
    (job.folder / "a file").touch()
    (job.folder / "plan").mkdir()
    return {
        "file": (job.folder / "a file", "a file: is not a folder"),
        "in a file": (job.input / "out", "its directory does not exist"),
        "parent": (job.folder / "missing" / "out", "its directory does not exist"),
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


def test_failed_sequences_are_tried_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import EsmModel

    shutil.rmtree(job.output)
    forward = EsmModel.forward
    # That of the sequence with the highest number of tokens, which no other one has.
    tokens = max(len(text) for _, text in PROTEINS) + 2

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        bounds = kwargs.get("cu_seq_lens_q")
        if bounds is not None and bounds.diff().max() == tokens:
            raise RuntimeError("planted")
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(EsmModel, "forward", fail)
        run = job.run()
        again = job.run()
    [failed] = run.failed
    assert (failed.id, failed.row, failed.reason) == ("s2", 2, "planted")
    assert (run.complete, run.written) == (run.parts, run.parts)
    assert (again.failed, again.written) == (run.failed, 1)
    without = {each["row"]: each["embedding"] for each in read(job.output).to_pylist()}
    assert [row for row, embedding in without.items() if embedding is None] == [2]
    last = job.run()
    assert (last.failed, last.written) == ([], 1)
    assert read(job.output).equals(job.whole, check_metadata=True)

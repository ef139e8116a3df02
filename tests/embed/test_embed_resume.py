"""Embedding jobs that are stopped and resumed, and what is in the way of resuming them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from embedding_job import PROTEINS, Job, StopError, files_of, read
from fasta import fasta

from virnucpro.data import GreedyPacker, ReadOptions, pack_files
from virnucpro.files import embeddings
from virnucpro.files.inputs import find
from virnucpro.jobs import embed, embed_work

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
        ("a.fa", "b.fa"): "it has 1 inputs",
    }.items():
        inputs = [job.folder / name for name in names]
        with pytest.raises(ValueError, match=f"^{job.output}: cannot be resumed: {words}"):
            job.run(inputs=inputs)
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


def test_other_libraries_are_reported(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embed, "version", lambda name: f"{name}.other")
    job.parts()[0].unlink()
    assert job.run().written == 1
    [message] = [text for text in caplog.messages if "parts made with" in text]
    assert "(now virnucpro virnucpro.other, torch torch.other" in message
    monkeypatch.undo()
    # Parts made with several versions are parts of one run.
    assert job.run().written == 0


def test_inputs_that_are_not_named_are_compared(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MAX_INPUTS", 1)
    inputs = [job.input, job.folder / "b.fa"]
    inputs[1].write_bytes(b">b\nMKTAY\n")
    output = job.folder / "of two"
    job.run(inputs=inputs, output=output)
    inputs[1].write_bytes(b">b\nMKTAV\n")
    before = files_of(output)
    with pytest.raises(ValueError, match=f"^{output}: cannot be resumed: an input after the first"):
        job.run(inputs=inputs, output=output)
    assert files_of(output) == before


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


def test_the_folder_of_another_shard_may_appear_meanwhile(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(job.output)

    def find_before_it_appears(path: str) -> Any:
        found = find(path)
        Path(path).mkdir(exist_ok=True)
        return found

    monkeypatch.setattr("virnucpro.files.embedding_parts.find", find_before_it_appears)
    assert job.run(shard=(1, 2)).written == len(job.parts())


def test_any_number_of_shards_goes_on(job: Job) -> None:
    parts = len(job.parts())
    shutil.rmtree(job.output)
    first = job.run(shard=(1, 2))
    assert job.run(shard=(1, 2)).written == 0
    rest = job.run()
    assert first.written + rest.written == parts
    assert read(job.output).equals(job.whole, check_metadata=True)


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

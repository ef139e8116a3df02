"""`embed_files` against a model that runs one sequence at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import OneByOne, save_checkpoint
from embeddings import (
    LIMIT,
    SEQUENCES,
    check_rows,
    check_vectors,
    clean,
    draw,
    read,
    truncated,
    write,
)
from models import tiny_esm2, tiny_model

from virnucpro.data import EmbeddingSummary, GreedyPacker, embed_files
from virnucpro.files import embeddings
from virnucpro.jobs import embed
from virnucpro.model import embedder
from virnucpro.model.captured import CapturedModel


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("deduplicate", [True, False])
def test_truncated(tmp_path: Path, checkpoint: Path, alone: OneByOne, deduplicate: bool) -> None:
    fasta = write(tmp_path)
    run = embed_files(
        *(fasta, tmp_path / "out", checkpoint),
        max_tokens=100,
        max_sequence_length=LIMIT,
        deduplicate=deduplicate,
    )
    table = read(tmp_path / "out")
    check_rows(table, fasta)
    check_vectors(table, truncated(alone))
    lengths = table["length"].to_pylist()
    assert table["truncated"].to_pylist() == [length > LIMIT for length in lengths]
    totals = run.summary.totals
    assert run.parts == run.complete == run.written > 2
    assert run.failed == []
    assert totals.sequences == len(SEQUENCES)
    assert totals.distinct == (11 if deduplicate else 15)
    assert (totals.empty, totals.dropped, totals.split) == (1, 0, 0)
    assert totals.truncated == sum(length > LIMIT for length in lengths)
    assert totals.residues == sum(lengths)
    assert totals.residues_truncated == sum(max(0, length - LIMIT) for length in lengths)
    assert (totals.stops, totals.lower_case) == (1, 5)
    for vectors in (table["embedding"][1], table["embedding"][11]):
        assert vectors == table["embedding"][13]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("overlap", [0, 7, 20, 30])
def test_split(tmp_path: Path, checkpoint: Path, alone: OneByOne, overlap: int) -> None:
    """Each residue counts once, with the mean of the windows that have it."""
    fasta = write(tmp_path)
    integer: Any = np.int64(overlap)
    run = embed_files(
        *(fasta, tmp_path / "out", checkpoint),
        max_tokens=100,
        max_sequence_length=LIMIT,
        overlong="split",
        overlap=integer,
        states=True,
    )
    table = read(tmp_path / "out")
    check_rows(table, fasta)
    texts = list(map(clean, SEQUENCES))
    states = [alone.windows(text, LIMIT, overlap) if text else None for text in texts]
    check_vectors(table, [each if each is None else each.mean(axis=0) for each in states])
    for found, expected in zip(table["states"].to_pylist(), states, strict=True):
        if expected is None:
            assert found is None
        else:
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not any(table["truncated"].to_pylist())
    assert run.summary.totals.split == sum(len(text) > LIMIT for text in texts)
    assert run.summary.totals.residues_truncated == 0


@pytest.mark.usefixtures("small_parts")
def test_dropped(tmp_path: Path, checkpoint: Path, alone: OneByOne) -> None:
    run = embed_files(
        *(write(tmp_path), tmp_path / "out", checkpoint),
        max_sequence_length=LIMIT,
        overlong="drop",
    )
    table = read(tmp_path / "out")
    expected = [
        None if len(clean(text)) > LIMIT else vector
        for text, vector in zip(SEQUENCES, truncated(alone), strict=True)
    ]
    check_rows(table, tmp_path / "proteins.fasta")
    check_vectors(table, expected)
    assert not any(table["truncated"].to_pylist())
    assert (run.summary.totals.dropped, run.summary.totals.empty) == (4, 1)


def test_too_long_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="sequence 's3' has 90 residues, more than 40"):
        embed_files(
            *(write(tmp_path), tmp_path / "out", checkpoint),
            max_sequence_length=LIMIT,
            overlong="error",
        )
    assert not (tmp_path / "out").exists()


def test_states_in_half_precision(tmp_path: Path, checkpoint: Path, alone: OneByOne) -> None:
    embed_files(
        *(write(tmp_path), tmp_path / "out", checkpoint),
        max_sequence_length=LIMIT,
        states=True,
        embedding_dtype="float16",
    )
    table = read(tmp_path / "out")
    assert table.schema.field("embedding").type == pa.list_(pa.field("element", pa.float16()), 32)
    check_vectors(table, truncated(alone), atol=0.01)
    for text, states in zip(SEQUENCES, table["states"].to_pylist(), strict=True):
        if text:
            np.testing.assert_allclose(states, alone.states(clean(text)[:LIMIT]), atol=0.02)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("states", [True, False])
def test_values_that_do_not_fit(tmp_path: Path, states: bool) -> None:
    """Embeddings and states beyond the range of float16 are failures, with a reason."""
    model = tiny_esm2()
    with torch.no_grad():
        model.encoder.emb_layer_norm_after.weight *= 27_000
    folder = save_checkpoint(tmp_path / "large", model)
    found = embed_files(
        *(write(tmp_path), tmp_path / "out", folder), embedding_dtype="float16", states=states
    )
    table = read(tmp_path / "out")
    # The first of those that are equal.
    reasons = {each.row: each.reason for each in found.failed}
    wrong = {clean(SEQUENCES[row]) for row in reasons}
    assert len(wrong) == len(reasons)
    for row, (vector, length) in enumerate(
        zip(table["embedding"].to_pylist(), table["length"].to_pylist(), strict=True)
    ):
        assert (vector is None) == (clean(SEQUENCES[row]) in wrong or length == 0)
        assert vector is None or np.isfinite(vector).all()
        if states and vector is not None:
            assert np.isfinite(table["states"][row].as_py()).all()
    expected = {"its embedding does not fit in float16"}
    assert set(reasons.values()) <= expected | (
        {"its states do not fit in float16"} if states else set()
    )
    assert reasons
    # The same call tries them again.
    assert (
        embed_files(
            *(write(tmp_path), tmp_path / "out", folder), embedding_dtype="float16", states=states
        ).failed
        == found.failed
    )


@pytest.mark.usefixtures("small_parts")
def test_shards(tmp_path: Path, checkpoint: Path) -> None:
    """Shards in any order give what one run gives."""
    fasta = write(tmp_path)

    def run(output: str, **arguments: Any) -> Any:
        return embed_files(
            *(fasta, tmp_path / output, checkpoint),
            max_tokens=100,
            max_sequence_length=LIMIT,
            **arguments,
        )

    whole = run("whole")
    runs = [run("parts", shard=(i, 3)) for i in (2, 3, 1)]
    assert sum(each.written for each in runs) == whole.parts
    assert [each.complete for each in runs][-1] == whole.parts
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "parts").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.usefixtures("small_parts")
def test_progress(tmp_path: Path, checkpoint: Path) -> None:
    """It ends at the total, and begins with what was done before."""
    seen: list[tuple[str, int, int | None]] = []

    def embed() -> None:
        seen.clear()
        embed_files(
            *(write(tmp_path), tmp_path / "out", checkpoint),
            max_sequence_length=LIMIT,
            max_tokens=100,
            progress=lambda *each: seen.append(each),
        )

    embed()
    assert list(dict.fromkeys(stage for stage, *_ in seen)) == [
        *("loading", "reading", "comparing", "packing", "embedding")
    ]
    done = [each for each in seen if each[0] == "embedding"]
    assert done[0][1] == 0
    total = sum({clean(text): min(len(clean(text)), LIMIT) for text in SEQUENCES}.values())
    assert done[-1][1:] == (total, total)
    assert [each[1] for each in done] == sorted(each[1] for each in done)
    sorted((tmp_path / "out").iterdir())[0].unlink()
    embed()
    done = [each for each in seen if each[0] == "embedding"]
    assert 0 < done[0][1] < done[-1][1] == total


@pytest.mark.usefixtures("small_parts")
def test_other_readers(tmp_path: Path, checkpoint: Path) -> None:
    """Pandas and Polars read the folder."""
    embed_files(write(tmp_path), tmp_path / "out", checkpoint, max_sequence_length=LIMIT)
    table = read(tmp_path / "out")
    frames = (
        pd.read_parquet(tmp_path / "out").sort_values("row"),
        pl.read_parquet(tmp_path / "out" / "*.parquet").sort("row"),
        pl.read_parquet(tmp_path / "out").sort("row"),
    )
    for frame in frames:
        assert list(frame["id"]) == table["id"].to_pylist()
        assert list(frame["truncated"]) == table["truncated"].to_pylist()
        for found, expected in zip(frame["embedding"], table["embedding"].to_pylist(), strict=True):
            assert (found is None) == (expected is None)
            if found is not None:
                np.testing.assert_array_equal(np.asarray(found), np.float32(expected))


@pytest.mark.parametrize("overlong", ["truncate", "drop", "split"])
def test_one_shape(
    tmp_path: Path,
    checkpoint: Path,
    alone: OneByOne,
    monkeypatch: pytest.MonkeyPatch,
    overlong: str,
) -> None:
    """Captured models get few sequences per batch, and the rest of a run the same limits."""
    sequences = [*SEQUENCES, *draw([*[30] * 60, *[1] * 40])]
    fasta = write(tmp_path, sequences)
    arguments: dict[str, Any] = {
        "max_sequence_length": LIMIT,
        "deduplicate": False,
        "overlong": overlong,
    }
    shapes = []

    class Captured(CapturedModel):
        def __init__(self, model: Any, tokens: int, num_sequences: int) -> None:
            shapes.append((tokens, num_sequences))
            super().__init__(model, tokens, num_sequences)

    with monkeypatch.context() as patch:
        for module in (embed, embedder):
            patch.setattr(module, "has_graphs", lambda _: True)
        patch.setattr(embedder, "CapturedModel", Captured)
        with pytest.raises(ValueError, match="max_tokens must be given for several shards"):
            embed_files(fasta, tmp_path / "out", checkpoint, shard=(1, 2), **arguments)
        run = embed_files(fasta, tmp_path / "out", checkpoint, max_tokens=100, **arguments)
    assert run.summary.method == "tight"
    most = run.summary.limits.max_sequences_per_batch
    assert most is not None
    assert shapes[-1][0] == 100
    assert shapes[-1][1] <= most
    without = GreedyPacker(100, LIMIT).pack_lengths([len(clean(text)) for text in sequences])
    assert most < without.max_sequences
    table = read(tmp_path / "out")
    check_rows(table, fasta, sequences)
    if overlong == "truncate":
        check_vectors(table.slice(0, len(SEQUENCES)), truncated(alone))
    sorted((tmp_path / "out").iterdir())[0].unlink()
    again = embed_files(fasta, tmp_path / "out", checkpoint, **arguments)
    assert again.summary == run.summary
    assert again.written == 1


def test_unknown_residues(tmp_path: Path, checkpoint: Path) -> None:
    """They are counted, and embedded as the tokenizer has them."""
    fasta = write(tmp_path, ["MKJ", "JJM", "MK", "MKJ", "M*K"])
    run = embed_files(fasta, tmp_path / "out", checkpoint)
    assert run.unknown == {"J": 3, "*": 1}
    [path] = (tmp_path / "out").iterdir()
    assert json.loads(pq.read_schema(path).metadata[b"virnucpro.part"])["unknown"] == 4


def test_summary(tmp_path: Path, checkpoint: Path) -> None:
    run = embed_files(write(tmp_path), tmp_path / "out", checkpoint)
    for path in (tmp_path / "out").iterdir():
        metadata = pq.read_schema(path).metadata
        state = json.loads(metadata[b"virnucpro.embeddings"])
        assert EmbeddingSummary.from_dict(state) == run.summary
        assert set(state["versions"]) == {"virnucpro", "torch", "transformers"}
        assert state["model"]["width"] == 32
        assert state["inputs"][0]["sequences"] == len(SEQUENCES)


def test_other_models(tmp_path: Path) -> None:
    """Whatever model passes check_packed; one with learned positions has fewer residues."""
    folder = save_checkpoint(
        tmp_path / "bert", tiny_model("bert", max_position_embeddings=LIMIT + 2)
    )
    alone = OneByOne(folder)
    run = embed_files(write(tmp_path), tmp_path / "out", folder)
    assert run.summary.limits.max_sequence_length == LIMIT
    check_vectors(read(tmp_path / "out"), truncated(alone))
    with pytest.raises(ValueError, match="max_sequence_length must be at most 40"):
        embed_files(write(tmp_path), tmp_path / "more", folder, max_sequence_length=41)
    assert not (tmp_path / "more").exists()


BAD: list[tuple[Callable[[Path], Any], dict[str, Any], str]] = [
    (write, {"shard": (0, 2)}, r"shard\[0\] must be at least 1"),
    (write, {"shard": (3, 2)}, r"shard\[0\] must be at most 2"),
    (write, {"embedding_dtype": "bfloat16"}, "embedding_dtype must be float32 or float16"),
    (write, {"dtype": "float"}, "dtype must be one of float32, bfloat16, float16"),
    (write, {"overlong": "cut"}, "overlong must be"),
    (write, {"overlong": "split", "overlap": 1022}, "overlap must be"),
    (write, {"max_tokens": 2}, "must leave room for one residue"),
    (write, {"device": "cuda:99"}, "device 'cuda:99'"),
    (lambda _: [], {}, "inputs must name at least one file"),
    (lambda folder: folder / "no.fasta", {}, "no.fasta: no such file"),
    (lambda folder: write(folder, [], "empty.fasta"), {}, "empty.fasta"),
    (lambda folder: write(folder, name="no.parquet"), {}, "not a plan file"),
    (
        lambda folder: [write(folder), write(folder, name="a.tsv")],
        {},
        "not FASTA; give FASTA files, or one plan alone",
    ),
]


@pytest.mark.parametrize(("make", "arguments", "message"), BAD)
def test_bad_arguments(
    tmp_path: Path, checkpoint: Path, make: Any, arguments: dict[str, Any], message: str
) -> None:
    """Errors come before the work, and leave nothing."""
    inputs = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ValueError, OSError), match=message):
        embed_files(inputs, tmp_path / "out", checkpoint, **arguments)
    assert sorted(tmp_path.iterdir()) == before


def test_many_inputs(
    tmp_path: Path, checkpoint: Path, alone: OneByOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The summary names some of them, and notices changes in all."""
    monkeypatch.setattr(embeddings, "MAX_INPUTS", 2)
    texts = draw([5, 9, 30, 7, 12])
    paths = [write(tmp_path, [text], f"{number}.fa") for number, text in enumerate(texts)]
    run = embed_files(paths, tmp_path / "out", checkpoint)
    assert [file.name for file in run.summary.inputs] == list(map(str, paths[:2]))
    assert run.summary.num_inputs == 5
    table = read(tmp_path / "out")
    assert table["file"].to_pylist() == list(map(str, paths))
    check_vectors(table, [alone.states(text).mean(axis=0) for text in texts])
    assert embed_files(paths, tmp_path / "out", checkpoint).written == 0
    paths[3].write_text(f">s0\n{texts[3][::-1]}\n")
    with pytest.raises(ValueError, match="an input after the first 2 has changed; give a new"):
        embed_files(paths, tmp_path / "out", checkpoint)
    with pytest.raises(ValueError, match=r"it has 5 inputs \(got 4\); give a new"):
        embed_files(paths[:4], tmp_path / "out", checkpoint)


@pytest.mark.usefixtures("small_parts")
def test_parts_of_several_runs(tmp_path: Path, checkpoint: Path) -> None:
    fasta = write(tmp_path)
    for name, limit in (("one", 40), ("two", 39)):
        embed_files(fasta, tmp_path / name, checkpoint, max_sequence_length=limit, max_tokens=100)
    last = max((tmp_path / "two").iterdir())
    last.replace(tmp_path / "one" / last.name)
    with pytest.raises(ValueError, match=r"has parts of several runs, .*: max_sequence_length was"):
        embed_files(fasta, tmp_path / "one", checkpoint, max_sequence_length=40, max_tokens=100)

"""Embeddings that earlier versions wrote are read as they were meant."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import run
from store import STORED, make_embeddings

from virnucpro.files.embedding_parts import FailedSequence, check_resumable, find_parts
from virnucpro.files.embedding_parts import make_table as as_table
from virnucpro.files.embeddings import VERSION, EmbeddingSummary, differences

FOLDERS = sorted(STORED.glob("embeddings-*"))


def test_the_version_that_is_written_is_stored() -> None:
    assert STORED / f"embeddings-{VERSION}" in FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_stored_embeddings_are_read_and_resumed(folder: Path) -> None:
    summary, rows = make_embeddings()
    [part] = find_parts(str(folder))
    assert part.summary == summary
    assert (part.number, part.num_parts, part.num_unknown) == (0, 1, 3)
    assert part.failed == [FailedSequence(2, "c", "no residues")]
    check_resumable(str(folder), [part], summary)
    [path] = folder.iterdir()
    table = pq.read_table(path)
    bare = table.schema.remove_metadata()
    assert table.equals(as_table(rows, summary.inputs, summary, bare))
    assert json.loads(run("stats", folder, "--json").stdout)["unknown"] == 3


def test_embeddings_of_a_newer_version_are_refused() -> None:
    state = make_embeddings()[0].to_dict()
    with pytest.raises(ValueError, match=rf"^version {VERSION + 1} \(this release reads {VERSION}"):
        EmbeddingSummary.from_dict({**state, "version": VERSION + 1})


def test_embeddings_of_plans_and_standard_input() -> None:
    summary, _ = make_embeddings()
    assert EmbeddingSummary.from_dict(replace(summary, options=None).to_dict()).options is None
    [file] = summary.inputs
    before, now = ([replace(file, name="-", sha256=digit * 64)] for digit in "12")
    found = differences(replace(summary, inputs=before), replace(summary, inputs=now))
    assert found == ["standard input has changed"]
    named = replace(file, sha256="3" * 64)
    assert differences(summary, replace(summary, inputs=[named])) == ["a.fasta has changed"]

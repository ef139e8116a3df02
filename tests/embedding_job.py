"""A small embedding job, and what it leaves in its folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from checkpoints import save_checkpoint
from fasta import fasta
from models import proteins

from virnucpro.data import EmbeddingRun, embed_files

PROTEINS = [(each["id"], each["sequence"]) for each in proteins(120)]


class StopError(Exception):
    """Raised by a test in the middle of a run."""


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
        return sorted(self.output.glob("part-*"))

    def state(self) -> dict[Path, object]:
        """Return the files of the output, and what tells whether they were written again."""
        return files_of(self.output)

"""Files that appear when they are complete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path


def check_output(output: Path, inputs: list[str]) -> None:
    """Refuse, before any work, a path that cannot be written to, or that is an input too."""
    check_place(output)
    paths = [Path(name) for name in inputs if name != "-"]
    if output.exists() and any(path.exists() and path.samefile(output) for path in paths):
        raise ValueError(f"{output}: is an input too")


def check_place(path: Path) -> None:
    """Refuse a path that no file can be written to."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory")
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: is no regular file")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: no such directory")


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a path to write to; what is there takes the place of `path` when all went well."""
    # What a link points to is replaced, not the link.
    path = Path(path).resolve()
    check_place(path)
    unfinished = path.with_name(f".virnucpro.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            # Else the name could be on disk before what it names.
            os.fsync(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)

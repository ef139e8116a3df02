"""Write files that appear only once they are complete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path


def check_output(output: Path, inputs: list[str]) -> None:
    """Raise, before any work, if the output cannot be written or is also an input."""
    check_output_path(output)
    paths = [Path(name) for name in inputs if name != "-"]
    if output.exists() and any(path.exists() and path.samefile(output) for path in paths):
        raise ValueError(f"{output}: output is also an input")


def check_output_path(path: Path) -> None:
    """Raise OSError if no regular file can be written at a path."""
    try:
        # Where a link leads.
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise OSError(f"{path}: cannot be written (a loop of links)") from error
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a directory")
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: not a regular file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: its directory does not exist")


@contextmanager
def atomic_write(path: str | PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` if no error is raised."""
    check_output_path(Path(path))
    # Replace the target of a link, not the link.
    path = Path(path).resolve()
    unfinished = path.with_name(f".virnucpro.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield unfinished
        with unfinished.open("rb+") as file:
            # Otherwise, a crash could leave the new name with incomplete content.
            os.fsync(file)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)

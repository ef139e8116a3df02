"""Folders that appear only once all of their files are complete."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from virnucpro.files.output import (
    TemporaryFolder,
    check_not_input,
    check_remote,
    copy_folder,
    find_parent,
    name_errors,
    sync,
    sync_folder,
    upload,
)
from virnucpro.files.places import as_local, info_of, is_uri, join, name_of, parse, resolve
from virnucpro.text import shown


@contextmanager
def write_folder(
    path: str | PathLike[str], inputs: Iterable[str | PathLike[str]] = ()
) -> Iterator[str]:
    """Yield a folder to write files into (`write_into`), which becomes `path` without an error.

    In a store of objects, which cannot rename a folder, it is `path` itself, and what is in it is
    removed after an error.

    Args:
        path: The folder, or its URI.
        inputs: As for `write_file`.

    Raises:
        FileExistsError: The path exists.
        ValueError: The path is in an input.
        OSError: No folder can be made there.
    """
    path = as_local(path)
    check_folder(path, inputs)
    name = shown(name_of(path))
    if is_uri(path):
        try:
            yield path
        except BaseException:
            system, target = resolve(path)
            with contextlib.suppress(OSError):
                system.delete_dir(target)
            raise
        return
    with name_errors(name):
        place = Path(path).absolute()
        place = find_parent(place) / place.name
        folder = TemporaryFolder(place.parent)
        unfinished = folder.path / "unfinished"
        unfinished.mkdir()
    try:
        yield str(unfinished)
        with name_errors(name):
            sync_folder(unfinished)
            unfinished.rename(place)
            sync_folder(place.parent)
    finally:
        folder.remove()


def check_folder(path: str | PathLike[str], inputs: Iterable[str | PathLike[str]]) -> None:
    """Raise the errors of `write_folder` that can be told before."""
    path = as_local(path)
    name = shown(name_of(path))
    if is_uri(path):
        if info_of(path).type.name != "NotFound":
            raise FileExistsError(f"{name}: already exists")
        place = parse(path)
        check_remote(place._replace(path=place.path.rstrip("/")).uri, inputs)
        return
    with name_errors(name):
        target = Path(path).absolute()
        if "\0" in path or target.name in ("", "..") or not path:
            raise OSError("not the name of a folder")
        target = find_parent(target) / target.name
        with contextlib.suppress(FileNotFoundError):
            target.lstat()
            raise FileExistsError("already exists")
        check_not_input(target, name, inputs)


@contextmanager
def write_into(folder: str, file: str, name: str) -> Iterator[Path]:
    """Yield a path to write a file to, which is put into a folder if no error is raised.

    Several processes may write the same file at the same time.

    Args:
        folder: The folder that `write_folder` yields.
        file: The name of the file.
        name: What errors call the folder.
    """
    place = secrets.token_hex(8)
    copies = None
    if is_uri(folder):
        copies = copy_folder()
        unfinished = copies.path / place
    else:
        # Beside the folder, which has only complete files.
        unfinished = Path(folder).with_name(f"{file}.{place}")
    try:
        with name_errors(name):
            yield unfinished
            if is_uri(folder):
                upload(unfinished, *resolve(join(folder, file)))
            else:
                with unfinished.open("rb+") as complete:
                    sync(complete.fileno())
                unfinished.replace(Path(folder, file))
    finally:
        unfinished.unlink(missing_ok=True)

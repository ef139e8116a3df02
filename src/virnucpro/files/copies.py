"""Temporary copies on this machine, of files that are not."""

from __future__ import annotations

import io
import os
import secrets
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, BinaryIO

from virnucpro.files.inputs import find, list_folder
from virnucpro.files.output import NamedFile, copy_folder
from virnucpro.files.places import BUFFER, join, name_of, open_input, stamp_of
from virnucpro.text import shown

# The copies that have been fetched, by URI, as long as there are users of them.
_fetched: weakref.WeakValueDictionary[str, LocalCopy] = weakref.WeakValueDictionary()


class LocalCopy:
    """A path for a temporary copy, of a file or a folder, which is removed with this object.

    Args:
        name: What is copied, for messages.

    Attributes:
        path: The path, where nothing is yet.
        process: The process that made it.
        stamp: What tells whether the original has changed, if that is known.

    Raises:
        OSError: There is no folder for temporary files.
    """

    def __init__(self, name: str) -> None:
        self._folder = copy_folder()
        self.path = self._folder.path / secrets.token_hex(8)
        self.name = f"a temporary copy of {shown(name)} in {shown(self._folder.path.parent)}"
        self.process = os.getpid()
        self.stamp: Any = None
        # Runs only in this process; also at the exit of worker processes, which skip atexit.
        self.remove = Finalize(self, remove, (self.path,), exitpriority=0)

    def __reduce__(self) -> tuple[Any, ...]:
        # The file is of no use to other processes, which may live longer.
        return type(None), ()

    @contextmanager
    def open(self, file: str = "") -> Iterator[BinaryIO]:
        """Yield a new file to write, the copy itself or one in its folder; remove it on errors."""
        try:
            with io.BufferedWriter(NamedFile(self.path / file, self.name)) as copy:
                yield copy
                copy.flush()
        except BaseException:
            self.remove()
            raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fetch(uri: str, choose: Callable[[list[str]], list[str]]) -> LocalCopy:
    """Return a temporary copy of a remote file, or of files in a remote folder.

    A copy that is in use is returned again if the original has not changed. Processes that were
    forked since use that of their parent.

    Args:
        uri: The file or folder.
        choose: Returns which files to copy, given the names of all files in the folder.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read, or the copy cannot be written.
    """
    known = _fetched.get(uri)
    if known is not None and known.process != os.getpid():
        return known
    found = find(uri)
    if found is None:
        raise FileNotFoundError(f"{shown(name_of(uri))}: no such file")
    names = [""]
    if found.is_folder:
        names = choose(sorted(file.name for file in list_folder(uri) if not file.is_folder))
    paths = {name: join(uri, name) if name else uri for name in names}
    stamp = [(name, stamp_of(path)) for name, path in paths.items()]
    if known is not None and known.stamp == stamp:
        return known
    copy = LocalCopy(name_of(uri))
    copy.stamp = stamp
    if found.is_folder:
        copy.path.mkdir()
    for name, path in paths.items():
        with open_input(path) as source, copy.open(name) as file:
            shutil.copyfileobj(source, file, BUFFER)
    _fetched[uri] = copy
    return copy

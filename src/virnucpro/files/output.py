"""Files and folders that appear only once they are complete, and temporary copies."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from virnucpro.text import shown

if sys.platform == "win32":
    fcntl: Any = None
else:
    import fcntl

# Links that are followed; more of them are a loop.
MAX_LINKS = 40


@contextmanager
def write_file(
    path: str | PathLike[str], inputs: Iterable[str | PathLike[str]] = ()
) -> Iterator[BinaryIO]:
    """Yield a file to write to, which becomes `path` if no error is raised.

    An existing file is replaced only then, and the new one has its mode and owner. The path is
    resolved and a temporary file is made beside it before anything else, so a place that cannot be
    written to is an error before any work.

    Args:
        path: The file, which may exist. A link is followed.
        inputs: Files and folders that are read in the meantime, which `path` must not be or be in;
            "-" for standard input.

    Raises:
        ValueError: The path is also an input, or standard output or error.
        OSError: No regular file can be written there.
    """
    name = shown(os.fsdecode(path))
    with name_errors(name):
        target = find_target(Path(os.fsdecode(path)))
        check_not_input(target, name, inputs)
        folder = TemporaryFolder(target.parent)
    try:
        unfinished = folder.path / "unfinished"
        with io.BufferedWriter(NamedFile(unfinished, name)) as file:
            yield file
            file.flush()
            with name_errors(name):
                sync(file.fileno())
        with name_errors(name):
            if find_target(target) != target:
                raise OSError("replaced by a link in the meantime")
            keep_mode(unfinished, target)
            unfinished.replace(target)
            sync_folder(target.parent)
    finally:
        folder.remove()


@contextmanager
def write_folder(path: str | PathLike[str]) -> Iterator[Path]:
    """Yield a folder to write files to, which becomes `path` if no error is raised.

    Raises:
        FileExistsError: The path exists.
        OSError: No folder can be made there.
    """
    name = shown(os.fsdecode(path))
    target = Path(os.fsdecode(path)).absolute()
    with name_errors(name):
        if os.path.lexists(target):
            raise FileExistsError("already exists")
        target = find_parent(target) / target.name
        folder = TemporaryFolder(target.parent)
        unfinished = folder.path / "unfinished"
        unfinished.mkdir()
    try:
        yield unfinished
        with name_errors(name):
            sync_folder(unfinished)
            unfinished.rename(target)
            sync_folder(target.parent)
    finally:
        folder.remove()


def find_target(path: Path) -> Path:
    """Return the absolute path of the file to write, where the links at a path lead.

    Raises:
        OSError: It is neither a regular file that can be written nor a new one in a folder.
    """
    if "\0" in str(path):
        raise OSError("a name with a null character")
    target = find_parent(path) / path.name
    for _ in range(MAX_LINKS):
        # These name files that are open, such as /dev/stdout, and not places in a folder.
        if str(target.parent) == "/dev/fd" or target.parent.is_relative_to("/proc"):
            raise OSError("not a regular file")
        if not target.is_symlink():
            break
        target = target.parent / target.readlink()
        target = find_parent(target) / target.name
    else:
        raise OSError("a loop of links")
    if not os.path.lexists(target):
        return target
    # Not by `is_dir`, which hides errors.
    mode = target.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError("is a directory")
    if not stat.S_ISREG(mode):
        raise OSError("not a regular file")
    if not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError("a file without permission to write")
    return target


def find_parent(path: Path) -> Path:
    """Return the folder of a path, resolved."""
    try:
        parent = path.parent.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise type(error)("its directory does not exist") from error
    except RuntimeError as error:
        raise OSError("a loop of links") from error
    if not parent.is_dir():
        raise NotADirectoryError("its directory does not exist")
    return parent


def check_not_input(target: Path, name: str, inputs: Iterable[str | PathLike[str]]) -> None:
    """Raise ValueError if a file is in the inputs, or is standard output or error."""
    paths = [os.fspath(path) for path in inputs]
    for path in paths:
        with contextlib.suppress(OSError):
            if Path(path).is_dir() and target.is_relative_to(Path(path).resolve()):
                raise ValueError(f"{name}: output is inside an input folder")
    if not target.exists():
        return
    found = target.stat()
    opened = {1: "standard output", 2: "standard error"}
    if "-" in paths:
        opened[0] = "an input"
    for descriptor, use in opened.items():
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), found):
                raise ValueError(f"{name}: output is also {use}")
    for path in paths:
        with contextlib.suppress(OSError):
            if path != "-" and os.path.samestat(Path(path).stat(), found):
                raise ValueError(f"{name}: output is also an input")


def keep_mode(path: Path, target: Path) -> None:
    """Give a file the mode and owner of the one that it will replace, if there is one."""
    if not target.exists():
        return
    found = target.stat()
    # Only a privileged process may give files away, and some file systems have neither.
    with contextlib.suppress(OSError):
        path.chmod(stat.S_IMODE(found.st_mode))
    with contextlib.suppress(OSError, AttributeError):
        os.chown(path, found.st_uid, found.st_gid)
        # Taken away when the owner changes.
        path.chmod(stat.S_IMODE(found.st_mode))


def sync(descriptor: int) -> None:
    """Write an open file or folder to its disk, where that is supported."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to its disk, where that is supported."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def name_errors(name: str) -> Iterator[None]:
    """Name the file that cannot be written in errors of the operating system."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise type(error)(f"{name}: {error}") from error
        raise type(error)(f"{name}: cannot be written ({error.strerror})") from error


class NamedFile(io.FileIO):
    """A new file to write, whose errors have a name."""

    def __init__(self, path: Path, name: str) -> None:
        self._shown = name
        with name_errors(name):
            super().__init__(path, "xb")

    def write(self, data: Any, /) -> int:
        """Write bytes, perhaps not all of them; return their number."""
        with name_errors(self._shown):
            return super().write(data) or 0


# The folders that exist: the process that made each, and the descriptor that locks it.
_folders: dict[Path, tuple[int, list[int]]] = {}
# The folder of the copies that this process has made, as long as there are any.
_copies: weakref.WeakValueDictionary[int, TemporaryFolder] = weakref.WeakValueDictionary()


class TemporaryFolder:
    """A new folder for unfinished files, which is removed at any end that the process can notice.

    That is by `remove`, with this object, at the exit of the process, and by `remove_all` on a
    signal. What a killed process leaves is removed by the next that makes a folder in the same
    place: a folder is locked as long as its process lives. The names of folders contain the name of
    the machine, since locks may not reach other machines.

    Args:
        parent: The folder to make it in.

    Attributes:
        path: The path.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, parent: Path) -> None:
        remove_leftovers(parent)
        while True:
            self.path = parent / f"{prefix()}{secrets.token_hex(8)}.tmp"
            lock: list[int] = []
            # Known before it exists, since a signal may come in between.
            _folders[self.path] = os.getpid(), lock
            # Also at the exit of worker processes, which skip atexit.
            Finalize(self, remove_folder, (self.path,), exitpriority=0)
            try:
                self.path.mkdir(mode=0o700)
                if fcntl is None or lock_folder(self.path, lock):
                    return
            except BaseException:
                self.remove()
                raise
            self.remove()

    def remove(self) -> None:
        """Remove the folder; does nothing if it is removed, and in another process."""
        remove_folder(self.path)


def lock_folder(path: Path, lock: list[int]) -> bool:
    """Open and lock a new folder; return False if another process took it for a leftover first."""
    with contextlib.suppress(FileNotFoundError):
        lock.append(os.open(path, os.O_RDONLY))
        with contextlib.suppress(OSError):
            fcntl.flock(lock[0], fcntl.LOCK_EX)
        return os.path.samestat(os.fstat(lock[0]), path.stat())
    return False


def remove_folder(path: Path) -> None:
    """Remove a folder of this process."""
    process, lock = _folders.get(path, (0, []))
    if process != os.getpid():
        return
    # First, since removing needs descriptors, of which there may be too few.
    while lock:
        os.close(lock.pop())
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except (OSError, MemoryError, RecursionError):
        # Tried again at the exit, when there may be more memory.
        return
    _folders.pop(path, None)


@atexit.register
def remove_all() -> None:
    """Remove the folders of this process, which is about to end."""
    for path in list(_folders):
        remove_folder(path)


def prefix() -> str:
    """Return the start of the names of the folders of this machine."""
    return f".virnucpro.{re.sub('[^A-Za-z0-9-]', '_', platform.node())[:64]}."


def remove_leftovers(parent: Path) -> None:
    """Remove the folders that killed processes have left, which nobody has locked."""
    if fcntl is None:
        return
    pattern = re.compile(re.escape(prefix()) + r"[0-9a-f]{16}\.tmp")
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        names = [entry.name for entry in entries if pattern.fullmatch(entry.name)]
    for path in (parent / name for name in names):
        # Whatever goes wrong with them is no reason to stop.
        with contextlib.suppress(OSError, RecursionError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(descriptor)
                if found.st_uid == os.geteuid() and found.st_dev == parent.stat().st_dev:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def copy_folder() -> TemporaryFolder:
    """Return the folder for temporary copies, which exists as long as its users keep this object.

    Raises:
        OSError: There is no folder for temporary files.
    """
    folder = _copies.get(os.getpid())
    if folder is None:
        # `gettempdir` uses another place, perhaps one without room, if it cannot write to TMPDIR.
        parent = Path(os.environ.get("TMPDIR") or tempfile.gettempdir()).absolute()
        with name_errors(f"the folder for temporary files, {shown(parent)}"):
            folder = _copies[os.getpid()] = TemporaryFolder(parent)
    return folder

"""Files that appear only once they are complete, and temporary files and folders."""

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

from virnucpro.files.places import BUCKETS, as_local, info_of, is_uri, name_of, parse, resolve
from virnucpro.text import first_line, shown

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
    written to is an error before any work. The file of a URI is written to the folder for temporary
    files first.

    Args:
        path: The file, which may exist. A link is followed. Or a URI, such as ``s3://bucket/a``.
        inputs: Files and folders that are read in the meantime, which `path` must not be or be in;
            "-" for standard input.

    Raises:
        ValueError: The path is also an input, or standard output or error; or pyarrow does not know
            the scheme of the URI.
        OSError: No regular file can be written there.
    """
    path = as_local(path)
    if is_uri(path):
        with write_remote(path, inputs) as file:
            yield file
        return
    name = shown(path)
    with name_errors(name):
        target = find_target(Path(path))
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
def write_remote(uri: str, inputs: Iterable[str | PathLike[str]]) -> Iterator[BinaryIO]:
    """Yield a temporary file, which is copied to a URI if no error is raised; see `write_file`."""
    name = shown(name_of(uri))
    system, target = resolve(uri)
    check_remote(uri, inputs)
    folder = copy_folder()
    local = folder.path / secrets.token_hex(8)
    try:
        label = f"a temporary copy of {name} in {shown(folder.path.parent)}"
        with io.BufferedWriter(NamedFile(local, label)) as file:
            yield file
        with name_errors(name):
            upload(local, system, target)
    finally:
        local.unlink(missing_ok=True)


def check_remote(uri: str, inputs: Iterable[str | PathLike[str]]) -> None:
    """Raise an error if the file of a URI cannot be written, as far as can be told, or is an input.

    Raises:
        ValueError: It is in the inputs.
        OSError: It is a folder, its bucket does not exist, or the store cannot be reached.
    """
    place = parse(uri)
    name = shown(place.name)
    if place.path.endswith("/") or info_of(uri).type.name == "Directory":
        raise IsADirectoryError(f"{name}: is a folder")
    for other in filter(is_uri, map(os.fsdecode, inputs)):
        given = parse(other)
        if given[:2] == place[:2]:
            if given.path == place.path:
                raise ValueError(f"{name}: output is also an input")
            if place.path.startswith(given.path.rstrip("/") + "/"):
                raise ValueError(f"{name}: output is inside an input folder")
    # In a store of objects, there need not be a folder.
    if place.scheme in BUCKETS and info_of(place._replace(path="").uri).type.name != "Directory":
        raise FileNotFoundError(f"{name}: its bucket does not exist")


def upload(local: Path, system: Any, target: str) -> None:
    """Copy a file of this machine to a file system of pyarrow."""
    import pyarrow.fs

    # Stores show an object when all of it has come. An error in Python between two writes to a
    # stream of pyarrow would end it, as if it were complete.
    here = pyarrow.fs.LocalFileSystem()
    try:
        pyarrow.fs.copy_files(
            str(local), target, source_filesystem=here, destination_filesystem=system
        )
        size = system.get_file_info(target).size
    except (OSError, ValueError, NotImplementedError) as error:
        raise OSError(f"cannot be written ({first_line(error)})") from error
    if size != local.stat().st_size:
        raise OSError(f"cannot be written ({size} of {local.stat().st_size:,} bytes arrived)")


def check_output(path: str | PathLike[str], inputs: Iterable[str | PathLike[str]]) -> None:
    """Raise the errors of `write_file` that can be told before."""
    path = as_local(path)
    if is_uri(path):
        check_remote(path, inputs)
        return
    name = shown(path)
    with name_errors(name):
        check_not_input(find_target(Path(path)), name, inputs)


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
        raise IsADirectoryError("is a folder")
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
        raise type(error)("its folder does not exist") from error
    except RuntimeError as error:
        raise OSError("a loop of links") from error
    if not parent.is_dir():
        raise NotADirectoryError("its folder does not exist")
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
            raise type(error)(f"{name}: {first_line(error)}") from error
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

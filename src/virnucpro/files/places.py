"""Where files are: on this machine, or in a store that pyarrow has a file system for."""

from __future__ import annotations

import functools
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes

from virnucpro.extras import needing
from virnucpro.text import first_line, shown

# A scheme has two letters at least, since C:\x is a path.
URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://([^/?#]*)([^?]*)(?:\?(.*))?", re.DOTALL)
# Parts of a query that tell where a file is. All others are taken for secrets.
PUBLIC = {
    *("endpoint_override", "region", "scheme", "tls_verify_certificates"),
    *("project_id", "location", "retry_limit_seconds", "enable_tls"),
    *("blob_storage_authority", "dfs_storage_authority"),
    *("blob_storage_scheme", "dfs_storage_scheme"),
}
# Schemes whose host is a bucket, which has no port, and whose user is a part of the secret.
BUCKETS = ("s3", "gs", "gcs")
# Characters that are not escaped in the path of a URI, apart from letters and digits.
SAFE = "/%-._~!$&'()+,;=:@"
# Bytes of a remote file that are read at a time.
BUFFER = 2**23


class Place(NamedTuple):
    """The parts of a URI, with escapes."""

    scheme: str
    authority: str
    path: str
    query: str

    @property
    def uri(self) -> str:
        """The URI, with its secrets."""
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{self.authority}{self.path}{query}"

    @property
    def name(self) -> str:
        """The URI without its secrets."""
        user, _, host = self.authority.rpartition("@")
        # In the URIs of Azure, the user is the container.
        user = "" if self.scheme in BUCKETS else user.partition(":")[0]
        return self._replace(
            authority=f"{user}@{host}" if user else host,
            query="&".join(part for part in self.query.split("&") if is_public(part)),
        ).uri

    @property
    def secrets(self) -> list[str]:
        """What may not be in a message."""
        user = self.authority.rpartition("@")[0]
        hidden = [part.partition("=")[2] for part in self.query.split("&") if not is_public(part)]
        found = [text for text in (*user.split(":"), *hidden) if text]
        return [*found, *map(unquote, found)]


def is_public(parameter: str) -> bool:
    """Return whether a part of a query is no secret."""
    return parameter.partition("=")[0] in PUBLIC


def is_uri(path: str | PathLike[str]) -> bool:
    r"""Return whether a path is a URI.

    Example:
        >>> is_uri("s3://bucket/a.fa"), is_uri("s3:a.fa"), is_uri("C:\\a.fa")
        (True, False, False)
    """
    return isinstance(path, str) and URI.match(path) is not None


def parse(uri: str) -> Place:
    """Return the parts of a URI, in which characters that need an escape may have none.

    Raises:
        ValueError: It cannot be read, or might have parts of a password outside its place.
    """
    match = URI.fullmatch(uri)
    if match is None:
        raise ValueError(f"{shown(uri)}: not a URI")
    scheme, authority, path, query = match[1].lower(), match[2], match[3], match[4] or ""
    host = authority.rpartition("@")[2]
    port = "" if scheme in BUCKETS else r"(:\d*)?"
    if not re.fullmatch(rf"(\[[^\]]*\]|[^:]*){port}", host):
        raise ValueError(
            f"{shown(scheme)}://...: not a URI (in a user or password, write %2F for /, %3A for :, "
            "%3F for ? and %40 for @)"
        )
    try:
        place = Place(scheme, authority, quote(path, SAFE), query)
    except UnicodeEncodeError as error:
        raise ValueError(f"{shown(scheme)}://{shown(host)}...: not in UTF-8") from error
    if re.search("%(?![0-9A-Fa-f]{2})", path):
        raise ValueError(f"{shown(place.name)}: not a URI (write %25 for %)")
    return place


def name_of(path: str | PathLike[str]) -> str:
    """Return a path as plans and messages have it: a URI without its secrets.

    Example:
        >>> name_of("s3://key:secret@bucket/my proteins.fa?region=eu-west-1")
        's3://bucket/my%20proteins.fa?region=eu-west-1'
    """
    path = as_local(path)
    return parse(path).name if is_uri(path) else path


def as_local(path: str | PathLike[str]) -> str:
    """Return a path, that of a ``file://`` URI if it is one. Other URIs are returned unchanged.

    Raises:
        ValueError: A ``file://`` URI has a host or a query.
    """
    path = os.fsdecode(path)
    match = URI.fullmatch(path)
    if match is None or match[1].lower() != "file":
        return path
    if match[2] not in ("", "localhost") or match[4] is not None or not match[3]:
        raise ValueError(
            f"{shown(path)}: a file:// URI has no host, an absolute path, and %3F for ?"
        )
    if os.name == "nt":
        # Takes long to import.
        from urllib.request import url2pathname

        return url2pathname(match[3])
    return os.fsdecode(unquote_to_bytes(match[3]))


def file_name(path: str | PathLike[str]) -> str:
    """Return the last part of a path or URI, without escapes.

    Example:
        >>> file_name("s3://bucket/folder/my%20plan.parquet?region=eu-west-1")
        'my plan.parquet'
    """
    path = as_local(path)
    return Path(unquote(parse(path).path) if is_uri(path) else path).name


def join(folder: str, name: str) -> str:
    """Return the path or URI of a file, given its path in a folder, with slashes."""
    if not is_uri(folder):
        return str(Path(folder, name))
    place = parse(folder)
    inside = quote(name, SAFE.replace("%", ""), errors="surrogateescape")
    return place._replace(path=f"{place.path.rstrip('/')}/{inside}").uri


def resolve(path: str | PathLike[str]) -> tuple[Any, str]:
    """Return the `pyarrow.fs.FileSystem` of a path or URI, and the path there.

    File systems are reused, since each may look up its credentials and region.

    Raises:
        ValueError: pyarrow does not know the scheme, or a part of the URI.
        ModuleNotFoundError: pyarrow is not installed.
        OSError: The store cannot be reached.
    """
    path = as_local(path)
    with needing(f"{shown(name_of(path))}: a URI", "cli"):
        import pyarrow.fs

        if not is_uri(path):
            return pyarrow.fs.LocalFileSystem(), path
    place = parse(path)
    try:
        environment = tuple(item for item in os.environ.items() if item[0].startswith("AWS_"))
        root = place._replace(path="/x").uri
        # Not that of a parent process, of which a fork has no threads.
        system, prefix = open_system(root, environment, os.getpid())
    except (OSError, ValueError, NotImplementedError, ImportError) as error:
        reason = first_line(error)
        if reason.startswith("Unrecognized filesystem"):
            reason = f"pyarrow has no file system for {place.scheme}://"
        elif reason.startswith("Unexpected query parameter"):
            reason = "its query has a part that pyarrow does not know"
        elif reason.startswith("Cannot parse") or any(text in reason for text in place.secrets):
            reason = "not a URI that pyarrow can read"
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{shown(place.name)}: {reason}") from None
    try:
        inside = unquote(place.path, errors="strict").removeprefix("/").rstrip("/")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(place.name)}: not in UTF-8") from error
    return system, prefix + inside if inside else prefix.rstrip("/") or prefix


@functools.lru_cache(maxsize=64)
def open_system(root: str, _environment: tuple[tuple[str, str], ...], _pid: int) -> tuple[Any, str]:
    """Return the file system of a URI whose path is "/x", and what stands there before the x."""
    import pyarrow.fs

    system, path = pyarrow.fs.FileSystem.from_uri(root)
    return system, path.removesuffix("x")


@contextmanager
def reading(path: str | PathLike[str]) -> Iterator[None]:
    """Name a file or folder in the errors of pyarrow and of the operating system."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{shown(name_of(path))}: no such file") from error
    except OSError as error:
        raise OSError(f"{shown(name_of(path))}: cannot be read ({reason_of(error)})") from error
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{shown(name_of(path))}: cannot be read ({first_line(error)})") from error
    except Exception as error:
        # File systems that are written in Python raise what their libraries raise.
        if isinstance(error, MemoryError) or not is_uri(path):
            raise
        raise OSError(f"{shown(name_of(path))}: cannot be read ({first_line(error)})") from error


def reason_of(error: OSError) -> str:
    """Return why a file cannot be used; pyarrow's errors have no number."""
    return shown(error.strerror) if error.strerror else first_line(error)


def open_input(path: str | PathLike[str]) -> io.FileIO | io.BufferedReader:
    """Open a file, a URI, or standard input ("-") for reading.

    Returns:
        A binary file with `read`, `seek`, `tell` and `close`. Standard input and pipes cannot seek.
        That of a URI raises OSError at its end if the file has changed since it was opened.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: The path is a folder.
        ValueError: pyarrow does not know the scheme, or a part of the URI.
        OSError: The file cannot be read.
    """
    path = as_local(path)
    if path == "-":
        try:
            return io.FileIO(0, closefd=False)
        except OSError as error:
            raise OSError(f"standard input: cannot be read ({error.strerror})") from error
    if is_uri(path):
        return io.BufferedReader(RemoteFile(path), BUFFER)
    check_exists(path)
    try:
        return io.FileIO(path)
    except OSError as error:
        raise type(error)(f"{shown(path)}: cannot be read ({error.strerror})") from error


class RemoteFile(io.RawIOBase):
    """The file of a URI, of which each read is a request.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
        OSError: It cannot be read, or has changed since it was opened.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._system, self._inside = resolve(path)
        self._stamp = stamp_of(path)
        with reading(path):
            self._file = self._system.open_input_file(self._inside)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read bytes into a buffer; return their number, 0 at the end."""
        with reading(self._path):
            size: int = self._file.readinto(buffer)
        # If a file in S3 becomes shorter, pyarrow returns bytes that were never there.
        if size < len(buffer) and stamp_of(self._path) != self._stamp:
            raise OSError(f"{shown(name_of(self._path))}: changed while it was read")
        return size

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a place in the file; return it."""
        with reading(self._path):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the place in the file."""
        return int(self._file.tell())

    def close(self) -> None:
        """Close the file."""
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()


def stamp_of(path: str | PathLike[str]) -> tuple[int, ...]:
    """Return the size of a file and when it was changed, to tell whether it has changed since.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
        OSError: It cannot be read.
    """
    path = as_local(path)
    if not is_uri(path):
        with reading(path):
            found = Path(path).stat()
        return found.st_size, found.st_mtime_ns, found.st_ino
    info = info_of(path)
    if info.type.name == "Directory":
        raise IsADirectoryError(f"{shown(name_of(path))}: is a folder")
    if info.type.name == "NotFound":
        raise FileNotFoundError(f"{shown(name_of(path))}: no such file")
    return info.size, info.mtime_ns or 0


def info_of(uri: str) -> Any:
    """Return the `pyarrow.fs.FileInfo` of a URI."""
    system, inside = resolve(uri)
    with reading(uri):
        return system.get_file_info(inside)


def check_exists(path: str | PathLike[str]) -> None:
    """Raise OSError if a path on this machine does not exist or is a folder."""
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise FileNotFoundError(f"{shown(path)}: no such file") from error
    except OSError as error:
        raise OSError(f"{shown(path)}: cannot be read ({error.strerror})") from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{shown(path)}: is a folder")


def is_regular(path: str | PathLike[str]) -> bool:
    """Return whether a path is that of a regular file on this machine."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def check_regular(path: str) -> None:
    """Raise if a file does not exist, or cannot be read more than once."""
    path = as_local(path)
    if is_uri(path):
        stamp_of(path)
        return
    check_exists(path)
    if not is_regular(path):
        raise ValueError(f"{shown(path)}: not a regular file, so it cannot be read more than once")

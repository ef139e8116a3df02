"""Find the input files that names stand for: files, folders, patterns and URIs."""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from virnucpro.files.places import (
    URI,
    as_local,
    file_name,
    info_of,
    is_uri,
    join,
    name_of,
    parse,
    reading,
    resolve,
)
from virnucpro.text import shown

logger = logging.getLogger(__name__)

# Kinds of tables by suffix.
TABLE_KINDS = {
    ".fai": "fai",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".tsv": "tsv",
}
# Suffixes of FASTA files in folders, perhaps followed by one of compressed files.
FASTA = {
    *(".fa", ".faa", ".fas", ".fasta", ".ffn", ".fna", ".frn", ".fsa", ".pep"),
    *(".a2m", ".a3m", ".afa"),
}
COMPRESSED = {".gz", ".bgz", ".bz2", ".xz", ".zst"}
# What makes a name a pattern; a bracket that is not closed does not.
MAGIC = re.compile(r"[*?]|\[.[^]]*\]", re.DOTALL)


class Input(NamedTuple):
    """An input file. Picklable.

    Attributes:
        name: What plans and messages call it: its path, or its URI without secrets; "-" for
            standard input.
        path: What opens it: its path, or its URI with secrets.
        size: Its size in bytes; None if it cannot be known before it is read.
    """

    name: str
    path: str
    size: int | None


class Found(NamedTuple):
    """A file or folder in a folder.

    Attributes:
        name: Its path in the folder, with slashes.
        is_folder: Whether it is a folder.
        size: Its size in bytes; None if it is not a regular file.
    """

    name: str
    is_folder: bool
    size: int | None


def names_of(inputs: str | PathLike[str] | Iterable[str | PathLike[str]]) -> list[str]:
    """Return the names of one or more inputs; raise ValueError if there are none."""
    paths = [inputs] if isinstance(inputs, (str, PathLike)) else list(inputs)
    if not paths:
        raise ValueError("inputs must name at least one file")
    return [os.fsdecode(path) for path in paths]


def find_inputs(names: Iterable[str]) -> list[Input]:
    r"""Return the input files that names stand for, in order.

    A name is one of

    - a file, or "-" for standard input;
    - a folder: the FASTA files and tables in it and below, by their suffix, in order of their
      paths. Names that begin with "." or "_" are left out, and so are `.fai` files, which belong to
      FASTA files; other files are left out with a WARNING;
    - a pattern, if there is no file of that name: the files that match it, whatever their suffix,
      in order of their paths. ``*``, ``?`` and ``[...]`` match within a name, and ``**`` any number
      of folders; names that begin with "." match only a pattern that does;
    - a URI of one of these (without ``?`` in patterns), of a scheme that pyarrow has a file system
      for. ``file://`` URIs become paths.

    Raises:
        FileNotFoundError: There is no such file, or nothing matches a pattern.
        ValueError: A folder has no inputs, a file is found twice, or a URI cannot be read.
        ModuleNotFoundError: A URI needs pyarrow, which is not installed.
        OSError: A file or folder cannot be read.

    Cost: for a URI, one request per file that is named, and one or more per folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("b.fa", "a.fasta.gz", ".hidden.fa"):
        ...         _ = Path(folder, name).write_text(">a\nMK\n")
        ...     [Path(found.name).name for found in find_inputs([folder])]
        ['a.fasta.gz', 'b.fa']
    """
    inputs: list[Input] = []
    ignored: list[str] = []
    for name in map(as_local, names):
        found = Found("-", False, None) if name == "-" else find(name)
        if found is None:
            inputs += find_matches(name)
        elif found.is_folder:
            inputs += find_in_folder(name, ignored)
        else:
            path = parse(name).uri if is_uri(name) else name
            inputs.append(Input(name_of(path), path, found.size))
    if ignored:
        logger.warning(
            "files ignored in input folders: %s, which are neither FASTA nor tables by suffix "
            "(for example %s)",
            f"{len(ignored):,}",
            shown(ignored[0]),
        )
    seen = set()
    for file in inputs:
        identity = identity_of(file.path)
        if identity in seen:
            raise ValueError(f"{shown(file.name)}: given twice")
        seen.add(identity)
    return inputs


def total_size(inputs: Iterable[Input]) -> int | None:
    """Return the size of files in bytes; None if that of one is not known."""
    sizes = [file.size for file in inputs]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def identity_of(path: str) -> tuple[str, ...]:
    """Return what two paths of the same file have in common."""
    if path == "-":
        return (path,)
    if is_uri(path):
        place = parse(parse(path).name)
        return place.scheme, place.authority, unquote(place.path)
    return (os.path.realpath(path),)


def find_in_folder(folder: str, ignored: list[str]) -> list[Input]:
    """Return the inputs in a folder; add the names of files that are none to `ignored`."""
    inputs = []
    others = []
    for file in list_files(folder, "._"):
        path = join(folder, file.name)
        suffix = input_suffix(file.name)
        if suffix is None:
            others.append(name_of(path))
        elif suffix != ".fai":
            if file.size is None:
                raise ValueError(f"{shown(name_of(path))}: not a regular file")
            inputs.append(Input(name_of(path), path, file.size))
    if not inputs:
        example = f" (it has {len(others):,} others, such as {shown(others[0])})" if others else ""
        name = shown(name_of(folder))
        raise ValueError(f"{name}: is a folder without FASTA files or tables{example}")
    ignored += others
    return inputs


def find_matches(path: str) -> list[Input]:
    """Return the files that match a pattern; raise FileNotFoundError if there are none."""
    uri = URI.fullmatch(path)
    if uri is None:
        raw = patterns = list(Path(path).parts)
    else:
        raw = uri[3].removeprefix("/").split("/")
        patterns = [
            re.sub("(%..)+", lambda run: glob.escape(unquote(run[0])), part) for part in raw
        ]
    number = next((i for i, part in enumerate(raw) if MAGIC.search(part)), None)
    name = shown(name_of(path))
    if number is None:
        raise FileNotFoundError(f"{name}: no such file")
    if uri is None:
        folder = str(Path(*raw[:number]))
    else:
        folder = f"{path[: uri.start(3)]}/{'/'.join(raw[:number])}{path[uri.end(3) :]}"
    found = find(folder)
    if found is None or not found.is_folder:
        raise FileNotFoundError(
            f"{name}: matches no file: {shown(name_of(folder))} is not a folder"
        )
    files = sorted(list_matches(folder, patterns[number:]))
    if not files:
        raise FileNotFoundError(f"{name}: matches no file")
    paths = [(join(folder, file.name), file.size) for file in files]
    return [Input(name_of(path), path, size) for path, size in paths]


def list_matches(folder: str, patterns: Sequence[str], before: str = "") -> Iterator[Found]:
    """Yield the files in a folder whose paths match patterns, one per part."""
    first, *rest = patterns
    if first == "**":
        hidden = "" if any(pattern.startswith(".") for pattern in rest) else "."
        for file in list_files(folder, hidden):
            if matches(file.name.split("/"), patterns):
                yield file._replace(name=before + file.name)
        return
    for found in list_folder(folder):
        if fits(found.name, first) and found.is_folder == bool(rest):
            name = before + found.name
            if rest:
                yield from list_matches(join(folder, found.name), rest, f"{name}/")
            else:
                yield found._replace(name=name)


def matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Return whether the parts of a path match patterns, of which `**` stands for any folders."""
    if not patterns or not parts:
        return not parts and all(pattern == "**" for pattern in patterns)
    if patterns[0] == "**":
        if matches(parts, patterns[1:]):
            return True
        return not parts[0].startswith(".") and matches(parts[1:], patterns)
    return fits(parts[0], patterns[0]) and matches(parts[1:], patterns[1:])


def fits(name: str, pattern: str) -> bool:
    """Return whether a name matches a pattern; hidden ones match only patterns that say so."""
    is_shown = not name.startswith(".") or pattern.startswith(".")
    return is_shown and fnmatch.fnmatchcase(name, pattern)


def find(path: str) -> Found | None:
    """Return the file or folder at a path or URI; None if there is none."""
    if is_uri(path):
        info = info_of(path)
        return None if info.type.name == "NotFound" else as_found("", info)
    try:
        with reading(path):
            return stat_found("", path)
    except (FileNotFoundError, ValueError):
        return None


def list_folder(folder: str, recursive: bool = False) -> list[Found]:
    """Return what is in a folder, in any order; of one on this machine, never what is below."""
    with reading(folder):
        if not is_uri(folder):
            return [stat_found(entry.name, entry.path) for entry in os.scandir(folder)]
        system, inside = resolve(folder)
        import pyarrow.fs

        infos = system.get_file_info(pyarrow.fs.FileSelector(inside, recursive=recursive))
    before = inside.rstrip("/") + "/"
    return [as_found(info.path.removeprefix(before), info) for info in infos]


def list_files(folder: str, hidden: str) -> list[Found]:
    """Return the files in a folder and below, in order of their paths.

    Files and folders whose names begin with a character of `hidden` are left out. Links are
    followed.
    """
    if is_uri(folder):
        found = [file for file in list_folder(folder, recursive=True) if not file.is_folder]
        files = [
            file
            for file in found
            if not any(part.startswith(tuple(hidden)) for part in file.name.split("/"))
        ]
    else:
        files = list(walk(folder, hidden, "", ()))
    return sorted(files)


def walk(folder: str, hidden: str, before: str, above: tuple[str, ...]) -> Iterator[Found]:
    """Yield the files in a folder of this machine and below; see `list_files`."""
    above = (*above, os.path.realpath(folder))
    if above[-1] in above[:-1]:
        raise OSError(f"{shown(folder)}: cannot be read (a loop of links)")
    for found in list_folder(folder):
        if not found.name.startswith(tuple(hidden)):
            name = before + found.name
            if found.is_folder:
                yield from walk(join(folder, found.name), hidden, f"{name}/", above)
            else:
                yield found._replace(name=name)


def stat_found(name: str, path: str) -> Found:
    """Return a file or folder of this machine, where links lead; a link that leads nowhere too."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        if not Path(path).is_symlink() or not name:
            raise
        return Found(name, False, None)
    is_file = stat.S_ISREG(found.st_mode)
    return Found(name, stat.S_ISDIR(found.st_mode), found.st_size if is_file else None)


def as_found(name: str, info: Any) -> Found:
    """Return a file or folder that pyarrow describes."""
    is_folder = info.type.name == "Directory"
    return Found(name, is_folder, None if is_folder else info.size)


def input_suffix(name: str) -> str | None:
    """Return the suffix of an input in a folder, in lower case; None for other files."""
    path = PurePosixPath(name.lower())
    suffix = path.suffix
    if suffix in COMPRESSED:
        inner = path.with_suffix("").suffix
        return inner if inner in FASTA or (inner, suffix) == (".tsv", ".gz") else None
    return suffix if suffix in FASTA or suffix in TABLE_KINDS else None


def table_kind(path: str) -> str | None:
    """Return the kind of a table of lengths by its suffix; None for FASTA."""
    name = file_name(path).lower()
    kind = TABLE_KINDS.get(Path(name.removesuffix(".gz")).suffix)
    return None if name.endswith(".gz") and kind != "tsv" else kind

"""Find the input files that a plan names."""

from __future__ import annotations

import os
from pathlib import Path

from virnucpro.files.fasta import CountingHash, read_chunks
from virnucpro.files.inputs import identity_of
from virnucpro.files.places import is_regular, is_uri, open_input
from virnucpro.files.plan_reader import PlanFile
from virnucpro.files.sequences import InputFile
from virnucpro.text import shown


def find_recorded(plan: PlanFile) -> list[str]:
    """Return the paths of the inputs that a plan names.

    A name is that of a file from the current folder; else from the folder of the plan, or from one
    above it; else of a file beside the plan. Of several, the first with the content that the plan
    was made of is taken, or else the first. Names of standard input and URIs are returned as they
    are.

    Raises:
        FileNotFoundError: There is no such file, or only one that is another input.
        OSError: A file cannot be read.

    Cost: reading the files of the right size, where there are several for a name.
    """
    found: dict[tuple[str, ...], str] = {}
    for file in plan.summary.inputs:
        path = find_one(plan, file)
        if found.setdefault(identity_of(path), path) is not path:
            raise not_found(plan, file)
    return list(found.values())


def not_found(plan: PlanFile, file: InputFile) -> FileNotFoundError:
    """Return the error for an input that is not found."""
    return FileNotFoundError(
        f"{shown(plan.name)}: its input {shown(file.name)} is found neither from this folder nor "
        "from that of the plan"
    )


def find_one(plan: PlanFile, file: InputFile) -> str:
    """Return the path of an input that a plan names; see `find_recorded`."""
    if file.name == "-" or is_uri(file.name):
        return file.name
    paths = candidates(plan, file.name)
    if not paths:
        raise not_found(plan, file)
    if len(paths) == 1:
        return paths[0]
    fitting = (path for path in paths if Path(path).stat().st_size == file.bytes)
    return next((path for path in fitting if hash_of(path) == file.sha256), paths[0])


def candidates(plan: PlanFile, name: str) -> list[str]:
    """Return the paths of all files that the name of an input of a plan may mean, nearest first."""
    places = [Path(name)]
    if not is_uri(plan.origin):
        # Beside a link to the plan, too.
        for folder in (Path(plan.origin).absolute().parent, Path(plan.origin).resolve().parent):
            places += [above / name for above in (folder, *folder.parents)]
            places.append(folder / Path(name).name)
    found = {os.path.realpath(place): str(place) for place in reversed(places) if is_regular(place)}
    return list(reversed(found.values()))


def hash_of(path: str) -> str:
    """Return the SHA-256 of the bytes of a file."""
    digest = CountingHash()
    with open_input(path) as file:
        for _ in read_chunks(file, path, digest):
            pass
    return digest.hexdigest()

"""Find the input files that a plan names."""

from __future__ import annotations

from pathlib import Path

from virnucpro.files.places import is_regular, is_uri
from virnucpro.files.plan_reader import PlanFile
from virnucpro.text import shown


def find_recorded(plan: PlanFile) -> list[str]:
    """Return the paths of the inputs that a plan names.

    A name is that of a file from the current folder; else from the folder of the plan, or from one
    above it; else of a file beside the plan. Of several, the first with the size that the plan has
    is taken, or else the first. Names of standard input and URIs are returned as they are.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return [find_one(plan, file.name, file.bytes) for file in plan.summary.inputs]


def find_one(plan: PlanFile, name: str, size: int) -> str:
    """Return the path of an input that a plan names; see `find_recorded`."""
    if name == "-" or is_uri(name):
        return name
    places = [Path(name)]
    if not is_uri(plan.origin):
        folder = Path(plan.origin).resolve().parent
        places += [above / name for above in (folder, *folder.parents)]
        places.append(folder / Path(name).name)
    found = list(filter(is_regular, places))
    if not found:
        raise FileNotFoundError(
            f"{shown(name)}: an input of {shown(plan.name)}, is found neither from this folder nor "
            "from that of the plan"
        )
    fitting = (place for place in found if place.stat().st_size == size)
    return str(next(fitting, found[0]))

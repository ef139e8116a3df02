"""Environments of links to what is installed here, each as pip makes it for some requirements."""

from __future__ import annotations

import os
import sys
import venv
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import virnucpro
from virnucpro import kernel

SCRIPT = """#!{python}
import sys

from {module} import {function}

sys.exit({function}())
"""


def find_distributions(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Return the distributions that requirements need, by name, with all that these need."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = distribution(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                todo.extend((Requirement(text), extra) for text in found[name].requires or ())
    return found


def parts_of(dist: Distribution) -> set[tuple[str, ...]]:
    """Return the files of a distribution, by the parts of their paths."""
    paths = (file.parts for file in dist.files or ())
    return {parts for parts in paths if parts[0] not in ("..", "__pycache__") and parts[-1]}


@cache
def shared_folders() -> set[tuple[str, ...]]:
    """Return the folders in which several distributions have files, such as `backports`."""
    owners = Counter(
        folder
        for dist in distributions()
        for folder in {parts[:depth] for parts in parts_of(dist) for depth in range(1, len(parts))}
    )
    return {folder for folder, number in owners.items() if number > 1}


def link(dist: Distribution, site: Path) -> None:
    """Link the files of a distribution, by whole folders if all in them are its own."""
    shared = shared_folders()
    links = set()
    for parts in parts_of(dist):
        depth = 1
        while parts[:depth] in shared:
            depth += 1
        links.add(parts[:depth])
    for parts in links:
        path = site.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.symlink_to(str(dist.locate_file("/".join(parts))))


def link_package(dist: Distribution, site: Path) -> None:
    """Link this package, which is installed in editable mode, and its compiled module."""
    source = Path(virnucpro.__file__).parent
    for path in [*source.rglob("*.py"), source / "py.typed"]:
        place = site / "virnucpro" / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    core = Path(kernel._core.__file__)  # noqa: SLF001
    (site / "virnucpro/kernel" / core.name).symlink_to(core)
    (info,) = {parts[0] for parts in parts_of(dist) if parts[0].endswith(".dist-info")}
    (site / info).symlink_to(str(dist.locate_file(info)))


def make_environment(folder: Path, requirements: Iterable[str]) -> Path:
    """Make an environment that has what requirements need and no more; return its `bin`."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    bin_folder = folder / "bin"
    for name, dist in find_distributions(requirements).items():
        if name == "virnucpro":
            link_package(dist, site)
        else:
            link(dist, site)
        for entry in dist.entry_points.select(group="console_scripts"):
            script = SCRIPT.format(
                python=bin_folder / "python", module=entry.module, function=entry.attr
            )
            (bin_folder / entry.name).write_text(script, encoding="utf-8")
            (bin_folder / entry.name).chmod(0o755)
    return bin_folder


def variables_of(bin_folder: Path, home: Path) -> dict[str, str]:
    """Return the variables of a shell in which an environment is active, without a network."""
    here = {str(Path(sys.executable).parent), str(bin_folder)}
    path = [str(bin_folder), *(p for p in os.environ["PATH"].split(os.pathsep) if p not in here)]
    kept = {key: os.environ[key] for key in ("TMPDIR", "LANG", "SYSTEMROOT") if key in os.environ}
    return {
        **kept,
        "PATH": os.pathsep.join(path),
        "HOME": str(home),
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "RAY_DISABLE_IMPORT_WARNING": "1",
    }

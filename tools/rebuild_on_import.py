"""Limits the rebuild of an editable install to processes that find a changed C++ source.

With `editable.rebuild` scikit-build-core runs CMake in every process that imports the kernel, which
takes 0.3 s. `make .venv/dev` copies this module into the environment, beside a .pth file that
imports it when Python starts: CMake then runs only if a source is newer than the compiled module.
"""

# Every start of Python imports this module, and pathlib is slow to import.
# ruff: noqa: PTH110, PTH116, PTH118

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def modified(folder: str) -> float:
    """Return when the newest source below the folder was changed, those of tests left out."""
    newest = 0.0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name != "tests":
                    newest = max(newest, modified(entry.path))
            elif entry.name.endswith((".cpp", ".hpp")):
                newest = max(newest, entry.stat().st_mtime)
    return newest


def limit(finder: Any) -> None:
    """Have the finder of the editable install rebuild only what is out of date."""
    root = finder.known_source_files["virnucpro"].partition("/src/virnucpro/")[0]
    modules = [os.path.join(finder.dir, file) for file in finder.known_wheel_files.values()]
    changed = max(modified(f"{root}/cpp"), os.stat(f"{root}/CMakeLists.txt").st_mtime)
    finder.rebuild_flag = any(
        not os.path.exists(module) or os.stat(module).st_mtime < changed for module in modules
    )
    build = finder.rebuild

    def rebuild() -> None:
        started = time.time()
        # The CMake of this environment, which need not be activated.
        os.environ["PATH"] = f"{sys.prefix}/bin{os.pathsep}{os.environ.get('PATH', '')}"
        build()
        # CMake leaves a module as it is if the change does not concern it.
        for module in modules:
            os.utime(module, (started, started))

    finder.rebuild = rebuild


for found in sys.meta_path:
    if "virnucpro" in getattr(found, "known_source_files", ()):
        limit(found)

"""Beside a pipeline that has a package `virnucpro` of its own, as its page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest

import virnucpro
from virnucpro import kernel

pytestmark = pytest.mark.process

PAGE = Path(__file__).parents[2] / "docs/how-to/beside-a-package.md"

# What works in any order: their modules, some of which have the names of ours, and our packer.
EVERYWHERE = """
import sys
from tempfile import TemporaryDirectory

sys.modules["torch"] = None
import virnucpro.pipeline
import virnucpro.data.loading
from virnucpro.data.packing import GreedyPacker, calculate_token_budget

batches = virnucpro.pipeline.pack(["MK", "MKTAY", "MKT"])
assert [[record["id"] for record in batch] for batch in batches] == [[1, 0], [2]], batches
plan = GreedyPacker(12).pack_lengths([2, 5, 3])
assert [rows.tolist() for rows in plan] == [[1, 2], [0]], plan.indices
assert calculate_token_budget(max_tokens=2048) == 2048
with TemporaryDirectory() as folder:
    plan.save(f"{folder}/plan.arrow")
    assert type(plan).load(f"{folder}/plan.arrow") == plan
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a pipeline with modules of its own, and the recipe of the page in each `__init__`."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (recipe,) = [block for block in blocks if "extend_path" in block]
    root = tmp_path / "checkout"
    for path, content in {
        "virnucpro/__init__.py": f'{recipe}\nOWNER = "theirs"\n',
        "virnucpro/pipeline.py": (
            "from virnucpro.data.loading import records_of\n"
            "from virnucpro.data.packing import GreedyPacker\n\n\n"
            "def pack(sequences):\n"
            "    return GreedyPacker(11).pack_sequences(records_of(sequences))\n"
        ),
        "virnucpro/data/__init__.py": (
            f"{recipe}\nfrom virnucpro.data.loading import records_of\n"
        ),
        "virnucpro/data/loading.py": (
            "def records_of(sequences):\n"
            '    return [{"id": i, "sequence": s} for i, s in enumerate(sequences)]\n'
        ),
        "virnucpro/jobs.py": 'OWNER = "theirs"\n',
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content, encoding="utf-8")
    return root


@pytest.fixture
def plain_install(tmp_path: Path) -> Path:
    """Lay the package out as pip does where the install is not editable."""
    target = tmp_path / "target"
    shutil.copytree(Path(virnucpro.__file__).parent, target / "virnucpro")
    shutil.copy(kernel._core.__file__, target / "virnucpro/kernel")  # noqa: SLF001
    return target


def run(code: str, *arguments: str, path: list[Path]) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *arguments, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_plain(code: str, *path: Path) -> str:
    """Run without an editable install, which `-S` leaves out."""
    return run(code, "-S", path=[*path, Path(sysconfig.get_path("purelib"))])


def test_plain_install_serves_a_checkout_that_comes_first(
    checkout: Path, plain_install: Path
) -> None:
    code = f"""{EVERYWHERE}
import virnucpro.jobs
from virnucpro.data import records_of
from virnucpro.data.plan import PackingPlan

ours = {str(plain_install)!r}
assert sys.modules["virnucpro.data.packing"].__file__.startswith(ours)
assert virnucpro.OWNER == virnucpro.jobs.OWNER == "theirs"
assert not hasattr(virnucpro.data, "GreedyPacker")
assert not hasattr(virnucpro, "__version__")
"""
    run_plain(code, checkout, plain_install)


def test_checkout_may_import_names_into_its_own_package(
    checkout: Path, plain_install: Path
) -> None:
    own = checkout / "virnucpro/data/__init__.py"
    own.write_text(own.read_text() + "from virnucpro.data.packing import GreedyPacker\n")
    code = "from virnucpro.data import GreedyPacker; print(GreedyPacker(12))"
    assert run_plain(code, checkout, plain_install).startswith("GreedyPacker(12, 1022,")


@pytest.mark.parametrize("name", ["layout", "methods", "overlong", "packing", "plan", "records"])
def test_their_module_of_the_same_name_is_taken(
    checkout: Path, plain_install: Path, name: str
) -> None:
    (checkout / f"virnucpro/data/{name}.py").write_text('raise ImportError("theirs")\n')
    code = """
try:
    import virnucpro.data.packing
except ImportError as error:
    print(error)
"""
    assert run_plain(code, checkout, plain_install) == "theirs\n"


def test_plain_install_that_comes_first_finds_their_modules(
    checkout: Path, plain_install: Path
) -> None:
    code = f"{EVERYWHERE}\nfrom virnucpro.data import GreedyPacker, PackingPlan\n"
    run_plain(code, plain_install, checkout)


def test_command_runs_in_the_checkout(checkout: Path, plain_install: Path) -> None:
    code = """
import runpy, sys
sys.argv = ["virnucpro", "--version"]
runpy.run_module("virnucpro", run_name="__main__")
"""
    version = f"virnucpro {virnucpro.__version__}\n"
    assert run_plain(code, checkout, plain_install) == version


def test_install_as_it_is_finds_their_modules(checkout: Path) -> None:
    code = f"""{EVERYWHERE}
import virnucpro.jobs
print(hasattr(virnucpro, "OWNER"), hasattr(virnucpro.jobs, "OWNER"))
"""
    origin = json.loads(distribution("virnucpro").read_text("direct_url.json") or "{}")
    is_editable = origin.get("dir_info", {}).get("editable", False)
    theirs = str(not is_editable)
    assert run(code, path=[checkout]).split() == [theirs, theirs]


def test_page_names_all_modules_that_theirs_must_not_have() -> None:
    text = PAGE.read_text(encoding="utf-8")
    conditions = text.partition("under these conditions:")[2].partition("\n\nIf ")[0]
    own, _, of_data = conditions.partition("- It has")
    package = Path(virnucpro.__file__).parent
    names = {path.name for path in (package / "data").glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"`(\w+\.py)`", of_data)) == names
    assert all((package / name).exists() for name in re.findall(r"`(\w+\.py|kernel/)`", own))

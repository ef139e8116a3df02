"""What the package exports, imports and promises about its source."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import virnucpro.data
import virnucpro.data.packing


def test_exports() -> None:
    for name in ("GreedyPacker", "PackingPlan", "calculate_token_budget"):
        assert name in virnucpro.data.__all__
        assert name in virnucpro.data.packing.__all__
        assert getattr(virnucpro.data, name) is getattr(virnucpro.data.packing, name)
    assert set(virnucpro.data.__all__) - set(virnucpro.data.LAZY) <= set(vars(virnucpro.data))


def test_names_of_other_floors_are_imported_on_first_use() -> None:
    from virnucpro.files.fasta import ReadOptions

    assert set(virnucpro.data.__all__) <= set(dir(virnucpro.data))
    assert virnucpro.data.ReadOptions is ReadOptions
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        virnucpro.data.nothing  # noqa: B018


@pytest.mark.process
def test_import_requires_only_numpy() -> None:
    code = (
        "import sys, numpy\n"
        "before = set(sys.modules)\n"
        "import virnucpro.data\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names) - {'numpy'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("virnucpro\n", "")


def test_one_version() -> None:
    from importlib.metadata import version

    assert virnucpro.__version__ == virnucpro.kernel.__version__ == version("virnucpro")


@pytest.mark.parametrize(
    "pattern", [r"logger\.warning\(.*truncat", r"torch\.cuda\.get_device_properties"]
)
def test_source_has_the_lines_that_users_search_for(pattern: str) -> None:
    """Both are in this file, each on one line."""
    source = inspect.getsource(virnucpro.data.packing).splitlines()
    assert any(re.search(pattern, line) for line in source)

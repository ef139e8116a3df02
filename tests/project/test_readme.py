"""What the README says of the project is so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_each_extra_is_documented() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    _, _, table = project.partition("[project.optional-dependencies]\n")
    extras = set(re.findall(r"^(\w+) = \[", table.partition("\n[")[0], re.MULTILINE))
    _, _, install = README.partition("## Install\n")
    commands = re.findall(r"^pip install '\.\[(.*?)\]'", install.partition("\n##")[0], re.MULTILINE)
    assert {extra for names in commands for extra in names.split(",")} == extras


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_to_files(name: str) -> None:
    """Sphinx checks those of all other pages."""
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.skipif("VIRNUCPRO_REAL_DATA" not in os.environ, reason="VIRNUCPRO_REAL_DATA not set")
@pytest.mark.process
def test_the_picture_is_that_of_its_script(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks").mkdir()
    for name in ("picture.py", "data.py"):
        shutil.copy(ROOT / "benchmarks" / name, tmp_path / "benchmarks")
    command = [sys.executable, str(tmp_path / "benchmarks/picture.py")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "padded, 8 in order of arrival per batch: 41.2% " in printed
    assert "padded, 16 in order of arrival per batch: 49.2% " in printed
    assert "packed, 4,096 tokens per batch: 0.11% " in printed
    name = "docs/padding.svg"
    assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()

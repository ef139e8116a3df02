"""What the README says of the project is so."""

from __future__ import annotations

import re

from pages import ROOT


def test_each_extra_is_documented() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    _, _, table = project.partition("[project.optional-dependencies]\n")
    extras = set(re.findall(r"^(\w+) = \[", table.partition("\n[")[0], re.MULTILINE))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, install = text.partition("## Install\n")
    commands = re.findall(r"^pip install '\.\[(.*?)\]'", install.partition("\n##")[0], re.MULTILINE)
    assert {extra for names in commands for extra in names.split(",")} == extras

"""The pages of the reference have every public name."""

from __future__ import annotations

import re
from pathlib import Path

import virnucpro.data

REFERENCE = Path(__file__).parents[2] / "docs/reference"


def test_every_public_name_is_on_one_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md"))
    names = re.findall(r"^\.\. auto(?:class|function):: virnucpro\.data\.(\w+)$", text, re.M)
    assert sorted(names) == sorted(virnucpro.data.__all__)

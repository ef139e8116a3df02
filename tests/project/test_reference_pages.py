"""The pages of the reference have every public name."""

from __future__ import annotations

import re
from pathlib import Path

import virnucpro.data
from virnucpro.files.plan_schema import KINDS

REFERENCE = Path(__file__).parents[2] / "docs/reference"


def test_every_public_name_is_on_one_page() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md"))
    names = re.findall(r"^\.\. auto(?:class|function):: virnucpro\.data\.(\w+)$", text, re.M)
    assert sorted(names) == sorted(virnucpro.data.__all__)


def test_every_column_of_plans_is_in_the_table_of_files() -> None:
    text = (REFERENCE / "files.md").read_text(encoding="utf-8")
    table = text.partition("## Plans")[2].partition("## Embeddings")[0]
    rows = re.findall(r"^\| (`.*?) \| (\w+)", table, re.MULTILINE)
    kinds = {name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}
    assert kinds == {name: re.split(r"\W", str(types[0]))[0] for name, types in KINDS.items()}

"""Pages that other files name exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "examples", "src", "tests")


def test_pages_that_files_name_exist() -> None:
    paths = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    paths += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    names = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in paths
        for name in re.findall(r"\bdocs/[\w/-]+\.\w+", path.read_text(encoding="utf-8"))
    }
    assert names
    assert {(path, name) for path, name in names if not (ROOT / name).exists()} == set()


def test_links_lead_to_files_and_headings() -> None:
    for path in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if re.match(r"\w+:", link):
                continue
            name, _, heading = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), f"{path.name}: {link}"
            if heading:
                titles = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {
                    re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles
                }
                assert heading in slugs, f"{path.name}: {link}"

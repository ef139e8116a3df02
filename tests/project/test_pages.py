"""Every block of the README and of the documentation runs as it stands there.

Each page runs in an environment of what it says that it requires, see `pages`.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, Block, Pages, expected_outputs, is_output, read_blocks, write_inputs

CHECKS = {
    "docs/how-to/choose-batches.md": "check_batches",
    "docs/how-to/embed.md": "check_embed",
    "docs/how-to/one-shape.md": "check_one_shape",
    "docs/how-to/pack-with-sql.md": "check_sql",
    "docs/how-to/resume.md": "check_resume",
    "docs/how-to/train-on-a-stream.md": "check_stream",
    "docs/how-to/train-with-accelerate.md": "check_scripts",
    "docs/how-to/train-with-lightning.md": "check_scripts",
    "docs/how-to/train-with-the-trainer.md": "check_scripts",
    "docs/how-to/train-with-torchrun.md": "check_scripts",
    "docs/how-to/use-a-plan.md": "check_use_a_plan",
}
RUNNING = [page for page in PAGES if any(block.is_run for block in read_blocks(page))]
# With real proteins, too.
REAL = ["docs/how-to/one-shape.md", "docs/how-to/use-a-plan.md"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return Pages(tmp_path_factory.mktemp("pages"))


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("page", "is_real"),
    [
        *((page, False) for page in RUNNING),
        *(pytest.param(page, True, marks=pytest.mark.long) for page in REAL),
    ],
)
def test_blocks_run(
    page: str,
    is_real: bool,
    pages: Pages,
    checkpoint: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if is_real and "VIRNUCPRO_REAL_DATA" not in os.environ:
        pytest.skip("VIRNUCPRO_REAL_DATA is not set")
    write_inputs(tmp_path, page, checkpoint, is_real)
    variables = {}
    if "s3://" in (ROOT / page).read_text(encoding="utf-8"):
        variables = fill_store(request.getfixturevalue("stores"), page, tmp_path)
    outputs = {} if is_real else expected_outputs(page)
    for block, printed in pages.run(page, tmp_path, CHECKS.get(page), variables):
        expected = outputs.pop(block.line, None)
        assert expected is None or is_output(expected, printed), f"{page}:{block.line}: {printed}"
    assert not outputs


def fill_store(store: Any, page: str, folder: Path) -> dict[str, str]:
    """Copy the inputs to each bucket that a page names; return the variables that lead there."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for bucket in set(re.findall(r"s3://([\w-]+)/", text)):
        store.files.create_dir(bucket)
        for path in [*folder.glob("proteins/**/*.gz"), *folder.glob("lengths/*")]:
            key = f"{bucket}/{path.relative_to(folder)}"
            with store.files.open_output_stream(key, None) as file:
                file.write(path.read_bytes())
    variables: dict[str, str] = store.environment
    return variables


def test_checks_are_those_of_pages() -> None:
    assert {*CHECKS, *REAL} <= {*RUNNING}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_or_only_installs(page: str) -> None:
    targets = re.findall(r"^## ([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = set(metadata("virnucpro").get_all("Provides-Extra") or ())
    before: Block | None = None
    for block in read_blocks(page):
        where = f"{page}:{block.line}"
        if block.language == "output":
            assert before is not None, where
            assert before.is_run, where
        elif block.language == "text":
            assert not re.search(r"\bimport\b|^(virnucpro|python|pip) ", block.code, re.M), where
        elif block.language == "sh" and not block.is_run:
            assert {*re.findall(r"^make ([\w-]+)", block.code, re.MULTILINE)} <= {*targets}, where
            for names in re.findall(r"\[([\w,]+)\]", block.code):
                assert {*names.split(",")} <= extras, where
        else:
            assert block.is_run, where
            assert block.requirements is not None, f"{where}: no line says what is required"
        before = block


@pytest.mark.parametrize(
    ("expected", "printed", "result"),
    [
        ("a 1\n", " a 1 \n\n", True),
        ("a ...\nb", "a 2\nb", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("...\na  1", "a 1", True),
        ("a...", "a\nb", False),
        ("a.c", "abc", False),
        ("a\n", "a\nb\n", False),
    ],
)
def test_outputs_are_compared(expected: str, printed: str, result: bool) -> None:
    assert is_output(expected, printed) == result

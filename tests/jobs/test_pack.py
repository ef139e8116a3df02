"""The pack job as a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from virnucpro.data import GreedyPacker
from virnucpro.files.plan_file import read_summary
from virnucpro.jobs.pack import pack_files


def test_the_summary_is_that_of_the_plan_file(tmp_path: Path) -> None:
    path, plan = tmp_path / "a.fa", tmp_path / "plan.parquet"
    path.write_text(">a\nMKTAY\n>b\nMK\n>a\nM*\n")
    stages = []

    def progress(stage: str) -> Any:
        stages.append(stage)
        return lambda _: None

    summary = pack_files([path], plan, GreedyPacker(6), overlong="drop", progress=progress)
    assert summary == read_summary(plan)
    assert (summary.totals.dropped, summary.totals.duplicate_ids) == (1, 1)
    assert stages == ["Reading", "Packing", "Writing"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlong": "cut"}, r"^overlong must be 'truncate', 'error' or 'drop' \(got 'cut'\)$"),
        ({"duplicates": "drop"}, r"^duplicates must be 'report' or 'error' \(got 'drop'\)$"),
    ],
)
def test_arguments_are_checked_before_any_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pack_files(["missing.fa"], tmp_path / "plan.parquet", GreedyPacker(6), **options)

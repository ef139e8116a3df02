"""Whoever loses residues is told so, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fasta import fasta

from virnucpro.data import GreedyPacker, pack_files

KEEPS = "(overlong='split' keeps all residues)"


@pytest.mark.parametrize(
    ("budget", "options", "messages"),
    [
        (4096, {}, ["47.82 % of the residues are lost (978 of 2,045): sequences with more than "
         f"1,022 residues are truncated {KEEPS}"]),
        (500, {}, ["73.45 % of the residues are lost (1,502 of 2,045): sequences with more than "
         "the 498 residues that a budget of 500 tokens per batch leaves room for are truncated "
         f"{KEEPS}"]),
        (4096, {"overlong": "drop"}, ["97.80 % of the residues are lost (2,000 of 2,045): "
         f"sequences with more than 1,022 residues are dropped {KEEPS}"]),
        (4096, {"overlong": "split"}, []),
        (4096, {"max_sequence_length": 2000}, []),
    ],
)  # fmt: skip
def test_one_warning(
    budget: int,
    options: dict[str, Any],
    messages: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a.fa").write_bytes(fasta([("a", "MKTAY" * 400), ("b", "MKTAY" * 9)]))
    pack_files(tmp_path / "a.fa", tmp_path / "plan.parquet", GreedyPacker(budget, **options))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == messages

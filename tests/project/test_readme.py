"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run
from models import huggingface_tokenizer, tiny_esm2

ROOT = Path(__file__).parents[2]


def test_each_extra_is_documented() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    _, _, table = project.partition("[project.optional-dependencies]\n")
    extras = set(re.findall(r"^(\w+) = \[", table.partition("\n[")[0], re.MULTILINE))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, install = text.partition("## Install\n")
    commands = re.findall(r"^pip install '\.\[(.*?)\]'", install.partition("\n##")[0], re.MULTILINE)
    assert {extra for names in commands for extra in names.split(",")} == extras


@pytest.mark.usefixtures("local_ray")
def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    # What the README takes for granted.
    Path("examples").symlink_to(ROOT / "examples")
    checkpoint = tmp_path / "facebook/esm2_t6_8M_UR50D"
    tiny_esm2().save_pretrained(checkpoint)
    huggingface_tokenizer(checkpoint).save_pretrained(checkpoint)
    pq.write_table(pa.table({"length": [30, 2000, 500]}), "lengths.parquet")
    assert run("pack", "examples/proteins.fasta", "-o", "plan.parquet").returncode == 0
    names: dict[str, Any] = {"__path__": []}
    exec("\n".join(blocks), names)
    whole = names["packer"].assign_batches(names["lengths"])
    np.testing.assert_array_equal(np.concatenate(names["batches"]), whole)
    assert names["packed"].to_pandas()["batch"].tolist() == [0, 0, 0]
    assert len(names["embeddings"]) == len(names["sequence_ids"]) > 0

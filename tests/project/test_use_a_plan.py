"""The page on plans runs as it stands there, on the example or on real proteins."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from models import huggingface_tokenizer, tiny_esm2
from transformers import EsmModel

from virnucpro.files.fasta import read_fasta

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("VIRNUCPRO_REAL_DATA")
REAL = ("ecoli_k12.faa.gz", "uniprot_viruses.faa.gz")


@pytest.mark.parametrize(
    "is_real",
    [
        False,
        pytest.param(
            True,
            marks=[
                pytest.mark.long,
                pytest.mark.skipif(FOLDER is None, reason="VIRNUCPRO_REAL_DATA is not set"),
            ],
        ),
    ],
)
def test_the_page_on_plans_runs(
    is_real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs/how-to/use-a-plan.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = ("proteins.fasta.gz", "more.fasta.gz")
    if is_real:
        for name, real in zip(names, REAL, strict=True):
            shutil.copy(Path(FOLDER or "", real), name)
    else:
        example = (ROOT / "examples/proteins.fasta").read_bytes()
        Path(names[0]).write_bytes(gzip.compress(example))
        Path(names[1]).write_bytes(gzip.compress(b">one\nMKTAYIAK\n>two\n" + b"MKV" * 700 + b"\n"))
    checkpoint = tmp_path / "facebook/esm2_t6_8M_UR50D"
    # Thousands of proteins take minutes with more.
    config = tiny_esm2().config
    config.num_hidden_layers, config.num_attention_heads, config.hidden_size = 1, 1, 8
    model = EsmModel(config, add_pooling_layer=False)
    model.save_pretrained(checkpoint)
    huggingface_tokenizer(checkpoint).save_pretrained(checkpoint)
    found: dict[str, Any] = {}
    exec("\n".join(blocks), found)
    ids = [identifier for name in names for identifier, _ in read_fasta(name)]
    assert found["embeddings"].keys() == found["same"].keys() == set(range(len(ids)))
    assert all(
        torch.equal(embedding, found["same"][name])
        for name, embedding in found["embeddings"].items()
    )
    assert found["summary"].totals.read == len(ids)
    split = set(found["frame"]["row"][found["frame"]["length"] > 1022])
    assert split == set(found["dropped"]["row"])
    assert split
    rows = Counter(found["fragments"].rows.tolist())
    assert rows.keys() == set(range(len(ids)))
    assert {row for row, number in rows.items() if number > 1} == split
    record = found["record"]
    assert len(record["sequence"]) == record["stop"] - record["start"]
    plan, packed = found["plan"], found["packed"]
    assert sum(len(batch) for batch in packed) == plan.num_sequences
    for batch in packed:
        assert sum(len(record["input_ids"]) for record in batch) <= 1024
        for record in batch:
            start, stop = record["start"], record["stop"]
            assert record["input_ids"] == record["labels"] == list(range(start, stop))
    for batch in found["loader"]:
        assert batch["input_ids"].shape == batch["labels"].shape
        assert batch["cu_seq_lens_q"][-1] == batch["input_ids"].numel() <= 1024
    assert found["with_empty"].dropped.tolist() == [1]
    assert found["plan_of_sources"].group_offsets.tolist() == [0, 1, 2]
    assert [rows.tolist() for rows in found["plan_of_sources"]] == [[3, 1], [0, 2]]
    assert [rows.tolist() for rows in found["in_order"]] == [[0, 1], [2], [3]]
    both = found["both"]
    assert {record["row"] for batch in range(len(both)) for record in both[batch]} == set(range(5))
    assert [record["row"] for record in both[len(plan)]] == [3, 4]

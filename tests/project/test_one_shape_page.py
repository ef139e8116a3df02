"""The page on batches of one shape runs as it stands there, on the example or on real proteins."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models import huggingface_tokenizer, tiny_esm2
from transformers import EsmModel

from virnucpro.files.fasta import read_fasta

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("VIRNUCPRO_REAL_DATA")


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
def test_the_page_on_one_shape_runs(
    is_real: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = (ROOT / "docs/how-to/one-shape.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    if is_real:
        with gzip.open(Path(FOLDER or "", "uniprot_viruses.faa.gz")) as file:
            Path("proteins.fasta").write_bytes(file.read())
    else:
        shutil.copy(ROOT / "examples/proteins.fasta", "proteins.fasta")
    checkpoint = tmp_path / "facebook/esm2_t6_8M_UR50D"
    config = tiny_esm2().config
    config.num_hidden_layers, config.num_attention_heads, config.hidden_size = 1, 1, 8
    EsmModel(config, add_pooling_layer=False).save_pretrained(checkpoint)
    huggingface_tokenizer(checkpoint).save_pretrained(checkpoint)
    found: dict[str, Any] = {}
    exec("\n".join(blocks), found)
    if not is_real:
        (warning,) = re.findall(r"# WARNING: ((?:.*\n#)*.*)", text)
        messages = [record.getMessage() for record in caplog.records]
        assert re.sub(r"\s*\n# ", " ", warning) in messages
    shapes = {
        (len(batch["input_ids"]), len(batch["cu_seqlens"]), batch["max_seqlen"])
        for batch in found["batches"]
    }
    (shape,) = shapes
    assert shape[0] == found["plan"].shape.tokens == 4096
    assert found["captured"].num_plain_calls == 0
    embeddings = found["embeddings"]
    assert embeddings.keys() == {identifier for identifier, _ in read_fasta("proteins.fasta")}
    assert all(torch.isfinite(embedding).all() for embedding in embeddings.values())

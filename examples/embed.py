"""Embed the proteins of FASTA files: one vector per protein, in Parquet, in order of batches.

    python examples/embed.py proteins.fasta -o embeddings.parquet --model esm2_folder

--model names the folder of a checkpoint of ESM-1b, ESM-2 or ESM C in the format of Hugging Face
transformers. The script checks that packing does not change the model's output. Without --model, it
uses a tiny model with random weights. Requires transformers and pyarrow besides virnucpro[torch].
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer, EsmConfig, EsmModel, EsmTokenizer

from virnucpro.data import (
    SequenceDataset,
    VarlenCollator,
    check_packed,
    create_async_dataloader,
    model_inputs,
    packed_sdpa,  # noqa: F401  (registers "packed_sdpa")
    unpack,
)

VOCABULARY = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <mask>"


def load(folder: Path | None) -> tuple[Any, Any]:
    """Return the tokenizer and the model in a folder, or a tiny model, ready to run."""
    if folder is None:
        tokenizer, model = make_tiny()
    elif not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder")
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder)
    model.set_attn_implementation("packed_sdpa")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Varlen kernels require half precision.
    model.to(device, torch.bfloat16 if device == "cuda" else torch.float32).eval()
    check_packed(model, tokenizer)
    return tokenizer, model


def make_tiny() -> tuple[Any, Any]:
    """Return ESM-2's tokenizer and a tiny model with random weights."""
    tokens = VOCABULARY.split()
    with TemporaryDirectory() as temporary:
        path = Path(temporary, "vocab.txt")
        path.write_text("\n".join(tokens))
        tokenizer = EsmTokenizer(str(path))
    config = EsmConfig(
        vocab_size=len(tokens),
        pad_token_id=tokens.index("<pad>"),
        mask_token_id=tokens.index("<mask>"),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        position_embedding_type="rotary",
    )
    torch.manual_seed(0)
    return tokenizer, EsmModel(config, add_pooling_layer=False)


@torch.inference_mode()
def embed(model: Any, batch: dict[str, Any]) -> tuple[list[Any], NDArray[np.float32]]:
    """Return the IDs of the n sequences of a batch and their vectors, float32 [n, hidden]."""
    inputs = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in model_inputs(batch, model).items()
    }
    states = model(**inputs).last_hidden_state
    unpacked = unpack(states, batch)
    return unpacked.sequence_ids, unpacked.embeddings.float().cpu().numpy()


def main() -> None:
    """Read the options, embed the proteins and write the vectors."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("fasta", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="folder of a checkpoint")
    parser.add_argument("--max-tokens", type=int, help="tokens per batch")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()

    tokenizer, model = load(options.model)
    loader = create_async_dataloader(
        SequenceDataset(options.fasta),
        VarlenCollator(tokenizer),
        num_workers=options.workers,
        token_budget=options.max_tokens,
    )
    width = model.config.hidden_size
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), width))])
    batches = []
    for batch in loader:
        sequence_ids, vectors = embed(model, batch)
        columns = [
            pa.array(sequence_ids, pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width),
        ]
        batches.append(pa.record_batch(columns, schema=schema))
    pq.write_table(pa.Table.from_batches(batches, schema), options.output)


if __name__ == "__main__":
    main()

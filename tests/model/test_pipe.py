"""From the bytes of a file to what a model gives: what stands in the file, and what was counted."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ESM2, fair_esm_converter, huggingface_tokenizer, tiny_esm2
from torch.utils.data import DataLoader

import virnucpro.model.attention  # noqa: F401  (registers packed_sdpa)
from virnucpro.data import (
    GreedyPacker,
    PackedFastaDataset,
    SequenceDataset,
    VarlenCollator,
    check_packed,
    create_async_dataloader,
    model_inputs,
    unpack,
)
from virnucpro.files.fasta import read_fasta
from virnucpro.files.sequences import read_files


def tokens_of(batch: dict[str, Any]) -> dict[str, list[int]]:
    parts = batch["input_ids"].split_with_sizes(batch["cu_seqlens"].diff().tolist())
    return dict(zip(batch["sequence_ids"], (part.tolist() for part in parts), strict=True))


@pytest.mark.skipif("VIRNUCPRO_REAL_DATA" not in os.environ, reason="needs VIRNUCPRO_REAL_DATA")
@pytest.mark.parametrize("name", ["uniprot_viruses", "ecoli_k12"])
def test_the_tokens_of_real_proteins_are_those_that_the_plan_counted(name: str) -> None:
    path = Path(os.environ["VIRNUCPRO_REAL_DATA"], f"{name}.faa.gz")
    sequences = read_files([str(path)])
    plan = GreedyPacker(4096).pack_lengths(sequences.lengths, sequences.ids)
    collate = VarlenCollator(fair_esm_converter(), unknown="ignore")
    batches: DataLoader[Any] = DataLoader(
        PackedFastaDataset(path, plan),
        batch_size=None,
        collate_fn=collate,
    )
    letter = {token: number for number, token in enumerate(ESM2)}
    unknown = letter["<unk>"]
    records = list(read_fasta(path))
    rows: list[int] = []
    for tokens, batch in zip(plan.batch_tokens.tolist(), batches, strict=True):
        assert len(batch["input_ids"]) == tokens
        found = batch["input_ids"].split_with_sizes(batch["cu_seqlens"].diff().tolist())
        for row, part in zip(batch["row"], found, strict=True):
            residues = [letter.get(residue, unknown) for residue in records[row][1][:1022]]
            assert part.tolist() == [0, *residues, 2]
        rows += batch["row"]
    assert sorted(rows) == list(range(len(records)))


ODD = b"""\
> soft  masked
mktayiakqr
>other
llgefwyvhh
>split
MKT AYI
\tAKQR

>stop
MKTAYIAKQR*
>two
M
W
"""


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_model_receives_the_residues_of_the_file(tmp_path: Path, compress: Any) -> None:
    path = tmp_path / "odd.fa"
    path.write_bytes(compress(ODD))
    (tmp_path / "odd.fa.fai").write_text("soft\t3\t0\t3\t4\n")
    tokenizer = huggingface_tokenizer(tmp_path)
    model = tiny_esm2()
    model.set_attn_implementation("packed_sdpa")
    check_packed(model, tokenizer)
    expected = {
        **dict.fromkeys(("soft", "split", "stop"), "MKTAYIAKQR"),
        "other": "LLGEFWYVHH",
        "two": "MW",
    }
    plan = GreedyPacker(30).pack_lengths([10, 10, 10, 10, 2])
    packed: DataLoader[Any] = DataLoader(
        PackedFastaDataset(path, plan),
        batch_size=None,
        collate_fn=VarlenCollator(tokenizer, 30, unknown="error"),
    )
    streamed = create_async_dataloader(
        SequenceDataset(path), VarlenCollator(tokenizer, 30, unknown="error"), num_workers=0
    )
    for loader in (packed, streamed):
        tokens: dict[str, list[int]] = {}
        means: dict[str, torch.Tensor] = {}
        for batch in loader:
            tokens |= tokens_of(batch)
            with torch.no_grad():
                states = model(**model_inputs(batch, model)).last_hidden_state
            means |= dict(
                zip(
                    batch["sequence_ids"],
                    unpack(states, batch).embeddings,
                    strict=True,
                )
            )
        assert tokens == {name: tokenizer.encode(text) for name, text in expected.items()}
        assert torch.allclose(means["soft"], means["stop"], atol=1e-5)
        assert torch.allclose(means["soft"], means["split"], atol=1e-5)
        assert not torch.allclose(means["soft"], means["other"], atol=1e-2)


def test_a_limit_or_tokenizer_that_the_plan_did_not_know_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_text(">long\n" + "MKTAYIAKQR" * 200 + "\n>short\nMK\n")
    plan = GreedyPacker(4096, 3000).pack_lengths([2000, 2])
    dataset = PackedFastaDataset(path, plan)
    collate = VarlenCollator(fair_esm_converter())
    with pytest.raises(ValueError, match=r"record 'long' has 1,024 tokens.* counted 2002"):
        collate(dataset[0])
    whole = VarlenCollator(fair_esm_converter(), max_sequence_length=3000)
    assert len(whole(dataset[0])["input_ids"]) == 2006

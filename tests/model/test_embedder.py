"""`Embedder`: batches that fail, checkpoints that lack something."""

from __future__ import annotations

import json
import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import SUPPORTED
from checkpoints import OneByOne, save_checkpoint
from models import ESM2, byte_pairs, proteins, tiny_esm2, tiny_model
from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from virnucpro.data import Embedder, GreedyPacker
from virnucpro.model.ahead import make_ahead
from virnucpro.model.checkpoint import load_checkpoint

RECORDS = proteins(40)
BATCHES = GreedyPacker(300).pack_sequences(RECORDS)


def fail(
    embedder: Embedder, when: Any, error: type[Exception] = RuntimeError, message: str = "no luck"
) -> list[int]:
    """Let the model fail when ``when(number of tokens, tokens)``; return the sizes of all runs."""
    forward, sizes = embedder.model.forward, []

    def run(input_ids: torch.Tensor, **arguments: Any) -> Any:
        sizes.append(input_ids.shape[1])
        if when(input_ids.shape[1], input_ids[0].tolist()):
            raise error(message)
        return forward(input_ids, **arguments)

    embedder.model.forward = run
    return sizes


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory"),
        (MemoryError, ""),
        (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory(
    checkpoint: Path,
    caplog: pytest.LogCaptureFixture,
    error: type[Exception],
    message: str,
) -> None:
    """The budget is lowered once, and the results are the same."""
    embedder = Embedder(checkpoint, 300)
    expected = [embedder.embed(batch) for batch in BATCHES]
    sizes = fail(embedder, lambda size, _: size > 160, error, message)
    with caplog.at_level(logging.WARNING, "virnucpro.model.embedder"):
        found = [each.sums for each in embedder.run(BATCHES)]
    lengths = [[len(record["sequence"]) for record in batch] for batch in BATCHES]
    for sums, some, wanted in zip(found, lengths, expected, strict=True):
        np.testing.assert_allclose(sums / np.array(some)[:, None], wanted, atol=1e-5)
    assert len(caplog.records) == 1
    assert "out of memory at" in caplog.text
    assert sum(size > 160 for size in sizes) == 1


def test_sequences_that_fail(checkpoint: Path) -> None:
    """Only those that fail alone have no result, and the reason is told."""
    embedder = Embedder(checkpoint, 300)
    letter = embedder.checkpoint.tokenizer.convert_tokens_to_ids("-")
    expected = [embedder.embed(batch) for batch in BATCHES]
    fail(embedder, lambda _, tokens: (letter, letter) in pairwise(tokens))
    wrong = 0
    for batch, pooled, vectors in zip(
        BATCHES, embedder.run(BATCHES, states="float32"), expected, strict=True
    ):
        for number, record in enumerate(batch):
            has_failed = "--" in record["sequence"]
            wrong += has_failed
            assert (pooled.failed.get(number) == "no luck") == has_failed
            assert np.isnan(pooled.sums[number]).all() == has_failed
            states = pooled.states[number]
            assert (states is None) == has_failed
            if states is not None:
                assert len(states) == len(record["sequence"])
                np.testing.assert_allclose(states.mean(axis=0), vectors[number], atol=1e-5)
    assert 0 < wrong < len(RECORDS)


def test_values_that_are_not_finite(checkpoint: Path) -> None:
    embedder = Embedder(checkpoint, 300)
    token = embedder.checkpoint.tokenizer.convert_tokens_to_ids("B")
    with torch.no_grad():
        embedder.model.get_input_embeddings().weight[token] = torch.nan
    [pooled] = embedder.run([BATCHES[0]], states="float16")
    expected = {n for n, record in enumerate(BATCHES[0]) if "B" in record["sequence"]}
    assert set(pooled.failed) == expected
    assert set(pooled.failed.values()) == {"its states are not finite"}
    with pytest.raises(ValueError, match=r"'s\d+' has no embedding: its states are not finite"):
        embedder.embed(BATCHES[0])


def test_a_model_that_always_fails(checkpoint: Path) -> None:
    """A batch without any result ends the run if nothing else has one either."""
    embedder = Embedder(checkpoint, 300)
    fail(embedder, lambda *_: True)
    with pytest.raises(ValueError, match="the model fails for every sequence: no luck"):
        next(embedder.run(BATCHES))
    with pytest.raises(ValueError, match="the model fails for every sequence: no luck"):
        embedder.embed(BATCHES[0])


def test_batches_that_all_fail(checkpoint: Path) -> None:
    """Any number of batches may have no result, as long as the model has some for others."""
    embedder = Embedder(checkpoint, 300)
    fail(embedder, lambda size, _: size > 3)
    for batch, pooled in zip(BATCHES, embedder.run(BATCHES), strict=True):
        lengths = [len(record["sequence"]) for record in batch]
        assert set(pooled.failed) == {place for place, length in enumerate(lengths) if length > 1}


def test_embed(checkpoint: Path) -> None:
    alone = OneByOne(checkpoint)
    embedder = Embedder(checkpoint, 5000, max_sequence_length=50)
    assert (embedder.width, embedder.special_tokens, embedder.dtype) == (32, 2, "float32")
    records = [*RECORDS, {"id": "empty", "sequence": ""}, {"id": "mask", "sequence": "M<mask>K"}]
    records.append({"id": "weights", "sequence": "MK", "weights": [0.5, 0.5]})
    found = embedder.embed(records)
    for vector, record in zip(found, records, strict=True):
        if record["sequence"]:
            expected = alone.states(record["sequence"][:50]).mean(axis=0)
            np.testing.assert_allclose(vector, expected, atol=1e-5)
        else:
            assert np.isnan(vector).all()
    assert embedder.embed([]).shape == (0, 32)


@pytest.mark.parametrize(
    "name", ["albert", "bert", "electra", "esm", "esmc", "gpt2", "llama", "nomic_bert", "roberta"]
)
def test_architectures(tmp_path: Path, name: str) -> None:
    """With learned and rotary positions, counted from 0 and from the padding; decoders too."""
    folder = save_checkpoint(tmp_path / name, tiny_model(name, **SUPPORTED.get(name, {})))
    alone, embedder = OneByOne(folder), Embedder(folder, 5000)
    limit = embedder.max_sequence_length
    for vector, record in zip(embedder.embed(RECORDS), RECORDS, strict=True):
        expected = alone.states(record["sequence"][:limit]).mean(axis=0)
        np.testing.assert_allclose(vector, expected, atol=2e-5)


def test_half_precision(checkpoint: Path) -> None:
    expected = Embedder(checkpoint, 5000).embed(RECORDS)
    found = Embedder(checkpoint, 5000, dtype="bfloat16").embed(RECORDS)
    assert found.dtype == np.float32
    assert 0 < abs(found - expected).max() < 0.1


def test_hash(tmp_path: Path, checkpoint: Path) -> None:
    """It is that of what the model computes, however that is stored."""
    first = load_checkpoint(checkpoint).sha256
    assert load_checkpoint(checkpoint).sha256 == first
    again = save_checkpoint(tmp_path / "again")
    assert load_checkpoint(again).sha256 == first
    config = json.loads((again / "config.json").read_text())
    (again / "config.json").write_text(json.dumps({**config, "transformers_version": "4.0.0"}))
    assert load_checkpoint(again).sha256 == first
    (again / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert load_checkpoint(again).sha256 != first
    model = tiny_esm2()
    with torch.no_grad():
        model.encoder.layer[1].attention.self.key.bias[3] += 1e-6
    assert load_checkpoint(save_checkpoint(tmp_path / "other", model)).sha256 != first
    swapped = save_checkpoint(tmp_path / "swapped")
    lines = (swapped / "vocab.txt").read_text().split("\n")
    lines[4], lines[5] = lines[5], lines[4]
    (swapped / "vocab.txt").write_text("\n".join(lines))
    assert load_checkpoint(swapped).sha256 != first


def test_hash_of_normalizers(tmp_path: Path) -> None:
    """What letters become counts, wherever the tokenizer does it."""
    folder = save_checkpoint(tmp_path / "tiny")
    for path in folder.glob("*token*"):
        path.unlink()
    vocabulary = {token: number for number, token in enumerate(ESM2)}
    hashes = []
    for normalizer in (normalizers.Sequence([]), normalizers.Replace("L", "A")):
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
        tokenizer.normalizer = normalizer
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", mask_token="<mask>"
        )
        wrapped.save_pretrained(folder)
        hashes.append(load_checkpoint(folder).sha256)
    assert hashes[0] != hashes[1]


def test_weights_that_are_missing(tmp_path: Path) -> None:
    """They would be random; those of a pooler are not used."""
    from safetensors.torch import load_file, save_file

    folder = save_checkpoint(tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    assert not any("pooler" in name for name in weights)
    del weights["encoder.layer.2.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"does not have 1 of the weights of EsmModel.*layer\.2"):
        Embedder(folder)
    with_head = save_checkpoint(
        tmp_path / "head",
        tiny_model("esm", "AutoModelForMaskedLM", position_embedding_type="rotary"),
    )
    assert np.isfinite(Embedder(with_head).embed(RECORDS[:3])).all()


def test_weights_of_another_shape(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
    with pytest.raises(
        ValueError, match=r"does not have 9 of the weights .*encoder\.layer\.0\.int"
    ):
        Embedder(folder)


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("no/such/folder", "./esm2", str(tmp_path / "missing"), "a\\b", ".."):
        if not Path(name).is_dir():
            with pytest.raises(FileNotFoundError, match="no such folder of a model"):
                Embedder(name)
    with pytest.raises(ValueError, match="cannot be loaded as a model with its tokenizer"):
        Embedder(tmp_path)
    folder = save_checkpoint(tmp_path / "tiny")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="tiny: cannot be loaded as a model"):
        Embedder(folder)


def test_a_model_that_does_not_fit(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    with pytest.raises(MemoryError, match="tiny: the model does not fit on cpu"):
        Embedder(checkpoint)


def test_tokenizers_with_longer_tokens(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "tiny")
    for path in folder.glob("*token*"):
        path.unlink()
    byte_pairs().save_pretrained(folder)
    with pytest.raises(ValueError, match="must have one token per residue \\(such as 'MK'\\)"):
        Embedder(folder)


def test_models_that_cannot_be_packed(tmp_path: Path) -> None:
    folder = save_checkpoint(
        tmp_path / "window",
        tiny_model("modernbert", global_attn_every_n_layers=3, local_attention=4),
    )
    with pytest.raises(ValueError, match="window: "):
        Embedder(folder)


def test_make_ahead() -> None:
    """Errors are raised in their place, and nothing more is made after the iterator is closed."""
    made = []

    def items() -> Any:
        for number in range(100):
            made.append(number)
            if number == 7:
                raise ValueError("seven")
            yield number

    found: list[int] = []
    with pytest.raises(ValueError, match="seven"):
        found.extend(make_ahead(items(), 3))
    assert found == list(range(7))
    ahead = make_ahead(items(), 3)
    assert [next(ahead), next(ahead)] == [0, 1]
    ahead.close()
    assert made[-1] <= 4

"""DataLoaders of packed batches: what is in them, and that loader and collator agree."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fasta import fasta
from models import (
    AMINO_ACIDS,
    Records,
    ShowsEnvironment,
    byte_pairs,
    fair_esm_converter,
    letter_pairs,
    unigrams,
    word_pieces,
)
from streams import pack
from torch.utils.data import DataLoader

from virnucpro.data import (
    GreedyPacker,
    Limits,
    SequenceDataset,
    VarlenCollator,
    create_async_dataloader,
)
from virnucpro.text import percent

Record = dict[str, Any]
REAL = Path(os.environ.get("VIRNUCPRO_REAL_DATA", ""), "uniprot_viruses.faa.gz")
NUM_RECORDS = 97


def proteins(letters: str = AMINO_ACIDS, longest: int = 1300) -> list[Record]:
    """Records of which some are equally long, not in order of their IDs."""
    draw = random.Random(0)
    lengths = [draw.randrange(longest) for _ in range(NUM_RECORDS // 2)]
    return [
        {"id": f"s{7 * i % NUM_RECORDS}", "sequence": "".join(draw.choices(letters, k=length))}
        for i, length in enumerate([*lengths, *lengths, 5][:NUM_RECORDS])
    ]


def loader(records: list[Record], collate: VarlenCollator | None = None, **more: Any) -> Any:
    collate = collate or VarlenCollator(fair_esm_converter(), max_tokens_per_batch=2048)
    return create_async_dataloader(Records(records), collate, **{"num_workers": 0, **more})


def ids_of(batches: Any) -> list[list[str]]:
    return [batch["sequence_ids"] for batch in batches]


def equal(made: dict[str, Any], sent: dict[str, Any]) -> bool:
    """Whether two batches are the same, types included."""
    return made.keys() == sent.keys() and all(
        value.dtype == sent[name].dtype and value.equal(sent[name])
        if isinstance(value, torch.Tensor)
        else value == sent[name] and type(value) is type(sent[name])
        for name, value in made.items()
    )


def test_every_record_in_full_batches() -> None:
    records = proteins()
    limits = Limits(2048)
    sizes = [limits.tokens(len(record["sequence"])) for record in records]
    # Buffers of 40, 40 and 17 records.
    closed, last = pack(sizes, [record["id"] for record in records], limits, 40, 2)
    packed = [[records[row] for row in batch] for batch in closed + last]
    collate = VarlenCollator(fair_esm_converter(), max_tokens_per_batch=2048)
    batches = list(loader(records, buffer_size=40, max_open=2))
    assert len(batches) == len(packed) > 20
    assert all(map(equal, map(collate, packed), batches))
    assert sum(batch["num_sequences"] for batch in batches) == NUM_RECORDS


def test_ids_may_be_numbers() -> None:
    records = [{**record, "id": int(record["id"][1:])} for record in proteins()]
    expected = GreedyPacker(2048).pack_sequences(records)
    assert ids_of(loader(records)) == [[record["id"] for record in batch] for batch in expected]


@pytest.mark.parametrize("make", [byte_pairs, letter_pairs, word_pieces, unigrams])
def test_batches_are_packed_by_the_tokenizers_tokens(make: Callable[[], Any]) -> None:
    tokenizer = make()
    records = [
        {**record, "sequence": record["sequence"] + "MKTA" * (i % 30)}
        for i, record in enumerate(proteins("MKTAY ", 200))
    ]
    collate = VarlenCollator(tokenizer, 256, 100, unknown="ignore")
    tokens = {
        record["id"]: tokenizer(record["sequence"], truncation=True, max_length=102)["input_ids"]
        for record in records
    }
    batches = list(loader(records, collate))
    for batch in batches:
        expected = [token for name in batch["sequence_ids"] for token in tokens[name]]
        assert batch["input_ids"].tolist() == expected
        assert batch["token_budget"] == 256
    plan = GreedyPacker(256).pack_lengths(
        [len(tokens[record["id"]]) - 2 for record in records], [r["id"] for r in records]
    )
    assert ids_of(batches) == [[records[row]["id"] for row in rows] for rows in plan]


def test_words_are_packed_as_one_token() -> None:
    records = [{"id": f"s{i}", "sequence": "<mask>" * 8} for i in range(10)]
    batches = list(loader(records, VarlenCollator(fair_esm_converter(), 100)))
    assert [len(batch["input_ids"]) for batch in batches] == [100]


def test_each_record_is_tokenized_once() -> None:
    collate = VarlenCollator(byte_pairs(), 512)
    tokenized: list[str] = []
    encode = collate.vocabulary.encode

    def count(sequences: list[str]) -> list[list[int]]:
        tokenized.extend(sequences)
        return encode(sequences)

    collate.vocabulary = dataclasses.replace(collate.vocabulary, encode=count)
    records = proteins(longest=300)
    for _ in loader(records, collate, buffer_size=40):
        pass
    assert tokenized == [record["sequence"] for record in records]


@pytest.mark.process
def test_workers_yield_the_same_records_each_epoch(tmp_path: Path) -> None:
    path = tmp_path / "proteins.fa"
    path.write_bytes(fasta([(r["id"], r["sequence"] + "M") for r in proteins()]))
    collate = VarlenCollator(fair_esm_converter(), max_tokens_per_batch=2048)
    spawned = create_async_dataloader(SequenceDataset(path), collate, num_workers=2, timeout=100)
    for _ in range(2):
        names = [name for names in ids_of(spawned) for name in names]
        assert sorted(names) == sorted(record["id"] for record in proteins())


@pytest.mark.process
def test_workers_send_what_would_be_made_here() -> None:
    records: list[Record] = [{**record, "row": i} for i, record in enumerate(proteins())]
    records[3] |= {"sequence": "MJ*", "labels": [0, 1, 2]}
    records[50] |= {"truncated": True, "file": "x.fa"}
    here = list(loader(records, buffer_size=40))
    assert sum("labels" in batch for batch in here) < len(here)
    assert sum(batch["num_unknown"] for batch in here) == 2
    sent = list(loader(records, buffer_size=40, num_workers=1, timeout=100))
    assert len(here) == len(sent)
    assert all(map(equal, here, sent))
    sent[0]["input_ids"] += 1


def test_truncated_and_unknown_residues_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    collate = VarlenCollator(fair_esm_converter(), 2048)
    records = [*proteins(), {"id": "t", "sequence": "MJ" * 600}]
    batches = list(loader(records, collate))
    num_truncated = sum(len(record["sequence"]) > 1022 for record in records)
    assert sum(int(batch["truncated"].sum()) for batch in batches) == num_truncated
    assert sum(batch["num_unknown"] for batch in batches) == collate.unknown_residues["J"] == 511
    assert collate.num_residues == sum(len(batch["input_ids"]) for batch in batches) - 2 * 98
    unknown, truncated = caplog.messages
    total = sum(len(record["sequence"]) for record in records)
    lost = sum(max(0, len(record["sequence"]) - 1022) for record in records)
    assert unknown.endswith("J (511); later ones are counted in each batch (num_unknown)")
    assert truncated == (
        f"{num_truncated} of 98 sequences exceed max_sequence_length (1022), truncating: "
        f"{lost:,} residues removed, {percent(lost / total)} of all"
    )
    list(loader(records, collate))
    assert len(caplog.messages) == 3


def test_records_are_checked() -> None:
    refuse = VarlenCollator(fair_esm_converter(), unknown="error")
    with pytest.raises(ValueError, match="record 'a': 'J' at position 1"):
        list(loader([{"id": "a", "sequence": "MJ"}], refuse))
    with pytest.raises(ValueError, match="record 'a' has 4 tokens, but its plan counted 9"):
        list(loader([{"id": "a", "sequence": "MK", "tokens": 9}]))
    with pytest.raises(ValueError, match="record 'a' has a key 'cu_seqlens'"):
        list(loader([{"id": "a", "sequence": "MK", "cu_seqlens": 9}]))
    with pytest.raises(TypeError, match="must be str like"):
        list(loader([{"id": "a", "sequence": "MK"}, {"id": 1, "sequence": "MK"}]))
    with pytest.raises(ValueError, match=r"records\[0\] has no 'sequence'"):
        list(loader([{"id": "a"}]))


def test_explicit_budget_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    records = proteins()

    def budget(collate: VarlenCollator, **more: Any) -> int:
        (budget,) = {batch["token_budget"] for batch in loader(records, collate, **more)}
        assert isinstance(budget, int)
        return budget

    given = VarlenCollator(fair_esm_converter(), max_tokens_per_batch=2048)
    default = VarlenCollator(fair_esm_converter())
    later = VarlenCollator(fair_esm_converter())
    later.max_tokens_per_batch = 4096
    assert budget(given) == 2048
    assert budget(given, token_budget=5000) == 5000
    assert budget(default) == 4096
    properties = type("Properties", (), {"total_memory": 16 * 2**30})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    more = {"pin_memory": False}
    assert budget(given, **more) == 2048
    assert budget(later, **more) == 4096
    assert budget(default, **more) == 16384
    assert budget(default, token_budget=3000, **more) == 3000
    assert (given.token_budget, default.token_budget) == (2048, None)
    # Batches of the loader fill it.
    longest = max(len(batch["input_ids"]) for batch in loader(records, default, **more))
    assert 0.9 * 16384 < longest <= 16384


def test_ranks_have_equally_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    found, num_residues = [], 0
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        collate = VarlenCollator(fair_esm_converter(), max_tokens_per_batch=2048)
        batches = list(loader(proteins(), collate, buffer_size=20, even=True))
        found.append(ids_of(batches))
        # Batches of other ranks are counted, but not tokenized.
        num_residues += collate.num_residues
        assert collate.num_residues == sum(batch["num_tokens"] for batch in batches) - 2 * sum(
            batch["num_sequences"] for batch in batches
        )
    assert len(set(map(len, found))) == 1
    names = [name for rank in found for batch in rank for name in batch]
    assert sorted(names) == sorted(record["id"] for record in proteins())
    assert num_residues == sum(min(1022, len(record["sequence"])) for record in proteins())


def test_ranks_with_a_gpu_need_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = type("Properties", (), {"total_memory": 16 * 2**30})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    collate = VarlenCollator(fair_esm_converter())
    with pytest.raises(ValueError, match="token_budget must be given if several ranks"):
        loader(proteins(), collate, even=True, pin_memory=False)
    for more in ({"token_budget": 4096, "even": True}, {"even": False}):
        assert ids_of(loader(proteins(), collate, pin_memory=False, **more))


def test_later_changes_of_the_collator_do_not_affect_the_loader() -> None:
    collate = VarlenCollator(fair_esm_converter(), 2048)
    before = loader(proteins(), collate)
    collate.max_sequence_length = 3
    collate.max_tokens_per_batch = 100
    assert ids_of(before) == ids_of(loader(proteins()))


def test_batch_size_caps_the_sequences() -> None:
    batches = list(loader(proteins(), batch_size=2))
    assert max(batch["num_sequences"] for batch in batches) == 2
    assert sum(batch["num_sequences"] for batch in batches) == NUM_RECORDS


@pytest.mark.process
def test_workers_see_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    collate = VarlenCollator(fair_esm_converter())
    (batch,) = create_async_dataloader(ShowsEnvironment(), collate, num_workers=1)
    assert batch["sequence_ids"] == ["''"]
    (batch,) = create_async_dataloader(ShowsEnvironment(), collate, num_workers=0)
    assert batch["sequence_ids"] == ["'0'"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": [{"id": "a"}]}, TypeError, "dataset must be an IterableDataset"),
        ({"collate_fn": list}, TypeError, "collate_fn must be a VarlenCollator"),
        ({"num_workers": -1}, ValueError, "num_workers must be at least 0"),
        ({"prefetch_factor": 0}, ValueError, "prefetch_factor must be at least 1"),
        ({"buffer_size": 0}, ValueError, "buffer_size must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"timeout": -1.0}, ValueError, "timeout must be at least 0"),
        ({"timeout": None}, TypeError, r"timeout must be a number \(got None\)"),
        ({"timeout": float("nan")}, ValueError, "timeout must be at least 0"),
        ({"token_budget": 2}, ValueError, "room for one residue"),
    ],
)
def test_bad_parameters(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {
        "dataset": ShowsEnvironment(),
        "collate_fn": VarlenCollator(fair_esm_converter()),
        "num_workers": 0,
    }
    with pytest.raises(error, match=message):
        create_async_dataloader(**{**given, **arguments})


@pytest.mark.process
@pytest.mark.skipif("VIRNUCPRO_REAL_DATA" not in os.environ, reason="VIRNUCPRO_REAL_DATA is unset")
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_efficiency_on_real_proteins(num_workers: int) -> None:
    collate = VarlenCollator(fair_esm_converter())
    packed: DataLoader[Any] = create_async_dataloader(
        SequenceDataset(REAL), collate, num_workers=num_workers, timeout=100
    )
    tokens = [len(batch["input_ids"]) for batch in packed]
    print(num_workers, len(tokens), sum(tokens) / (4096 * len(tokens)))
    assert sum(tokens) / (4096 * len(tokens)) >= 0.99

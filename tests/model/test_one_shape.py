"""Batches of one shape: padding that nothing sees, in one graph for all batches of a plan."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Records, fair_esm_converter, packing, tiny_esm2, tiny_model
from shaped import BUDGET, PROTEINS, batches, shapes, states_of
from torch import _dynamo
from torch.utils.data import DataLoader
from transformers.modeling_outputs import MaskedLMOutput

import virnucpro.model.attention  # noqa: F401 (registers packed_sdpa)
from virnucpro.data import (
    CapturedModel,
    GreedyPacker,
    PackedBatchSampler,
    PackedDataset,
    PackedFastaDataset,
    PackedPlanDataset,
    PackingPlan,
    SequenceDataset,
    VarlenCollator,
    create_async_dataloader,
    model_inputs,
    pack_files,
    unpack,
)
from virnucpro.model.batches import take_real
from virnucpro.model.kernels import attend_in_blocks, attend_one_by_one


@pytest.fixture(autouse=True)
def _reset() -> Iterator[None]:
    _dynamo.reset()
    yield
    _dynamo.reset()


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1).filter(any),
    slack=st.integers(0, 5),
    groups=st.sampled_from([1, 2]),
    is_causal=st.booleans(),
    scale=st.sampled_from([None, 0.3]),
)
@settings(deadline=None)
def test_attention_in_blocks_is_that_of_each_sequence(
    lengths: list[int], slack: int, groups: int, is_causal: bool, scale: float | None
) -> None:
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    num_tokens, longest = sum(lengths), max(lengths) + slack
    query = torch.randn(1, 4, num_tokens, 8, requires_grad=True)
    key, value = torch.randn(2, 1, 4 // groups, num_tokens, 8, requires_grad=True)
    expected = attend_one_by_one(query, key, value, bounds, 0.0, scale, is_causal)
    found = attend_in_blocks(query, key, value, (bounds, bounds), longest, 0.0, scale, is_causal)
    assert torch.allclose(found, expected, atol=1e-5)
    weights = torch.randn_like(found)
    gradients = (
        torch.autograd.grad((output * weights).sum(), (query, key, value))
        for output in (found, expected)
    )
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_attention_in_blocks_has_dropout() -> None:
    query = torch.ones(1, 2, 40, 4)
    bounds = torch.tensor([0, 40], dtype=torch.int32)
    found = attend_in_blocks(query, query, query, (bounds, bounds), 10, 0.5, None, False)
    assert not torch.allclose(found, query.transpose(1, 2))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_of_a_plan_have_one_shape(num_workers: int) -> None:
    lengths = [len(record["sequence"]) for record in PROTEINS]
    for limit in (None, 3):
        plan = GreedyPacker(BUDGET, max_sequences_per_batch=limit).pack_lengths(lengths)
        packed = PackedDataset(PROTEINS, plan)
        collate = VarlenCollator(fair_esm_converter(), pad_to_budget=True)
        loaders: tuple[Any, ...] = (
            DataLoader(packed, batch_size=None, collate_fn=collate, num_workers=num_workers),
            DataLoader(
                packed.records,
                batch_sampler=PackedBatchSampler(plan.reshuffle(1), shuffle=True),
                collate_fn=collate,
                num_workers=num_workers,
            ),
        )
        for loader in loaders:
            found = list(loader)
            assert {str(shapes(batch)) for batch in found} == {str(shapes(found[0]))}
            assert found[0]["input_ids"].shape == (BUDGET,)
            assert found[0]["max_seqlen"] == BUDGET
            # One entry for each sequence of the fullest batch, the end, and one piece of padding.
            assert found[0]["cu_seqlens"].shape == (plan.max_sequences + 2,)
            assert sum(batch["num_tokens"] for batch in found) == plan.total_tokens
            ids = [name for batch in found for name in batch["sequence_ids"]]
            assert sorted(ids) == sorted(record["id"] for record in PROTEINS)


def test_padding_is_sequences_of_its_own() -> None:
    """The same tokens with and without padding, then tokens for padding, at position 0."""
    collate = VarlenCollator(fair_esm_converter(), 100, 38, pad_to_budget=True, max_sequences=4)
    plain = VarlenCollator(fair_esm_converter(), 100, 38)
    records = [{"id": n, "sequence": "MKTAY", "labels": [1, 2, 3, 4, 5]} for n in range(2)]
    padded, batch = collate(records), plain(records)
    assert padded["num_tokens"] == batch["num_tokens"] == 14
    for name in ("input_ids", "position_ids", "labels"):
        assert padded[name][:14].equal(batch[name])
    assert padded["input_ids"][14:].unique().tolist() == [1]
    assert padded["labels"][14:].unique().tolist() == [-100]
    assert padded["cu_seqlens"].tolist() == [0, 7, 14, 54, 94, 100, 100, 100]
    assert padded["position_ids"][14:].tolist() == [0] * 86
    assert padded["max_seqlen"] == 40


def test_batches_that_do_not_fit_are_refused() -> None:
    lengths = [3] * 9 + [40]
    records = [{"id": n, "sequence": "M" * length} for n, length in enumerate(lengths)]
    plan = GreedyPacker(50).pack_lengths(lengths)
    packed = PackedDataset(records, plan)
    converter = fair_esm_converter()
    few = VarlenCollator(converter, 50, pad_to_budget=True, max_sequences=8)
    small = VarlenCollator(converter, 49, pad_to_budget=True)
    assert len(packed[0]) <= 2
    with pytest.raises(ValueError, match=r"^batches of the plan have up to 8 seq.* \(7\)$"):
        VarlenCollator(converter, 50, pad_to_budget=True, max_sequences=7)(packed[0])
    with pytest.raises(ValueError, match=r"up to 50 tokens, more than the budget of 49$"):
        small(packed[0])
    assert few(packed[0])["cu_seqlens"].shape == few(packed[1])["cu_seqlens"].shape
    with pytest.raises(ValueError, match="has 9 sequences, more than max_sequences"):
        few(records[:9])
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_sequences must be"):
            VarlenCollator(converter, max_sequences=wrong)


def test_the_loader_has_one_shape() -> None:
    collate = VarlenCollator(fair_esm_converter(), BUDGET, pad_to_budget=True)
    for limit in (None, 2):
        loader = create_async_dataloader(
            Records(PROTEINS), collate, num_workers=0, batch_size=limit, buffer_size=13
        )
        found = list(loader)
        assert {str(shapes(batch)) for batch in found} == {str(shapes(found[0]))}
        assert limit is None or max(batch["num_sequences"] for batch in found) == limit
        assert sum(batch["num_sequences"] for batch in found) == len(PROTEINS)


@pytest.mark.parametrize("multiple_of", [1, 8])
@pytest.mark.parametrize("model_type", ["esm", "bert", "roberta", "llama"])
def test_states_do_not_depend_on_padding(model_type: str, multiple_of: int) -> None:
    """Padded or not, compiled or not, captured or not: those of each sequence alone."""
    model = packing(tiny_esm2() if model_type == "esm" else tiny_model(model_type))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    graphs = CapturedModel(model, BUDGET, 30)
    alone: dict[str, torch.Tensor] = {}
    for record in PROTEINS:
        alone.update(states_of(model, VarlenCollator(fair_esm_converter())([record])))
    for padded, plain in zip(batches(True, multiple_of), batches(False, multiple_of), strict=True):
        assert (
            np.diff(plain["cu_seqlens"].numpy()[:: 2 if multiple_of > 1 else 1]) % multiple_of == 0
        ).all()
        found = [states_of(model, padded), states_of(model, plain)]
        if multiple_of == 1:
            found.append(states_of(compiled, padded))
        for batch in (padded, plain):
            real = graphs(batch)
            assert len(real) == batch["num_tokens"]
            unpacked = unpack(real, batch)
            found.append(dict(zip(unpacked.sequence_ids, unpacked.states, strict=True)))
        for states in found:
            for name, state in states.items():
                assert torch.allclose(state, alone[name], atol=1e-5), (model_type, name)
    assert graphs.num_plain_calls == 0


@pytest.mark.parametrize("model_type", ["esm", "llama"])
def test_a_model_is_one_graph_for_all_batches(model_type: str) -> None:
    """No break and no recompilation, by the count of what compiles."""
    model = packing(tiny_esm2() if model_type == "esm" else tiny_model(model_type))
    graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph

    found = batches()
    assert len({batch["num_sequences"] for batch in found}) == 3
    explained = cast(Any, _dynamo).explain(model)(**model_inputs(found[0], model))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    _dynamo.reset()
    compiled: Any = cast(Any, torch.compile)(model, backend=count, fullgraph=True)
    with torch.no_grad():
        for _ in range(math.ceil(100 / len(found))):
            for batch in found:
                compiled(**model_inputs(batch, model))
    assert graphs == 1


def test_training_does_not_see_padding() -> None:
    """Loss and gradients are those of the batch without padding, compiled or not."""
    model = packing(tiny_model("llama", "AutoModelForCausalLM"))
    records = [{**record, "labels": [5] * len(record["sequence"])} for record in PROTEINS[:20]]
    plain = VarlenCollator(fair_esm_converter())(records)
    padded = VarlenCollator(fair_esm_converter(), pad_to_budget=True)(records)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for each, batch in ((model, plain), (model, padded), (compiled, padded)):
        model.zero_grad()
        output: MaskedLMOutput = each(
            **model_inputs(batch, model), labels=batch["labels"][None], use_cache=False
        )
        assert output.loss is not None
        output.loss.backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        results.append((output.loss.detach(), gradients))
    for loss, gradients in results[1:]:
        assert torch.allclose(loss, results[0][0], atol=1e-6)
        assert torch.allclose(gradients, results[0][1], atol=1e-6)
        assert gradients.abs().max() > 0.01


@given(data=st.data())
@settings(deadline=None)
def test_unpack_leaves_out_padding(data: st.DataObject) -> None:
    """Compared with a loop over the sequences as they were given."""
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=8))
    multiple_of = data.draw(st.sampled_from([1, 2, 8]))
    slots = [-(-(length + 2) // multiple_of) * multiple_of for length in lengths]
    budget = data.draw(st.integers(max(8, *slots, sum(slots)), sum(slots) + 40))
    collate = VarlenCollator(
        fair_esm_converter(),
        budget,
        data.draw(st.integers(max(1, *lengths), 15)),
        pad_to_budget=data.draw(st.booleans()),
        max_sequences=8,
        multiple_of=multiple_of,
    )
    batch = collate([{"id": n, "sequence": "M" * length} for n, length in enumerate(lengths)])
    num_rows = budget - budget % multiple_of if collate.pad_to_budget else sum(slots)
    bounds = batch["cu_seqlens"].tolist()
    assert (bounds[0], bounds[-1], sorted(bounds)) == (0, num_rows, bounds)
    assert max(end - begin for begin, end in pairwise(bounds)) <= batch["max_seqlen"]
    states = torch.randn(num_rows, 3)
    expected, real = [], []
    begin = 0
    for length, slot in zip(lengths, slots, strict=True):
        assert batch["input_ids"][begin : begin + length + 2].tolist() == [0, *[20] * length, 2]
        assert batch["position_ids"][begin : begin + length + 2].tolist() == [*range(length + 2)]
        expected.append(states[begin + 1 : begin + 1 + length])
        real.append(states[begin : begin + length + 2])
        begin += slot
    assert take_real(states, batch).equal(torch.cat(real))
    for hidden in (states, states[None], torch.cat(real)):
        unpacked = unpack(hidden, batch)
        assert all(map(torch.equal, unpacked.states, expected))
        means = torch.stack([part.mean(0) for part in expected])
        assert torch.allclose(unpacked.embeddings, means, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_multiples_are_those_of_the_plan(tmp_path: Path, num_workers: int) -> None:
    """Through every data set, and with records of token counts that a plan has rounded."""
    fasta = tmp_path / "proteins.fasta"
    fasta.write_text("".join(f">{r['id']}\n{r['sequence']}\n" for r in PROTEINS))
    packer = GreedyPacker(BUDGET, multiple_of=8)
    pack_files(fasta, tmp_path / "plan.parquet", packer, sequences=True)
    plan = PackingPlan.load(tmp_path / "plan.parquet")
    collate = VarlenCollator(fair_esm_converter(), pad_to_budget=True)
    sets: list[Any] = [
        PackedFastaDataset(fasta, plan),
        PackedDataset(PROTEINS, plan),
        PackedPlanDataset(tmp_path / "plan.parquet"),
    ]
    for packed in sets:
        found = list(
            DataLoader(packed, batch_size=None, collate_fn=collate, num_workers=num_workers)
        )
        assert sum(batch["num_tokens"] for batch in found) == plan.total_tokens
        assert {batch["multiple_of"] for batch in found} == {8}
        assert {str(shapes(batch)) for batch in found} == {str(shapes(found[0]))}
        lengths = [
            n
            for batch in found
            for n in batch["cu_seqlens"][: 2 * batch["num_sequences"] + 1 : 2].diff().tolist()
        ]
        assert sorted(lengths) == sorted(plan.limits.tokens(len(r["sequence"])) for r in PROTEINS)
    loader = create_async_dataloader(
        Records(PROTEINS),
        VarlenCollator(fair_esm_converter(), BUDGET, multiple_of=8),
        num_workers=0,
    )
    assert all(len(batch["input_ids"]) % 8 == 0 for batch in loader)
    with pytest.raises(ValueError, match=r"its plan counted .* multiple_of=7\)$"):
        VarlenCollator(fair_esm_converter(), multiple_of=7)(PackedDataset(PROTEINS, plan)[0])


def test_states_of_another_number_of_tokens_are_refused() -> None:
    batch = batches()[-1]
    for number in (batch["num_tokens"] - 1, BUDGET + 1):
        with pytest.raises(ValueError, match=f"has {number} tokens, the batch has {BUDGET}$"):
            unpack(torch.zeros(number, 2), batch)


@pytest.mark.parametrize("model_type", ["esm", "llama"])
def test_nothing_waits_for_the_device(model_type: str) -> None:
    """On a device that has no values, whatever reads one raises an error."""
    model = packing(tiny_esm2() if model_type == "esm" else tiny_model(model_type)).to("meta")
    for pad_to_budget in (False, True):
        inputs = model_inputs(batches(pad_to_budget)[0], model)
        moved = {
            name: value.to("meta") if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }
        for longest in (moved["max_length_q"], None):
            output = model(**{**moved, "max_length_q": longest})
            assert output.last_hidden_state.shape == (*moved["input_ids"].shape, 32)


@pytest.mark.long
@pytest.mark.skipif("VIRNUCPRO_REAL_DATA" not in os.environ, reason="VIRNUCPRO_REAL_DATA is unset")
def test_real_proteins_have_one_shape() -> None:
    """All batches of a whole plan, and the states of every eighth protein, truncated ones too."""
    path = Path(os.environ["VIRNUCPRO_REAL_DATA"], "uniprot_viruses.faa.gz")
    records = list(SequenceDataset(path))
    plan = GreedyPacker(4096).pack_lengths([len(record["sequence"]) for record in records])
    model = packing(tiny_esm2())
    graphs = CapturedModel(model, *plan.shape)
    collate = VarlenCollator(fair_esm_converter(), pad_to_budget=True)
    alone = VarlenCollator(fair_esm_converter())
    seen: set[str] = set()
    ids: list[str] = []
    for batch in DataLoader(PackedDataset(records, plan), batch_size=None, collate_fn=collate):
        seen.add(str(shapes(batch)))
        ids += batch["sequence_ids"]
        unpacked = unpack(graphs(batch), batch)
        for row, state in list(zip(batch["row"], unpacked.states, strict=True))[::8]:
            (expected,) = states_of(model, alone([records[row]])).values()
            assert torch.allclose(state, expected, atol=1e-5)
    assert len(seen) == 1
    assert sorted(ids) == sorted(record["id"] for record in records)
    assert graphs.num_plain_calls == 0

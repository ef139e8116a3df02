"""Per-sequence results of packed states."""

from __future__ import annotations

import esm
import numpy as np
import pytest
import torch
from collated import records_of

from virnucpro.data import VarlenCollator, unpack


def test_unpack_leaves_out_special_tokens() -> None:
    lengths = [4, 2, 7, 3]
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    states = torch.randn(sum(lengths), 5, dtype=torch.float64)
    for hidden in (states, states[None]):
        unpacked = unpack(hidden, bounds, list("abcd"))
        assert unpacked.sequence_ids == list("abcd")
        for i, n in enumerate(lengths):
            expected = states[bounds[i] + 1 : bounds[i] + n - 1]
            assert unpacked.states[i].equal(expected)
            assert torch.allclose(unpacked.embeddings[i], expected.mean(0), equal_nan=True)
    assert unpacked.embeddings[1].isnan().all()
    half = unpack(states.half(), bounds, list("abcd"))
    assert (half.states[0].dtype, half.embeddings.dtype) == (torch.float16, torch.float32)


def test_unpack_without_an_eos() -> None:
    states = torch.arange(7.0)[:, None]
    unpacked = unpack(states, torch.tensor([0, 4, 7]), ["a", "b"], num_after=0)
    assert [part[:, 0].tolist() for part in unpacked.states] == [[1, 2, 3], [5, 6]]
    assert unpacked.embeddings[:, 0].tolist() == [2.0, 5.5]


def test_unpack_takes_a_batch_and_its_special_tokens() -> None:
    """ESM-1 has no EOS, ProtT5 no BOS: residues would be lost otherwise."""
    for vocabulary, num_special in (("ESM-1b", 2), ("ESM-1", 1)):
        converter = esm.data.Alphabet.from_architecture(vocabulary).get_batch_converter()
        batch = VarlenCollator(converter)(records_of(["MKT", "MK", "A"]))
        assert sum(batch["special_tokens"]) == num_special
        unpacked = unpack(torch.randn(len(batch["input_ids"]), 4), batch)
        assert [len(part) for part in unpacked.states] == [3, 2, 1]
        assert unpacked.sequence_ids == ["s0", "s1", "s2"]
    with pytest.raises(ValueError, match="sequence_ids must be given with boundaries"):
        unpack(torch.zeros(3, 2), torch.tensor([0, 3]))


def test_unpack_has_gradients() -> None:
    states = torch.randn(9, 3, requires_grad=True)
    unpack(states, torch.tensor([0, 4, 9]), ["a", "b"]).embeddings.sum().backward()  # type: ignore[no-untyped-call]
    share = [0, 1 / 2, 1 / 2, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0]
    assert states.grad is not None
    assert torch.allclose(states.grad, torch.tensor(share)[:, None].expand(9, 3))


@pytest.mark.parametrize(
    ("shape", "bounds", "ids", "message"),
    [
        ((2, 9, 3), [0, 9], "a", "hidden_states must be"),
        ((9, 3), [0, 4, 9], "a", r"one ID per sequence \(got 1 for 2 seq"),
        ((9, 3), [0, 8], "a", "increase from 0 to 9, the number of tokens"),
        ((0, 3), [0], "", "at least one sequence"),
        ((9, 3), [1, 9], "a", "increase from 0 to 9, the number of tokens"),
        ((9, 3), [0, 1, 9], "ab", "with 2 special tokens in each"),
    ],
)
def test_unpack_refuses(shape: tuple[int, ...], bounds: list[int], ids: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack(torch.zeros(shape), torch.tensor(bounds), list(ids))

"""The kernels that packed_sdpa calls, with the arguments of each release."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from models import (
    attend,
    tiny_esm2,
    with_config,
)
from varlen_signatures import SIGNATURES, by_definition, check, stand_in

from virnucpro.model import attention, kernels


def test_nothing_breaks_a_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a varlen kernel, as on a GPU; elsewhere boundaries are read."""

    def varlen_attn(
        query: torch.Tensor, *_: Any, scale: float, enable_gqa: bool = False
    ) -> torch.Tensor:
        assert enable_gqa
        return query * scale

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    layer = with_config(layer_types=["full_attention"], rope_parameters={"rope_type": "default"})
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)

    both = bounds, bounds

    def attend_on_a_gpu(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
        attention.check_arguments(layer, both, 4, {"position_ids": bounds, "use_cache": False})
        return kernels.attend_varlen(query, key, key, both, 4, 0.0, 0.5, False)

    def compiled(function: Any) -> Any:
        return torch.compile(function, backend="eager", fullgraph=True)

    query, key = torch.randn(1, 4, 7, 8), torch.randn(1, 2, 7, 8)
    assert compiled(attend_on_a_gpu)(query, key).equal(query.transpose(1, 2) * 0.5)
    embeddings = tiny_esm2().embeddings
    inputs = {
        "input_ids": torch.tensor([[0, 32, 4, 5]]),
        "position_ids": torch.tensor([[0, 1, 0, 1]]),
    }
    assert compiled(embeddings)(**inputs).equal(embeddings(**inputs))


def test_dropout_is_applied() -> None:
    torch.manual_seed(0)
    given = {"query": torch.randn(1, 2, 7, 4), "key": torch.randn(1, 2, 7, 4)}
    value = torch.ones(1, 2, 7, 4)
    assert torch.allclose(attend(**given, value=value), value.transpose(1, 2))
    dropped = attend(**given, value=value, dropout=0.5)
    assert not torch.allclose(dropped, value.transpose(1, 2))


@pytest.fixture
def _flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the signature of flash_attn_varlen_func."""

    def flash_attn_varlen_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        assert cu_seqlens_q.equal(cu_seqlens_k)
        assert (max_seqlen_q, max_seqlen_k, dropout_p) == (4, 4, 0.0)
        assert cu_seqlens_q.dtype == torch.int32
        return by_definition(q, k, v, cu_seqlens_q, softmax_scale, causal)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.usefixtures("_flash_attn")
def test_flash_attn_gives_the_same(causal: bool, scale: float | None, key_heads: int) -> None:
    query = torch.randn(1, 4, 7, 8)
    key, value = torch.randn(2, 1, key_heads, 7, 8)
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    expected = by_definition(q, k, v, bounds, scale, causal)
    output = attend(
        query=query, key=key, value=value, cu_seq_lens_q=bounds, scaling=scale, is_causal=causal
    )
    assert torch.allclose(output[0], expected, atol=1e-6)
    found = kernels.attend_varlen(query, key, value, (bounds, bounds), 4, 0.0, scale, causal)
    assert found is not None
    assert torch.allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_torch_kernel_is_called_as_it_is_declared(
    monkeypatch: pytest.MonkeyPatch, causal: bool
) -> None:
    from torch.nn.attention import varlen

    declared = inspect.signature(varlen.varlen_attn)
    calls: list[dict[str, Any]] = []

    def varlen_attn(*args: Any, **kwargs: Any) -> torch.Tensor:
        bound = declared.bind(*args, **kwargs)
        bound.apply_defaults()
        calls.append(bound.arguments)
        return torch.zeros(())

    varlen_attn.__signature__ = declared  # type: ignore[attr-defined]
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    q, k, v = torch.randn(3, 1, 2, 7, 4)
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    assert kernels.attend_varlen(q, k, v, (bounds, bounds), 4, 0.1, None, causal) is None
    assert kernels.attend_varlen(q, k, v, (bounds, bounds), 4, 0.0, 0.5, causal) is not None
    (call,) = calls
    assert (call["max_q"], call["max_k"], call["scale"]) == (4, 4, 0.5)
    assert tuple(call["window_size"]) == ((-1, 0) if causal else (-1, -1))


@pytest.mark.parametrize("release", SIGNATURES)
def test_torch_kernel_of_each_release(release: str) -> None:
    check(SIGNATURES[release])


def test_kernel_without_causal_attention_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import varlen

    bare = stand_in("query, key, value, cu_seq_q, cu_seq_k, max_q, max_k")
    monkeypatch.setattr(varlen, "varlen_attn", bare)
    q, k, v = torch.randn(3, 1, 2, 7, 4)
    bounds = torch.tensor([0, 3, 7], dtype=torch.int32)
    assert kernels.attend_varlen(q, k, v, (bounds, bounds), 4, 0.0, None, True) is None
    assert kernels.attend_varlen(q, k, v, (bounds, bounds), 4, 0.0, None, False) is not None


def test_enable_gqa_is_passed_only_for_grouped_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[set[str]] = []
    own: Any = vars(kernels)["scaled_dot_product_attention"]

    def watch(*args: Any, **kwargs: Any) -> Any:
        given.append(set(kwargs))
        return own(*args, **kwargs)

    monkeypatch.setattr(kernels, "scaled_dot_product_attention", watch)
    attend()
    assert all("enable_gqa" not in names for names in given)
    attend(query=torch.randn(1, 4, 7, 4))
    assert "enable_gqa" in given[-1]

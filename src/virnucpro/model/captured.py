"""`CapturedModel`: a model that runs batches of one shape from a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from virnucpro.kernel.arguments import check_integer
from virnucpro.model.batches import PaddedShape, num_parts, pad_batch, remove_padding, take_real
from virnucpro.model.configuration import text_config
from virnucpro.model.inputs import accepts, model_inputs, run_model

logger = logging.getLogger(__name__)

# Calls before a capture, in which libraries choose and compile what they run.
NUM_WARM_UP = 3
# Boundaries are int32.
MAX_TOKENS = 2**31 - 1


class Graph(NamedTuple):
    """A captured graph.

    Attributes:
        graph: The graph.
        inputs: The arguments of the model, whose tensors it reads.
        states: The states that it writes, [max_tokens, width].
        key: What it was captured for.
        num_bytes: Memory that it keeps on the device.
    """

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Any]
    states: torch.Tensor
    key: Any
    num_bytes: int


class CapturedModel:
    """A model for inference that runs batches of one shape from a CUDA graph.

    A graph starts all kernels of the model at once, so that the GPU does not wait for Python, which
    takes most of the time where batches or models are small. Each batch is padded to the shape, if
    ``VarlenCollator(pad_to_budget=True)`` has not done so, and copied to the memory of the graph.
    The graph is captured at the first batch. It is captured again, in place of the former one, if a
    batch has a longer sequence than any before, if the model's parameters have been moved or
    replaced, and under another autocast. Parameters may be changed in place at any time, as
    optimizers and `load_state_dict` do.

    Where the model is not on a CUDA device, it is called with the padded batches.

    Args:
        model: A Hugging Face model on one device, in evaluation mode, with ``"packed_sdpa"`` or
            FlashAttention.
        max_tokens: Tokens of the shape.
        max_sequences: Sequences of the shape. ``CapturedModel(model, *plan.shape)`` takes both from
            a plan.
        compile: Whether to compile the model's layers with `torch.compile`, which takes a minute
            and makes large models faster. The model itself is left unchanged.

    Attributes:
        num_captures: Number of captures so far.
        num_plain_calls: Number of batches that did not fit the shape, for which the model was
            called as usual; the first one causes a WARNING.
        num_bytes: Memory that the graph keeps on the device, in bytes: the activations of one
            batch, inputs and output. The model's parameters are not copied.

    Raises:
        ValueError: `max_tokens` or `max_sequences` is out of range; the model has no parameters, is
            on several devices or, when called, is in training mode; or, with `compile`, it has no
            list of layers.
        TypeError: `max_tokens` or `max_sequences` is not an integer.

    Example:
        >>> from transformers import EsmConfig, EsmModel
        >>> from virnucpro.data import CapturedModel, packed_sdpa, unpack
        >>> from virnucpro.model.batches import make_batch
        >>> import numpy as np
        >>> config = EsmConfig(
        ...     vocab_size=33, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...     intermediate_size=8, position_embedding_type="rotary", pad_token_id=1,
        ...     attn_implementation="packed_sdpa")
        >>> captured = CapturedModel(EsmModel(config).eval(), max_tokens=64, max_sequences=4)
        >>> tokens, boundaries = np.full(9, 5), np.array([0, 5, 9], np.int32)
        >>> batch = make_batch(tokens, boundaries, ["a", "b"], 64)
        >>> states = captured(batch)
        >>> states.shape, [len(each) for each in unpack(states, batch).states]
        (torch.Size([9, 8]), [3, 2])
    """

    def __init__(
        self,
        model: Any,
        max_tokens: int,
        max_sequences: int,
        compile: bool = False,  # noqa: A002
    ) -> None:
        self.model = model
        self.max_tokens = check_integer(max_tokens, "max_tokens", 1, MAX_TOKENS)
        self.max_sequences = check_integer(max_sequences, "max_sequences", 1, MAX_TOKENS)
        self.compile = compile
        devices = {parameter.device for parameter in model.parameters()}
        if len(devices) != 1:
            names = ", ".join(sorted(map(str, devices))) or "none"
            raise ValueError(f"CapturedModel needs a model on one device (got {names})")
        if compile:
            find_layers(model)
        self.num_captures = self.num_plain_calls = self.num_bytes = 0
        self._shape = PaddedShape(self.max_tokens, self.max_sequences, 1)
        self._compiled: dict[torch.nn.Module, Any] = {}
        self._graph: Graph | None = None

    def __call__(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the states of the tokens of a batch that are not padding.

        Args:
            batch: A batch of `VarlenCollator`, on any device.

        Returns:
            The model's ``last_hidden_state`` or ``logits``, [num_tokens, width], on its device, for
            `unpack`. Without gradients; the memory is not reused by later calls.

        Raises:
            ValueError: The model is in training mode, or does not return states for each token.

        Cost: a copy of the inputs and of the states, beside the kernels of the model; the call
        returns before they have finished.
        """
        if self.model.training:
            raise ValueError("CapturedModel needs a model in evaluation mode: call model.eval()")
        batch = remove_padding(batch)
        device = next(self.model.parameters()).device
        with torch.no_grad():
            shape = self._shape_for(batch)
            if shape is None:
                self._count_plain_call(batch)
                states = run_model(self.model, self._inputs(batch, device))
                return take_real(states, batch)
            token = getattr(text_config(self.model), "pad_token_id", None) or 0
            inputs = self._inputs(pad_batch(batch, shape, token), device)
            with self._compiled_layers():
                if device.type == "cuda":
                    with torch.cuda.device(device):
                        states = self._replay(inputs)
                else:
                    states = run_model(self.model, inputs)
            return take_real(states, batch).clone()

    def _shape_for(self, batch: dict[str, Any]) -> PaddedShape | None:
        """Return the shape to pad a batch to; None if it has no room."""
        parts = max(self._shape.parts, num_parts(batch["multiple_of"]))
        shape = self._shape._replace(parts=parts)
        longest, known = batch["max_seqlen"], shape.max_seqlen
        if longest > known:
            # Twice as long, so that few captures are enough for any order of batches.
            longest = longest if known == 1 else max(longest, 2 * known)
            shape = shape._replace(max_seqlen=min(longest, self.max_tokens))
        if not shape.has_room(batch):
            return None
        self._shape = shape
        return shape

    def _count_plain_call(self, batch: dict[str, Any]) -> None:
        if self.num_plain_calls == 0:
            logger.warning(
                "a batch of %s tokens and %s sequences does not fit the shape of %s tokens and %s "
                "sequences: the model is called as usual for it and others (num_plain_calls)",
                f"{len(batch['input_ids']):,}",
                f"{batch['num_sequences']:,}",
                f"{self.max_tokens:,}",
                f"{self.max_sequences:,}",
            )
        self.num_plain_calls += 1

    def _inputs(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return the model's arguments for a batch, on its device."""
        inputs = model_inputs(batch, self.model)
        moved = {
            id(value): value.to(device, non_blocking=True)
            for value in inputs.values()
            if isinstance(value, torch.Tensor)
        }
        if accepts(self.model, "use_cache", or_kwargs=False):
            inputs["use_cache"] = False
        return {name: moved.get(id(value), value) for name, value in inputs.items()}

    def _replay(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the states from the graph, in its memory; it is captured first if need be."""
        parameters = [*self.model.parameters(), *self.model.buffers()]
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        key = self._shape, autocast, [tensor.data_ptr() for tensor in parameters]
        if self._graph is None or self._graph.key != key:
            self._graph = None
            self._graph = capture(self.model, inputs, autocast, key)
            self.num_bytes = self._graph.num_bytes
            self.num_captures += 1
        for name, static in self._graph.inputs.items():
            if isinstance(static, torch.Tensor):
                static.copy_(inputs[name], non_blocking=True)
        self._graph.graph.replay()
        return self._graph.states

    @contextmanager
    def _compiled_layers(self) -> Iterator[None]:
        """Replace the layers' `forward` by compiled ones, if `compile`, and restore them."""
        layers = find_layers(self.model) if self.compile else []
        own = [vars(layer).get("forward") for layer in layers]
        try:
            for layer in layers:
                if layer not in self._compiled:
                    self._compiled[layer] = torch.compile(layer.forward, dynamic=False)
                layer.forward = self._compiled[layer]
            yield
        finally:
            for layer, forward in zip(layers, own, strict=True):
                vars(layer).pop("forward", None)
                if forward is not None:
                    layer.forward = forward


def capture(model: Any, inputs: dict[str, Any], autocast: torch.dtype | None, key: Any) -> Graph:
    """Return the graph of a model for arguments of this shape."""
    static = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    # Parameters cached in another type would be freed when autocast ends.
    with torch.autocast("cuda", autocast, autocast is not None, cache_enabled=False):
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UP):
                run_model(model, static)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            states = run_model(model, static)
    return Graph(graph, static, states, key, torch.cuda.memory_reserved() - before)


def find_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers of a model: its list of modules with the most parameters."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        raise ValueError(
            f"compile needs a model with a list of layers (got {type(model).__name__})"
        )
    largest = max(lists, key=lambda each: sum(tensor.numel() for tensor in each.parameters()))
    return list(largest)

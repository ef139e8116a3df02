"""`CapturedModel`: a model that runs batches of one shape from a CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from virnucpro.kernel.arguments import check_integer
from virnucpro.model.batches import (
    MAX_TOKENS,
    PaddedShape,
    num_parts,
    pad_batch,
    remove_padding,
    take_real,
    to_device,
)
from virnucpro.model.configuration import attention_implementation
from virnucpro.model.inputs import IGNORE_BOUNDARIES, accepts, model_inputs, run_model
from virnucpro.text import quoted, shown

logger = logging.getLogger(__name__)

# Calls before a capture, in which libraries choose and compile what they run.
NUM_WARM_UP = 3
# Tokens by which the longest sequence of the shape grows, at least.
LENGTH_STEP = 64


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
    Where the model is not on a CUDA device, it is called with the padded batches.

    The graph is captured at the first batch. It is captured again, in place of the former one, if a
    batch has a longer sequence than any before, if the model's parameters have been moved or
    replaced, and under another autocast. With ``pad_to_budget=True`` all batches have the same
    longest sequence. Parameters may be changed in place at any time, as optimizers and
    `load_state_dict` do. Anything else that changes what the model computes, such as its attention
    implementation, adapters or hooks, needs a new `CapturedModel`. Calls are for one thread and one
    CUDA stream.

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
        num_bytes: Memory that the graph keeps on the device, in bytes: the activations and states
            of one batch. The model's parameters are not copied.

    Raises:
        ValueError: `max_tokens` or `max_sequences` is out of range; the model has another attention
            implementation, no parameters, is on several devices or, when called, is in training
            mode; or, with `compile`, it has no list of layers.
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
        attention = attention_implementation(model)
        if attention in IGNORE_BOUNDARIES:
            raise ValueError(
                'CapturedModel needs a model with attn_implementation="packed_sdpa" or '
                f"FlashAttention (got {quoted(attention)})"
            )
        devices = {parameter.device for parameter in model.parameters()}
        if len(devices) != 1:
            names = ", ".join(sorted(map(str, devices))) or "none"
            raise ValueError(f"CapturedModel needs a model on one device (got {names})")
        self._layers = find_layers(model) if compile else []
        # The parameters and buffers of each module, as dicts that follow replacements.
        self._tensors = [
            values
            for module in model.modules()
            for values in (vars(module)["_parameters"], vars(module)["_buffers"])
            if values
        ]
        if torch.cuda.is_available() and not has_graphs(next(iter(devices))):
            logger.warning("the model is on %s: it is called without a CUDA graph", *devices)
        self.num_captures = self.num_plain_calls = self.num_bytes = 0
        self._shape = PaddedShape(self.max_tokens, self.max_sequences, 0)
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
            ValueError: The batch is empty or from elsewhere, or the model is in training mode or
                does not return states for each token.

        Cost: a copy of the inputs and of the states, beside the kernels of the model; the call
        returns before they have finished.
        """
        if "num_tokens" not in batch:
            names = ", ".join(map(repr, batch)) or "none"
            raise ValueError(f"batch must be one of VarlenCollator (its keys are {shown(names)})")
        if self.model.training:
            raise ValueError("CapturedModel needs a model in evaluation mode: call model.eval()")
        device = next(self.model.parameters()).device
        # Tensors made in inference mode could not be overwritten outside of it.
        with torch.inference_mode(False), torch.no_grad():
            batch = remove_padding(to_device(batch, device))
            shape = self._shape_for(batch)
            if not shape.has_room(batch):
                self._count_plain_call(batch, shape)
                return take_real(run_model(self.model, self._inputs(batch)), batch)
            self._shape = shape
            # Any token of the model's vocabulary will do.
            inputs = self._inputs(pad_batch(batch, shape, 0))
            if has_graphs(device):
                with torch.cuda.device(device):
                    states = self._replay(inputs)
            else:
                with self._compiled_layers():
                    states = run_model(self.model, inputs)
            return take_real(states, batch).clone()

    def _shape_for(self, batch: dict[str, Any]) -> PaddedShape:
        """Return the shape for a batch, with longer sequences than before if it has any."""
        parts = max(self._shape.parts, num_parts(batch["multiple_of"]))
        longest, known = batch["max_seqlen"], self._shape.max_seqlen
        if longest > known:
            # In steps, so that few captures are enough for any order of batches.
            step = 1 if known == 0 else LENGTH_STEP
            known = min(-(-longest // step) * step, self.max_tokens)
        return self._shape._replace(parts=parts, max_seqlen=known)

    def _count_plain_call(self, batch: dict[str, Any], shape: PaddedShape) -> None:
        if self.num_plain_calls == 0:
            logger.warning(
                "a batch of %s tokens and %s sequences (%s boundaries) does not fit the shape of "
                "%s tokens and %s sequences (%s boundaries), which plan.shape gives: the model is "
                "called as usual for it and others (num_plain_calls)",
                f"{len(batch['input_ids']):,}",
                f"{batch['num_sequences']:,}",
                f"{len(batch['cu_seqlens']):,}",
                f"{shape.tokens:,}",
                f"{shape.sequences:,}",
                f"{shape.num_boundaries:,}",
            )
        self.num_plain_calls += 1

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the model's arguments for a batch on its device."""
        inputs = model_inputs(batch, self.model)
        if accepts(self.model, "use_cache", or_kwargs=False):
            inputs["use_cache"] = False
        return inputs

    def _replay(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the states from the graph, in its memory; it is captured first if need be."""
        tensors = (each for values in self._tensors for each in values.values())
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        addresses = [(each.data_ptr(), each.dtype) for each in tensors if each is not None]
        key = self._shape, autocast, addresses
        if self._graph is None or self._graph.key != key:
            self._graph = None
            with self._compiled_layers():
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
        layers = self._layers
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


def has_graphs(device: torch.device) -> bool:
    """Return whether a device runs CUDA graphs."""
    return device.type == "cuda"


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
        # Other threads, such as one that pins memory, may call CUDA meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
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

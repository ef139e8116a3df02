"""Packed batches: their tensors, padding to one shape, and the states of their sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from virnucpro.model.tokenized_records import NO_LABEL

# Boundaries are int32.
MAX_TOKENS = 2**31 - 1


class PaddedShape(NamedTuple):
    """The shape of batches that are padded to it.

    Attributes:
        tokens: Number of tokens.
        sequences: Maximum sequences.
        max_seqlen: Maximum tokens of a sequence.
        parts: Number of parts of a sequence: 1, or 2 if each is followed by its own padding.
    """

    tokens: int
    sequences: int
    max_seqlen: int
    parts: int = 1

    @property
    def num_boundaries(self) -> int:
        """Number of boundaries, which suffices for any padding."""
        return self.parts * self.sequences + self.num_added(0) + 1

    def num_added(self, num_tokens: int) -> int:
        """Return the number of sequences of padding that are added to a batch of `num_tokens`."""
        return -(-(self.tokens - num_tokens) // self.max_seqlen)

    def has_room(self, batch: dict[str, Any]) -> bool:
        """Return whether a batch fits in this shape."""
        num_tokens, num_parts = len(batch["input_ids"]), len(batch["cu_seqlens"]) - 1
        return (
            num_tokens <= self.tokens
            and batch["num_sequences"] <= self.sequences
            and num_parts + self.num_added(num_tokens) < self.num_boundaries
            and min(batch["max_seqlen"], num_tokens) <= self.max_seqlen
        )


def make_batch(
    input_ids: NDArray[np.int64],
    cu_seqlens: NDArray[np.int32],
    sequence_ids: list[Any],
    token_budget: int,
    special_tokens: tuple[int, int] = (1, 1),
    truncated: NDArray[np.bool_] | None = None,
    num_unknown: int = 0,
    labels: NDArray[np.int64] | None = None,
    extra_values: dict[str, list[Any]] | None = None,
    multiple_of: int = 1,
    padding_token: int = 0,
) -> dict[str, Any]:
    """Return a batch as described for `VarlenCollator`, from the values that determine it.

    `input_ids`, `cu_seqlens` and `labels` are without padding, which is added after each sequence
    up to a multiple of `multiple_of` tokens.
    """
    num_tokens = len(input_ids)
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    position_ids = np.arange(num_tokens) - np.repeat(cu_seqlens[:-1], lengths)
    if multiple_of > 1:
        places, cu_seqlens = round_up(lengths, multiple_of)
        size = int(cu_seqlens[-1])
        input_ids = spread(input_ids, places, size, padding_token)
        # A model may have no positions beyond those of its longest sequence.
        position_ids = spread(position_ids, places, size, 0)
        labels = None if labels is None else spread(labels, places, size, NO_LABEL)
        lengths = np.diff(cu_seqlens)
    if truncated is None:
        truncated = np.zeros(len(sequence_ids), np.bool_)
    batch = {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        **boundaries_of(torch.from_numpy(cu_seqlens), int(lengths.max())),
        "sequence_ids": sequence_ids,
        "num_sequences": len(sequence_ids),
        "num_tokens": num_tokens,
        "truncated": torch.from_numpy(truncated),
        "num_unknown": num_unknown,
        "token_budget": token_budget,
        "special_tokens": special_tokens,
        "multiple_of": multiple_of,
        **(extra_values or {}),
    }
    if labels is not None:
        batch["labels"] = torch.from_numpy(labels)
    return batch


def round_up(
    lengths: NDArray[np.int32], multiple_of: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return where the tokens of sequences are if each is followed by padding up to a multiple.

    Args:
        lengths: Number of tokens of each of the n sequences.
        multiple_of: Each sequence and its padding together have a multiple of this.

    Returns:
        The place of each token, [tokens], and the boundaries of sequences and of their padding, in
        turn, [2 n + 1].
    """
    rounded = -(-lengths.astype(np.int64) // multiple_of) * multiple_of
    boundaries = np.zeros(2 * len(lengths) + 1, np.int64)
    np.cumsum(rounded, out=boundaries[2::2])
    boundaries[1::2] = boundaries[:-1:2] + lengths
    moved = boundaries[:-1:2] - (np.cumsum(lengths) - lengths)
    places = np.arange(lengths.sum()) + np.repeat(moved, lengths)
    return places, boundaries.astype(np.int32)


def spread(
    values: NDArray[np.int64], places: NDArray[np.int64], size: int, padding: int
) -> NDArray[np.int64]:
    """Return an array of `size` with values at places, and padding elsewhere."""
    result = np.full(size, padding, np.int64)
    result[places] = values
    return result


def boundaries_of(cu_seqlens: torch.Tensor, max_seqlen: int) -> dict[str, Any]:
    """Return boundaries under all names that they have in a batch."""
    return {
        "cu_seqlens": cu_seqlens,
        "max_seqlen": max_seqlen,
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": max_seqlen,
        "max_length_k": max_seqlen,
    }


def pad_batch(batch: dict[str, Any], shape: PaddedShape, padding_token: int) -> dict[str, Any]:
    """Return a batch with padding, so that its tensors have a shape; it must have room.

    Padding is added as sequences of `max_seqlen` tokens, the last of them shorter, and then as
    empty sequences. Its positions are 0, since a model may have no others. No value of a tensor is
    read, so this does not wait for a device.
    """
    input_ids, boundaries = batch["input_ids"], batch["cu_seqlens"]
    device, num_tokens = input_ids.device, len(input_ids)
    num_added = shape.tokens - num_tokens
    numbers = torch.arange(1, shape.num_boundaries - len(boundaries) + 1, device=device)
    ends = (num_tokens + numbers * shape.max_seqlen).clamp(max=shape.tokens)
    padded = {
        **batch,
        "input_ids": torch.nn.functional.pad(input_ids, (0, num_added), value=padding_token),
        "position_ids": torch.nn.functional.pad(batch["position_ids"], (0, num_added)),
        **boundaries_of(torch.cat([boundaries, ends.to(boundaries.dtype)]), shape.max_seqlen),
    }
    if "labels" in batch:
        padded["labels"] = torch.nn.functional.pad(batch["labels"], (0, num_added), value=NO_LABEL)
    return padded


def to_device(values: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors on a device, each moved once however many names it has."""
    moved = {
        id(value): value.to(device, non_blocking=True)
        for value in values.values()
        if isinstance(value, torch.Tensor)
    }
    return {name: moved.get(id(value), value) for name, value in values.items()}


def remove_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch without the padding after its last sequence, to be padded to another shape.

    Batches whose sequences have padding of their own are returned unchanged.
    """
    num_tokens, num_sequences = batch["num_tokens"], batch["num_sequences"]
    if batch["multiple_of"] > 1:
        return batch
    rest: dict[str, Any] = {
        name: batch[name][:num_tokens]
        for name in ("input_ids", "position_ids", "labels")
        if name in batch
    }
    boundaries = batch["cu_seqlens"][: num_sequences + 1]
    return {**batch, **rest, **boundaries_of(boundaries, batch["max_seqlen"])}


class Unpacked(NamedTuple):
    """The output of a model for each of the n sequences of a batch, in batch order.

    Attributes:
        sequence_ids: The ID of each sequence.
        states: For each sequence, the states of its residues, [residues, hidden].
        embeddings: The mean state of each sequence, float32 or wider [n, hidden]; NaN for a
            sequence without residues.
    """

    sequence_ids: list[Any]
    states: tuple[torch.Tensor, ...]
    embeddings: torch.Tensor


def unpack(
    hidden_states: torch.Tensor,
    batch: dict[str, Any] | torch.Tensor,
    sequence_ids: Sequence[Any] | None = None,
    num_before: int = 1,
    num_after: int = 1,
) -> Unpacked:
    """Return the states of each sequence's residues and their mean, without special tokens.

    Args:
        hidden_states: The output of a model for a packed batch, [tokens, hidden] or
            [1, tokens, hidden], with the states of padding or without them.
        batch: The batch of a `VarlenCollator`, which determines all other arguments; or the
            boundaries of the n sequences, integers [n + 1].
        sequence_ids: The ID of each sequence. Required with boundaries.
        num_before: Number of special tokens before the residues of a sequence (BOS). Used only with
            boundaries.
        num_after: Number of special tokens after the residues of a sequence (EOS); 0 for ESM-1.
            Used only with boundaries.

    Raises:
        ValueError: The shapes do not match, or `sequence_ids` is missing.

    Cost: one copy of the hidden states; `states` are views of it.

    Example:
        >>> import torch
        >>> from virnucpro.data import unpack
        >>> states = torch.tensor([[0.0], [1.0], [3.0], [0.0], [0.0], [5.0], [0.0]])
        >>> unpacked = unpack(states, torch.tensor([0, 4, 7]), ["a", "b"])
        >>> unpacked.embeddings
        tensor([[2.],
                [5.]])
    """
    if hidden_states.ndim == 3 and len(hidden_states) == 1:
        hidden_states = hidden_states[0]
    if hidden_states.ndim != 2:
        raise ValueError(
            "hidden_states must be [tokens, hidden] or [1, tokens, hidden] "
            f"(got {list(hidden_states.shape)})"
        )
    num_rows = len(hidden_states)
    if isinstance(batch, dict):
        starts, ends = bounds_of_sequences(batch)
        sequence_ids = batch["sequence_ids"]
        num_before, num_after = batch["special_tokens"]
        has_padding = num_rows != batch["num_tokens"]
        expected = len(batch["input_ids"]) if has_padding else num_rows
    else:
        starts, ends = batch[:-1], batch[1:]
        has_padding, expected = True, int(batch[-1])
    if sequence_ids is None:
        raise ValueError("sequence_ids must be given with boundaries")
    starts, ends = (bounds.to(hidden_states.device, torch.int64) for bounds in (starts, ends))
    if not has_padding:
        ends = (ends - starts).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    starts, ends = starts + num_before, ends - num_after
    lengths = ends - starts
    if len(lengths) != len(sequence_ids):
        raise ValueError(
            f"sequence_ids must have one ID per sequence (got {len(sequence_ids)} for "
            f"{len(lengths)} sequences)"
        )
    if len(lengths) == 0:
        raise ValueError("cu_seqlens must have at least one sequence")
    if isinstance(batch, dict) and num_rows != expected:
        raise ValueError(f"hidden_states has {num_rows:,} tokens, the batch has {expected:,}")
    if starts[0] != num_before or num_rows != expected or (lengths < 0).any():
        raise ValueError(
            f"cu_seqlens must increase from 0 to {num_rows:,}, the number of tokens in "
            f"hidden_states, with {num_before + num_after} special tokens in each sequence"
        )
    changes = torch.zeros(num_rows + 1, dtype=torch.int32, device=hidden_states.device)
    ones = torch.ones_like(lengths, dtype=torch.int32)
    changes.index_add_(0, starts, ones).index_add_(0, ends, -ones)
    residues = hidden_states[changes.cumsum(0)[:-1] > 0]
    wide = residues.to(torch.promote_types(residues.dtype, torch.float32))
    embeddings = torch.segment_reduce(wide, "mean", lengths=lengths, axis=0)
    return Unpacked(list(sequence_ids), residues.split_with_sizes(lengths.tolist()), embeddings)


def bounds_of_sequences(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first token of each sequence and the end of its last, without padding."""
    parts = num_parts(batch["multiple_of"])
    boundaries = batch["cu_seqlens"][: parts * batch["num_sequences"] + 1]
    return boundaries[:-1:parts], boundaries[1::parts]


def find_middle(batch: dict[str, Any]) -> int:
    """Return the number of sequences of a batch that have half of its tokens, not all or none."""
    starts, ends = bounds_of_sequences(batch)
    tokens = (ends - starts).cumsum(0)
    middle = int(torch.searchsorted(tokens, tokens[-1] / 2)) + 1
    return min(middle, len(tokens) - 1)


def find_residues(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of residues among the tokens without padding, and how many each has."""
    starts, ends = bounds_of_sequences(batch)
    tokens = (ends - starts).to(torch.int64)
    num_before, num_after = batch["special_tokens"]
    lengths = tokens - num_before - num_after
    moved = tokens.cumsum(0) - tokens + num_before - (lengths.cumsum(0) - lengths)
    return torch.arange(int(lengths.sum())) + moved.repeat_interleave(lengths), lengths


def take_real(states: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    """Return the states of the tokens that are not padding; does not wait for a device."""
    num_tokens = batch["num_tokens"]
    if batch["multiple_of"] == 1:
        return states[:num_tokens]
    starts, ends = (bounds.to(torch.int64) for bounds in bounds_of_sequences(batch))
    lengths = ends - starts
    moved = starts - (lengths.cumsum(0) - lengths)
    moved = moved.repeat_interleave(lengths, output_size=num_tokens)
    return states[moved + torch.arange(num_tokens, device=moved.device)]


def num_parts(multiple_of: int) -> int:
    """Return the parts of a sequence in a batch: itself and, for a multiple, its padding."""
    return 1 if multiple_of == 1 else 2

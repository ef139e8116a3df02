"""`Embedder`: a checkpoint that embeds the sequences of packed batches."""

from __future__ import annotations

import copy
import gc
import logging
import os
from collections import Counter
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import virnucpro.model.attention  # noqa: F401  (registers "packed_sdpa")
from virnucpro.data.records import Record
from virnucpro.kernel.arguments import check_integer
from virnucpro.kernel.limits import Limits
from virnucpro.model.ahead import make_ahead
from virnucpro.model.batches import find_middle, find_residues, take_real, to_device
from virnucpro.model.captured import CapturedModel, has_graphs
from virnucpro.model.check import check_packed
from virnucpro.model.checkpoint import DTYPES, choose_device, choose_dtype, load_checkpoint
from virnucpro.model.collator import VarlenCollator
from virnucpro.model.inputs import model_inputs, run_model
from virnucpro.model.measure import is_out_of_memory
from virnucpro.model.positions import max_positions
from virnucpro.model.tokenized_records import check_records
from virnucpro.text import first_line, quoted, shown

logger = logging.getLogger(__name__)

# Residues that are kept of a sequence unless a model has positions for fewer.
MAX_RESIDUES = 1022
# Batches that are read and tokenized ahead.
NUM_AHEAD = 4


class Pooled(NamedTuple):
    """What a model gives for the n sequences of a batch, in its order.

    Attributes:
        sums: The sum of the states of the residues of each sequence, without special tokens, times
            their weights if the record has any, float32 [n, width]. NaN if it failed.
        states: The states of each sequence's residues, [residues, width]; None if it failed, or if
            states were not asked for.
        failed: Why the model has no result for a sequence, by its number in the batch.
        lengths: The number of residues of each sequence that was run, int64 [n]; 0 if it failed.
        num_unknown: The number of residues that are not in the tokenizer's vocabulary.
    """

    sums: NDArray[np.float32]
    states: list[NDArray[Any] | None]
    failed: dict[int, str]
    lengths: NDArray[np.int64]
    num_unknown: int


class Prepared(NamedTuple):
    """A batch that is ready to run; its tensors are in pinned memory if it goes to a device.

    Attributes:
        records: Its records.
        batch: Their tensors, as `VarlenCollator` makes them.
        places: The place of each residue among the tokens without padding, int64 [residues].
        lengths: Residues of each sequence, int64 [n].
        weights: The weight of each residue, float32 [residues]; None if all are 1.
    """

    records: list[Record]
    batch: dict[str, Any]
    places: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None


class Piece(NamedTuple):
    """Neighboring sequences of a batch that were run together; the device may still be running.

    Attributes:
        first: The number of the first of them in the batch.
        lengths: Residues of each.
        sums: Their sums, on the CPU once `ready`.
        states: The states of all of their residues, if asked for.
        ready: The event after which the values are there; None if they are.
    """

    first: int
    lengths: NDArray[np.int64]
    sums: torch.Tensor
    states: torch.Tensor | None
    ready: torch.cuda.Event | None


class Embedder:
    r"""A checkpoint of Hugging Face transformers that embeds the sequences of packed batches.

    The embedding of a sequence is the mean of the model's states over its residues, without special
    tokens. Batches run from a CUDA graph in one shape where the model is on a CUDA device, and one
    by one as they are otherwise. While the device runs a batch, the next are read and tokenized.

    If a batch runs out of memory, it is divided, and so are all later ones that are as large, with
    one WARNING. If it fails for another reason, it is divided too, until only the sequences that
    fail alone are without a result.

    Args:
        model: The folder of a checkpoint, or the name of a model on the hub. Its tokenizer must
            have one token per residue.
        max_tokens: Tokens of the largest batch, including special tokens.
        max_sequences: Maximum sequences per batch; if None, as many as fit with one residue each.
            The fewer, the smaller the graph, so take it from the plan (``plan.shape``).
        max_sequence_length: Maximum residues kept per sequence. If None, 1,022, or fewer if the
            model has positions for fewer.
        dtype: The type of the model: "float32", "bfloat16" or "float16"; None for bfloat16 on CUDA
            devices, as kernels for packed batches need, and float32 on others.
        device: Such as "cpu" or "cuda:1"; None for "cuda" if there is one, else "cpu".

    Attributes:
        checkpoint: The name of the model, its class and the hash of its weights.
        model: The model.
        collator: The `VarlenCollator` that makes its batches.
        width: The width of its states.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The checkpoint cannot be loaded or lacks weights, packing changes the output of
            the model (see `check_packed`), its tokenizer has tokens of several residues, or an
            argument is out of range.
        TypeError: An argument has the wrong type.
        MemoryError: The model does not fit.

    Cost: loading the weights and hashing them once.

    Example::

        embedder = Embedder("facebook/esm2_t6_8M_UR50D", max_tokens=16384)
        for records in PackedFastaDataset("proteins.fasta", plan):
            vectors = embedder.embed(records)

    With a tiny model of random weights::

        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import EsmConfig, EsmModel, EsmTokenizer
        >>> with TemporaryDirectory() as folder:
        ...     config = EsmConfig(
        ...         vocab_size=6, pad_token_id=1, hidden_size=8, num_hidden_layers=1,
        ...         num_attention_heads=2, intermediate_size=8, position_embedding_type="rotary")
        ...     EsmModel(config).save_pretrained(folder)
        ...     _ = Path(folder, "vocab.txt").write_text("<cls>\n<pad>\n<eos>\n<unk>\nM\nK")
        ...     _ = EsmTokenizer(f"{folder}/vocab.txt").save_pretrained(folder)
        ...     embedder = Embedder(folder)
        >>> embedder.embed([{"id": "a", "sequence": "MK"}, {"id": "b", "sequence": "M"}]).shape
        (2, 8)
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        max_tokens: int = 4096,
        max_sequences: int | None = None,
        *,
        max_sequence_length: int | None = None,
        dtype: str | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        check_integer(max_tokens, "max_tokens", 1)
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.checkpoint = load_checkpoint(model)
        name = shown(self.checkpoint.name)
        try:
            self.model = self.checkpoint.model.to(self.device, DTYPES[self.dtype])
            self.model.set_attn_implementation("packed_sdpa")
            check_packed(self.model, self.checkpoint.tokenizer)
            # The limits are known after the tokenizer.
            self.collator = VarlenCollator(self.checkpoint.tokenizer, 2**31 - 1, 1)
        except (ValueError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise MemoryError(f"{name}: the model does not fit on {self.device}") from error
            raise ValueError(f"{name}: {first_line(error)}") from error
        if not self.collator.has_table:
            raise ValueError(
                f"{name}: its tokenizer must have one token per residue ({first_words(self)})"
            )
        self.collator.max_sequence_length = choose_length(self, max_sequence_length)
        self.width = self._probe().shape[1]
        self._captured: CapturedModel | None = None
        self.set_shape(max_tokens, max_sequences)

    @property
    def special_tokens(self) -> int:
        """Number of special tokens of each sequence."""
        return self.collator.special_tokens

    @property
    def max_sequence_length(self) -> int:
        """Maximum residues kept per sequence."""
        return self.collator.max_sequence_length

    def set_shape(self, max_tokens: int, max_sequences: int | None = None) -> None:
        """Set the tokens and the sequences of the largest batch; see the class."""
        limits = Limits(
            max_tokens, self.collator.max_sequence_length, self.special_tokens, max_sequences
        )
        self.collator.max_tokens_per_batch = limits.max_tokens_per_batch
        self._max_sequences = max_sequences or max(1, max_tokens // limits.tokens(1))
        self._budget = max_tokens
        self._capture()

    def embed(self, records: list[Record]) -> NDArray[np.float32]:
        """Return the embedding of each sequence of a batch, float32 [n, width].

        Args:
            records: Dicts with `id` and `sequence`, at most `max_tokens` tokens together. Longer
                sequences are truncated. That of a sequence without residues is NaN.

        Raises:
            ValueError: The records are not a batch, or the model fails for one of them.
            TypeError: A record is not a dict.
        """
        if not records:
            return np.empty((0, self.width), np.float32)
        check_records(records)
        whole = [{"id": record["id"], "sequence": record["sequence"]} for record in records]
        pooled = next(self.run([whole]))
        for number, reason in pooled.failed.items():
            raise ValueError(f"{quoted(records[number]['id'])} has no embedding: {reason}")
        with np.errstate(invalid="ignore"):
            vectors: NDArray[np.float32] = pooled.sums / pooled.lengths.astype(np.float32)[:, None]
        return vectors

    def run(
        self, batches: Iterable[list[Record]], states: str | None = None
    ) -> Generator[Pooled, None, None]:
        """Yield what the model gives for the sequences of batches, in order.

        Args:
            batches: Records with `id` and `sequence`, as for `VarlenCollator`, and perhaps
                `weights`, float32 [residues]. A thread iterates over them.
            states: The type in which to return the states of residues, "float32" or "float16"; None
                not to return them.

        Raises:
            ValueError: Records are not a batch, or the model fails for every sequence, even for one
                of a single residue. Errors of `batches` are raised as they are.
        """
        dtype = None if states is None else DTYPES[states]
        ahead = make_ahead((self._prepare(batch, self.collator) for batch in batches), NUM_AHEAD)
        waiting = None
        try:
            for prepared in ahead:
                launched = self._launch(prepared, 0, dtype)
                if waiting is not None:
                    yield self._collect(*waiting)
                waiting = prepared.batch, *launched
            if waiting is not None:
                yield self._collect(*waiting)
        finally:
            ahead.close()

    def _prepare(self, records: list[Record], collate: VarlenCollator) -> Prepared:
        """Return a batch that is ready to run."""
        batch = collate(records)
        weights = None
        if "weights" in batch:
            weights = torch.from_numpy(np.concatenate(batch.pop("weights")))
        places, lengths = find_residues(batch)
        prepared = Prepared(records, batch, places, lengths, weights)
        if self.device.type != "cuda":
            return prepared
        batch = {name: pin(value) for name, value in batch.items()}
        return Prepared(records, batch, pin(places), pin(lengths), pin(weights))

    def _launch(
        self, prepared: Prepared, first: int, dtype: torch.dtype | None
    ) -> tuple[list[Piece], dict[int, str]]:
        """Start to run a batch, in pieces if need be; return them, and what failed."""
        records, batch = prepared.records, prepared.batch
        if batch["num_tokens"] <= self._budget or len(records) == 1:
            try:
                return [self._start(prepared, first, dtype)], {}
            except Exception as error:
                is_memory = is_out_of_memory(error)
                reason = "out of memory" if is_memory else first_line(error)
            # What the error kept is free from here on.
            if len(records) == 1:
                return [], {first: reason}
            if is_memory:
                self._lower(batch["num_tokens"])
        middle = find_middle(batch)
        # A copy, since unknown residues have been counted.
        collate = copy.copy(self.collator)
        collate.unknown, collate.unknown_residues = "ignore", Counter()
        pieces: list[Piece] = []
        failed: dict[int, str] = {}
        for begin, part in ((0, records[:middle]), (middle, records[middle:])):
            found = self._launch(self._prepare(part, collate), first + begin, dtype)
            pieces += found[0]
            failed.update(found[1])
        return pieces, failed

    def _start(self, prepared: Prepared, first: int, dtype: torch.dtype | None) -> Piece:
        """Start to run a batch that fits. Does not wait for the device."""
        with torch.inference_mode():
            places, lengths = (
                value.to(self.device, non_blocking=True)
                for value in (prepared.places, prepared.lengths)
            )
            run = self._run_plain if self._captured is None else self._captured
            residues = run(prepared.batch).index_select(0, places)
            wide = residues.to(torch.float32)
            if prepared.weights is not None:
                wide = wide * prepared.weights.to(self.device, non_blocking=True)[:, None]
            sums = torch.segment_reduce(wide, "sum", lengths=lengths, axis=0, unsafe=True)
            states = None if dtype is None else to_host(residues.to(dtype))
            sums = to_host(sums)
            ready = None
            if self.device.type == "cuda":
                ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
                ready.record(torch.cuda.current_stream(self.device))
        return Piece(first, prepared.lengths.numpy(), sums, states, ready)

    def _probe(self) -> torch.Tensor:
        """Return the states of a sequence of one residue, on the CPU."""
        collate = copy.copy(self.collator)
        collate.max_tokens_per_batch = 2**31 - 1
        with torch.inference_mode():
            return self._run_plain(collate([{"id": "", "sequence": "M"}])).cpu()

    def _check_alive(self, reason: str) -> None:
        """Raise ValueError if the model fails for any sequence, with the reason of a failure."""
        try:
            is_alive = bool(self._probe().isfinite().all())
        except Exception:
            is_alive = False
        if not is_alive:
            raise ValueError(f"the model fails for every sequence: {reason}")

    def _run_plain(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the states of the tokens that are not padding, [num_tokens, width]."""
        batch = to_device(batch, self.device)
        return take_real(run_model(self.model, model_inputs(batch, self.model)), batch)

    def _collect(
        self, batch: dict[str, Any], pieces: list[Piece], failed: dict[int, str]
    ) -> Pooled:
        """Return the results of a batch, once the device has run it."""
        number = batch["num_sequences"]
        sums = np.full((number, self.width), np.nan, np.float32)
        lengths = np.zeros(number, np.int64)
        states: list[NDArray[Any] | None] = [None] * number
        for piece in pieces:
            if piece.ready is not None:
                try:
                    piece.ready.synchronize()
                except RuntimeError as error:
                    # After an error of CUDA, everything else fails too.
                    raise ValueError(f"the model fails: {first_line(error)}") from error
            end = piece.first + len(piece.lengths)
            sums[piece.first : end] = piece.sums.numpy()
            lengths[piece.first : end] = piece.lengths
            if piece.states is not None:
                parts = piece.states.split_with_sizes(piece.lengths.tolist())
                states[piece.first : end] = [part.numpy() for part in parts]
            is_wrong = ~np.isfinite(sums[piece.first : end]).all(axis=1)
            for place in (piece.first + np.flatnonzero(is_wrong)).tolist():
                failed[place] = "its states are not finite"
                states[place] = None
        sums[list(failed)] = np.nan
        lengths[list(failed)] = 0
        if len(failed) == number:
            self._check_alive(next(iter(failed.values())))
        return Pooled(sums, states, failed, lengths, batch["num_unknown"])

    def _lower(self, num_tokens: int) -> None:
        """Lower the budget after a batch of this many tokens ran out of memory."""
        budget = num_tokens // 2
        if budget >= self._budget:
            return
        logger.warning(
            "out of memory at %s tokens: batches are divided into parts of at most %s tokens "
            "(a budget of this size would avoid it)",
            f"{num_tokens:,}",
            f"{budget:,}",
        )
        self._budget = budget
        self._captured = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._capture()

    def _capture(self) -> None:
        """Prepare the graph for batches within the budget, and for any single sequence."""
        self._captured = None
        if has_graphs(self.device):
            tokens = max(self._budget, self.special_tokens + 1)
            self._captured = CapturedModel(self.model, tokens, self._max_sequences)


def choose_length(embedder: Embedder, max_sequence_length: int | None) -> int:
    """Return the maximum residues kept per sequence, for which a model has positions."""
    limit = max_positions(embedder.model)
    room = None if limit is None else limit - embedder.special_tokens
    if max_sequence_length is None:
        return MAX_RESIDUES if room is None else min(MAX_RESIDUES, room)
    check_integer(max_sequence_length, "max_sequence_length", 1)
    if room is not None and max_sequence_length > room:
        raise ValueError(
            f"max_sequence_length must be at most {room:,}, for which the model has positions "
            f"(got {max_sequence_length:,})"
        )
    return max_sequence_length


def first_words(embedder: Embedder) -> str:
    """Return an example of a token with several residues."""
    words = [word for word in embedder.checkpoint.tokenizer.get_vocab() if len(word) > 1]
    residues = [word for word in words if word.isalpha()]
    return f"such as {quoted(min(residues))}" if residues else "its letters are no tokens"


def pin(value: Any) -> Any:
    """Return a value in pinned memory if it is a tensor."""
    return value.pin_memory() if isinstance(value, torch.Tensor) else value


def to_host(values: torch.Tensor) -> torch.Tensor:
    """Start to copy a tensor to the CPU, without waiting for its device."""
    if not values.is_cuda:
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)

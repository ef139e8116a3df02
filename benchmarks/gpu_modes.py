"""ESM-2 models of random weights, proteins, and the ways to run them that gpu.py compares."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    EsmConfig,
    EsmModel,
    EsmTokenizer,
)

from virnucpro.data import (
    CapturedModel,
    GreedyPacker,
    PackingPlan,
    VarlenCollator,
    model_inputs,
    packed_sdpa,
)
from virnucpro.model.attention import refuse_masks
from virnucpro.model.captured import find_layers
from virnucpro.model.inputs import run_model

AMINO_ACIDS = "LAGVSERTIDPKQNFYMHWC"
VOCABULARY = [
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *AMINO_ACIDS,
    *("X", "B", "U", "Z", "O", ".", "-", "<null_1>", "<mask>"),
]
MAX_RESIDUES = 1022


class Size(NamedTuple):
    """The size of an ESM-2 model."""

    width: int
    layers: int
    heads: int
    inner: int


SIZES = {
    "tiny": Size(16, 2, 2, 32),
    "8M": Size(320, 6, 20, 1280),
    "150M": Size(640, 30, 20, 2560),
    "650M": Size(1280, 33, 20, 5120),
    "3B": Size(2560, 36, 40, 10240),
}


def make_model(name: str, device: torch.device) -> Any:
    """Return an ESM-2 model of random weights, in bfloat16 on a GPU."""
    torch.manual_seed(0)
    size = SIZES[name]
    config = EsmConfig(
        vocab_size=len(VOCABULARY),
        mask_token_id=VOCABULARY.index("<mask>"),
        pad_token_id=VOCABULARY.index("<pad>"),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.inner,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
    )
    with device:
        model = EsmModel(config, add_pooling_layer=False).eval()
    model.set_attn_implementation("packed_sdpa")
    return model.to(torch.bfloat16) if device.type == "cuda" else model


def make_tokenizer() -> Any:
    """Return the tokenizer of transformers for ESM-2's vocabulary."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "vocab.txt")
        path.write_text("\n".join(VOCABULARY))
        return EsmTokenizer(str(path))


def draw_proteins(num_tokens: int, longest: int = 3000) -> list[str]:
    """Return random proteins as long as those of viruses, of at least `num_tokens` tokens."""
    random = np.random.default_rng(0)
    letters = np.frombuffer(AMINO_ACIDS.encode(), np.uint8)
    proteins: list[str] = []
    while num_tokens > 0:
        length = int(np.exp(random.normal(np.log(250), 0.8)).clip(20, longest))
        proteins.append(random.choice(letters, length).tobytes().decode())
        num_tokens -= min(length, MAX_RESIDUES) + 2
    return proteins


def read_proteins(paths: list[Path], num_tokens: int) -> list[str]:
    """Return proteins of FASTA files, drawn at random, of about `num_tokens` tokens."""
    from virnucpro.files.fasta import read_fasta

    found = [sequence for path in paths for _, sequence in read_fasta(path)]
    proteins: list[str] = []
    for index in np.random.default_rng(0).permutation(len(found)).tolist():
        if num_tokens <= 0:
            break
        proteins.append(found[index])
        num_tokens -= min(len(found[index]), MAX_RESIDUES) + 2
    return proteins


@dataclass(frozen=True)
class Work:
    """Proteins to run, in their order of arrival, and their plans.

    `plan` is by First-Fit Decreasing, `even_plan` has a limit on sequences, for one shape.
    """

    records: list[dict[str, Any]]
    plan: PackingPlan
    even_plan: PackingPlan
    budget: int
    tokenizer: Any
    num_tokens: int

    @property
    def packed(self) -> list[list[dict[str, Any]]]:
        """The records of each batch of the plan."""
        return self.batches(self.plan)

    @property
    def even(self) -> list[list[dict[str, Any]]]:
        """The records of each batch of the plan with a limit on sequences."""
        return self.batches(self.even_plan)

    def batches(self, plan: PackingPlan) -> list[list[dict[str, Any]]]:
        """Return the records of each batch of a plan."""
        return [[self.records[row] for row in rows.tolist()] for rows in plan]

    @property
    def by_length(self) -> list[list[dict[str, Any]]]:
        """Records sorted by length, in batches whose tokens, with padding, fit the budget."""
        batches: list[list[dict[str, Any]]] = [[]]
        for record in sorted(self.records, key=lambda each: -len(each["sequence"])):
            longest = (batches[-1] or [record])[0]
            width = min(len(longest["sequence"]), MAX_RESIDUES) + 2
            if width * (len(batches[-1]) + 1) > self.budget:
                batches.append([])
            batches[-1].append(record)
        return batches

    @property
    def by_arrival(self) -> list[list[dict[str, Any]]]:
        """Records in order, as many in each batch as fit the budget whatever their lengths."""
        number = max(1, self.budget // (MAX_RESIDUES + 2))
        return [self.records[i : i + number] for i in range(0, len(self.records), number)]


def make_work(proteins: list[str], budget: int, tokenizer: Any) -> Work:
    """Return proteins and their plan."""
    lengths = np.array([len(protein) for protein in proteins])
    packer = GreedyPacker(budget, MAX_RESIDUES)
    plan = packer.pack_lengths(lengths)
    limit = math.ceil(1.25 * plan.num_sequences / plan.num_batches)
    method = "ffd" if find_spec("highspy") is None else "tight"
    even = GreedyPacker(budget, MAX_RESIDUES, max_sequences_per_batch=limit, method=method)
    records = [{"id": i, "sequence": protein} for i, protein in enumerate(proteins)]
    num_tokens = int(packer.limits.tokens(lengths).sum())
    return Work(records, plan, even.pack_lengths(lengths), budget, tokenizer, num_tokens)


Batches = list[Any]
# Yields the states of each batch.
Run = Callable[[Batches], Iterator[torch.Tensor]]


def move(inputs: Any, device: torch.device) -> dict[str, Any]:
    """Return the arguments of a model on its device, moved one by one as users do."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


def attention_that_waits(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
    """As `packed_sdpa`, but compare boundaries in each layer, which waits for the device."""
    if not torch.equal(kwargs["cu_seq_lens_k"], kwargs["cu_seq_lens_q"]):
        raise ValueError("boundaries differ")
    return packed_sdpa(module, query, *args, **kwargs)


AttentionInterface.register("waits", attention_that_waits)
AttentionMaskInterface.register("waits", refuse_masks)


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Set the attention of a model, and restore packed_sdpa."""
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation("packed_sdpa")


def run_packed(model: Any, work: Work, implementation: str, pad: bool = False) -> Run:
    """Return a function that runs packed batches; with `pad`, all of one shape."""
    options: dict[str, Any] = (
        {"pad_to_budget": True, "max_sequences": work.even_plan.shape.sequences} if pad else {}
    )
    collate = VarlenCollator(work.tokenizer, work.budget, MAX_RESIDUES, **options)

    def run(batches: Batches) -> Iterator[torch.Tensor]:
        with attention(model, implementation):
            for records in batches:
                batch = collate(records)
                inputs = move(model_inputs(batch, model), model.device)
                yield run_model(model, inputs)[: batch["num_tokens"]]

    return run


def run_compiled(model: Any, work: Work) -> Run:
    """Return a function that runs batches of one shape with compiled layers."""
    run_eager = run_packed(model, work, "packed_sdpa", pad=True)
    compiled: list[Any] = []

    def run(batches: Batches) -> Iterator[torch.Tensor]:
        layers = find_layers(model)
        if not compiled:
            compiled.extend(torch.compile(layer.forward, dynamic=False) for layer in layers)
        try:
            for layer, forward in zip(layers, compiled, strict=True):
                layer.forward = forward
            yield from run_eager(batches)
        finally:
            for layer in layers:
                vars(layer).pop("forward", None)

    return run


def run_captured(model: Any, work: Work, compiled: bool) -> Run:
    """Return a function that runs batches from a captured graph."""
    collate = VarlenCollator(work.tokenizer, work.budget, MAX_RESIDUES)
    captured = CapturedModel(model, *work.even_plan.shape, compile=compiled)

    def run(batches: Batches) -> Iterator[torch.Tensor]:
        for records in batches:
            yield captured(collate(records))

    return run


def tokenize(records: list[dict[str, Any]], tokenizer: Any) -> Any:
    """Return the padded tokens of records."""
    sequences = [record["sequence"] for record in records]
    return tokenizer(
        sequences, padding=True, truncation=True, max_length=MAX_RESIDUES + 2, return_tensors="pt"
    )


def run_padded(model: Any, work: Work) -> Run:
    """Return a function that runs padded batches of records, or of their tokens."""

    def run(batches: Batches) -> Iterator[torch.Tensor]:
        with attention(model, "sdpa"):
            for records in batches:
                is_tokens = not isinstance(records, list)
                tokens = records if is_tokens else tokenize(records, work.tokenizer)
                yield model(**move(tokens, model.device)).last_hidden_state

    return run


class Mode(NamedTuple):
    """A way to run a model: what makes its function and its batches, and how long that may take."""

    name: str
    make: Callable[[Any, Work], Run]
    batches: Callable[[Work], Batches]
    seconds: float = 6


MODES = {
    mode.name: mode
    for mode in (
        Mode(
            "packed, waits in each layer",
            lambda model, work: run_packed(model, work, "waits"),
            lambda work: work.packed,
        ),
        Mode(
            "packed, eager",
            lambda model, work: run_packed(model, work, "packed_sdpa"),
            lambda work: work.packed,
        ),
        Mode(
            "captured",
            lambda model, work: run_captured(model, work, compiled=False),
            lambda work: work.even,
        ),
        Mode(
            "captured and compiled",
            lambda model, work: run_captured(model, work, compiled=True),
            lambda work: work.even,
            seconds=60,
        ),
        Mode("compiled", run_compiled, lambda work: work.even, seconds=40),
        Mode("padded, by arrival", run_padded, lambda work: work.by_arrival),
        Mode("padded, by length", run_padded, lambda work: work.by_length),
        Mode(
            "padded, by length, tokenized before",
            run_padded,
            lambda work: [tokenize(records, work.tokenizer) for records in work.by_length],
        ),
    )
}


class Speed(NamedTuple):
    """What a mode takes: seconds for all its batches, and those that the device works on them."""

    seconds: float
    busy: float | None


def wait(device: torch.device) -> float:
    """Wait for the device, and return the time in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def run_all(run: Run, batches: Batches) -> None:
    """Run batches, and keep no more than the states of the last one."""
    for _ in run(batches):
        pass


def measure(run: Run, batches: Batches, device: torch.device) -> Speed:
    """Return the median of one to three runs of all batches, after a first run of some."""
    some = [*batches[:2], *batches[-1:]]
    seconds: list[float] = []
    with torch.no_grad():
        run_all(run, some)
        while len(seconds) < 3 and sum(seconds) < 2:
            begin = wait(device)
            run_all(run, batches)
            seconds.append(wait(device) - begin)
        return Speed(median(seconds), busy_seconds(run, batches, device))


def busy_seconds(run: Run, batches: Batches, device: torch.device) -> float | None:
    """Return the seconds that the device computes and copies, from a profile of every few batches.

    None without a GPU, or if nothing was recorded.
    """
    if device.type != "cuda":
        return None
    some = batches[:: max(1, len(batches) // 6)]
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run_all(run, some)
        torch.cuda.synchronize()
    micros = sum(
        float(event.self_device_time_total)
        for event in profile.key_averages()
        if event.device_type.name == "CUDA"
    )
    return micros / 1e6 * len(batches) / len(some) if micros else None

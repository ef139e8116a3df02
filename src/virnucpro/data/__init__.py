"""Packing of sequences into token-budget batches, and loading of the batches for models."""

from __future__ import annotations

import importlib
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

from virnucpro.data.layout import Layout, TokenCounts
from virnucpro.data.overlong import Fragments
from virnucpro.data.packing import GreedyPacker, calculate_token_budget
from virnucpro.data.plan import PackingPlan
from virnucpro.extras import needing
from virnucpro.kernel.limits import Limits

if TYPE_CHECKING:
    from virnucpro.cluster.pack import pack_files_on_ray
    from virnucpro.cluster.ray_data import pack_dataset
    from virnucpro.cluster.reading import read_dataset
    from virnucpro.cluster.streaming import count_dataset
    from virnucpro.files.embeddings import EmbeddingSummary
    from virnucpro.files.fasta import ReadOptions
    from virnucpro.files.plan_summary import Summary, Totals
    from virnucpro.jobs.embed import embed_files
    from virnucpro.jobs.embed_job import EmbeddingRun
    from virnucpro.jobs.pack import pack_files
    from virnucpro.model.attention import packed_sdpa
    from virnucpro.model.batches import unpack
    from virnucpro.model.captured import CapturedModel
    from virnucpro.model.check import check_packed
    from virnucpro.model.collator import VarlenCollator
    from virnucpro.model.datasets import SequenceDataset
    from virnucpro.model.embedder import Embedder
    from virnucpro.model.inputs import model_inputs
    from virnucpro.model.loader import create_async_dataloader
    from virnucpro.model.measure import measure_token_budget
    from virnucpro.model.packed_datasets import PackedDataset, PackedFastaDataset
    from virnucpro.model.plan_dataset import PackedPlanDataset
    from virnucpro.model.sampler import PackedBatchSampler
    from virnucpro.model.stream import PackedStream

__all__ = [
    "CapturedModel",
    "Embedder",
    "EmbeddingRun",
    "EmbeddingSummary",
    "Fragments",
    "GreedyPacker",
    "Layout",
    "Limits",
    "PackedBatchSampler",
    "PackedDataset",
    "PackedFastaDataset",
    "PackedPlanDataset",
    "PackedStream",
    "PackingPlan",
    "ReadOptions",
    "SequenceDataset",
    "Summary",
    "TokenCounts",
    "Totals",
    "VarlenCollator",
    "calculate_token_budget",
    "check_packed",
    "count_dataset",
    "create_async_dataloader",
    "embed_files",
    "measure_token_budget",
    "model_inputs",
    "pack_dataset",
    "pack_files",
    "pack_files_on_ray",
    "packed_sdpa",
    "read_dataset",
    "unpack",
]

# Another distribution may have modules in the package `virnucpro.data` elsewhere on the path.
__path__ = extend_path(__path__, __name__)

# Names from the layers above, imported on first use, with their module and the extra it requires.
LAZY = {
    "CapturedModel": ("model.captured", "torch"),
    "Embedder": ("model.embedder", "esm"),
    "EmbeddingRun": ("jobs.embed_job", "esm"),
    "EmbeddingSummary": ("files.embeddings", "esm"),
    "PackedBatchSampler": ("model.sampler", "torch"),
    "PackedDataset": ("model.packed_datasets", "torch"),
    "PackedFastaDataset": ("model.packed_datasets", "torch"),
    "PackedPlanDataset": ("model.plan_dataset", "torch,cli"),
    "PackedStream": ("model.stream", "torch"),
    "ReadOptions": ("files.fasta", "fasta"),
    "SequenceDataset": ("model.datasets", "torch"),
    "Summary": ("files.plan_summary", "cli"),
    "Totals": ("files.plan_summary", "cli"),
    "VarlenCollator": ("model.collator", "torch"),
    "check_packed": ("model.check", "torch"),
    "count_dataset": ("cluster.streaming", "ray"),
    "create_async_dataloader": ("model.loader", "torch"),
    "embed_files": ("jobs.embed", "esm"),
    "measure_token_budget": ("model.measure", "torch"),
    "model_inputs": ("model.inputs", "torch"),
    "pack_dataset": ("cluster.ray_data", "ray"),
    "pack_files": ("jobs.pack", "cli"),
    "pack_files_on_ray": ("cluster.pack", "ray"),
    "packed_sdpa": ("model.attention", "esm"),
    "read_dataset": ("cluster.reading", "ray"),
    "unpack": ("model.batches", "torch"),
}


def __getattr__(name: str) -> Any:
    """Import a name on first use."""
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = LAZY[name]
    with needing(name, extra):
        return getattr(importlib.import_module(f"virnucpro.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

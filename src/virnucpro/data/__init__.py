"""Packing of sequences into token-budget batches, and what feeds them to models."""

from __future__ import annotations

import importlib
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

from virnucpro.data.fasta import ReadOptions
from virnucpro.data.packing import GreedyPacker, calculate_token_budget
from virnucpro.data.plan import Layout, PackingPlan, TokenCounts

if TYPE_CHECKING:
    from virnucpro.data.collators import VarlenCollator, unpack
    from virnucpro.data.dataloader_utils import create_async_dataloader
    from virnucpro.data.distributed import pack_dataset
    from virnucpro.data.models import model_inputs
    from virnucpro.data.packed_check import check_packed
    from virnucpro.data.samplers import PackedBatchSampler
    from virnucpro.data.sequence_dataset import PackedFastaDataset, SequenceDataset

__all__ = [
    "GreedyPacker",
    "Layout",
    "PackedBatchSampler",
    "PackedFastaDataset",
    "PackingPlan",
    "ReadOptions",
    "SequenceDataset",
    "TokenCounts",
    "VarlenCollator",
    "calculate_token_budget",
    "check_packed",
    "create_async_dataloader",
    "model_inputs",
    "pack_dataset",
    "unpack",
]

# A pipeline of the same name may have modules of its own elsewhere on the path.
__path__ = extend_path(__path__, __name__)

# Names that need more than NumPy: the module that has each, and the extra that it needs.
OPTIONAL = {
    "PackedBatchSampler": ("samplers", "torch"),
    "PackedFastaDataset": ("sequence_dataset", "torch"),
    "SequenceDataset": ("sequence_dataset", "torch"),
    "VarlenCollator": ("collators", "torch"),
    "check_packed": ("packed_check", "torch"),
    "create_async_dataloader": ("dataloader_utils", "torch"),
    "model_inputs": ("models", "torch"),
    "pack_dataset": ("distributed", "ray"),
    "unpack": ("collators", "torch"),
}


def __getattr__(name: str) -> Any:
    """Import what is used for the first time."""
    if name not in OPTIONAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = OPTIONAL[name]
    try:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{name} needs {package}: pip install 'virnucpro[{extra}]'", name=error.name
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""What loaders and frameworks that iterate a sampler do with its batches.

They do not tell a sampler, so its callers are searched for one that holds it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

# Calls between the loader of a framework and its batch sampler, at most.
MAX_CALLS = 32
# Where loaders and frameworks are defined.
MODULES = ("accelerate.", "lightning.", "pytorch_lightning.", "torch.utils.data.")
# Batch samplers of frameworks around a batch sampler, and its loader, at most.
MAX_WRAPPERS = 4


class Reader(NamedTuple):
    """Who iterates a sampler, or asks for its length.

    Attributes:
        num_processes: Among how many processes accelerate shares out the batches; 1 if it does not.
        repeats: Whether it repeats batches, so that all processes have equally many.
        epoch: The epoch that accelerate or Lightning counts; None if none does.
        ahead: Who takes batches before training asks for them; None if nobody does.
    """

    num_processes: int = 1
    repeats: bool = False
    epoch: int | None = None
    ahead: str | None = None


def find_callers() -> Iterator[Any]:
    """Yield the objects of loaders and frameworks whose methods are running, innermost first."""
    frame = inspect.currentframe()
    for _ in range(MAX_CALLS):
        frame = frame.f_back if frame else None
        if frame is None:
            return
        # Reading the locals of other calls would keep what they refer to.
        if frame.f_globals.get("__name__", "").startswith(MODULES):
            yield frame.f_locals.get("self")


def check_stream_reader(stream: Any) -> None:
    """Raise ValueError if accelerate would share out the batches of a stream a second time."""
    for caller in find_callers():
        name = type(caller).__name__
        if name in ("IterableDatasetShard", "DataLoaderDispatcher") and caller.dataset is stream:
            raise ValueError(
                "accelerate would share out the batches of this stream a second time: do not pass "
                "its loader to accelerator.prepare"
            )


def find_reader(sampler: Any) -> Reader:
    """Return who iterates a sampler.

    ``accelerator.prepare`` wraps a batch sampler into a `BatchSamplerShard`, which iterates it in
    each process and keeps every n-th batch, and a DataLoader into a `DataLoaderShard`, which counts
    epochs. After ``skip_first_batches``, this count does not reach the sampler. The `_FitLoop` of
    Lightning sets the epoch after the workers have asked for batches.

    Raises:
        ValueError: One process dispatches the batches to all others, or they are shared out twice.
    """
    reader = Reader()
    for caller in find_callers():
        name = type(caller).__name__
        if name == "BatchSamplerShard" and holds(caller, sampler):
            if min(reader.num_processes, caller.num_processes) > 1:
                raise ValueError(
                    "accelerate shares out the batches of this sampler twice: pass the loader to "
                    "accelerator.prepare once"
                )
            if caller.num_processes > 1:
                repeats = bool(caller.even_batches and not caller.drop_last)
                reader = reader._replace(num_processes=caller.num_processes, repeats=repeats)
        elif name == "_MultiProcessingDataLoaderIter":
            reader = reader._replace(ahead="a DataLoader with workers")
        elif name in ("DataLoaderShard", "DataLoaderDispatcher") and holds(caller, sampler):
            if name == "DataLoaderDispatcher" and caller.state.num_processes > 1:
                raise ValueError(
                    "packed batches cannot be dispatched from one process to the others: use "
                    "Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=False))"
                )
            if not getattr(caller, "use_stateful_dataloader", False):
                reader = reader._replace(ahead="accelerate")
            return reader._replace(epoch=getattr(caller, "iteration", None))
        elif name == "_FitLoop" and any(
            holds(loader, sampler) for loader in vars(caller)["_combined_loader"].flattened
        ):
            # Lightning counts an epoch whose last batch was done before a restart later.
            is_over = caller.restarting and caller.epoch_loop.batch_progress.is_last_batch
            epoch = caller.epoch_progress.current.processed + bool(is_over)
            return reader._replace(epoch=int(epoch))
    return reader


def holds(loader: Any, sampler: Any) -> bool:
    """Return whether the batch sampler of a loader is a sampler, or wraps it."""
    found = loader
    for _ in range(MAX_WRAPPERS):
        found = getattr(found, "batch_sampler", None)
        if found is sampler:
            return True
    return False


def describe_second_sharing(rank: int, world_size: int) -> str:
    """Return the error message for a rank's batches that a framework would share out again."""
    return (
        f"the batches of this sampler are already those of rank {rank} of {world_size}, and would "
        "be shared out a second time: for accelerate and the Trainer of transformers, leave out "
        "rank and world_size (or do not pass the loader to accelerator.prepare); for Lightning, "
        "use Trainer(use_distributed_sampler=False)"
    )

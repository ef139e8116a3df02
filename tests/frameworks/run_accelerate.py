"""Trains with accelerate, as `accelerate launch` starts it.

Usage: run_accelerate.py LOG STATE [EARLIER]. Saves in STATE the state of a sampler in the middle of
an epoch; EARLIER is such a state, of another number of ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from training import Log, TinyModel, error_of, flatten, make_records, make_sampler

from virnucpro.data import PackedBatchSampler

STOP = 5
# The last accumulation of an epoch has fewer batches.
ACCUMULATED = 4


class Position:
    """What accelerate stores in its checkpoints: the sampler's state after the last step."""

    def __init__(self, sampler: PackedBatchSampler) -> None:
        self.sampler = sampler
        self.step: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict(self.step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)


def main() -> None:
    path = sys.argv[1]
    log = Log(path)
    records = make_records()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    model = accelerator.prepare(TinyModel())
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), 0.1))

    def make_loader(sampler: Any, num_workers: int = 0) -> Any:
        return DataLoader(
            records, batch_sampler=sampler, collate_fn=flatten, num_workers=num_workers
        )

    def train(
        run: str, loader: Any, stop: int | None = None, position: Position | None = None
    ) -> int:
        log.begin(run)
        num_updates = 0
        for step, batch in enumerate(loader, 1):
            with accelerator.accumulate(model):
                loss = model(batch["input_ids"], batch["labels"])
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            num_updates += accelerator.sync_gradients
            log.add(run, batch, loss)
            if position is not None:
                position.step = step
            if step == stop:
                break
        return num_updates

    loader = accelerator.prepare(make_loader(make_sampler()))
    log.note("updates", [train("plain", loader) for _ in range(3)])
    log.note("length", len(loader))
    loader = make_loader(make_sampler())
    for _ in range(3):
        train("unprepared", loader)
    loader = accelerator.prepare(make_loader(make_sampler(), num_workers=2))
    for _ in range(2):
        train("workers", loader)
    loader = accelerator.prepare(make_loader(make_sampler(repack=40)))
    for _ in range(2):
        train("repack", loader)

    # The number of batches, as in accelerate's documentation.
    loader = accelerator.prepare(make_loader(make_sampler()))
    loader.set_epoch(1)
    train("skipped", accelerator.skip_first_batches(loader, STOP))
    loader.set_epoch(2)
    train("skipped", loader)

    # The state of the sampler, in a checkpoint.
    sampler = make_sampler()
    position = Position(sampler)
    accelerator.register_for_checkpointing(position)
    loader = accelerator.prepare(make_loader(sampler, num_workers=2))
    train("stopped", loader, position=position)
    train("stopped", loader, STOP, position)
    accelerator.save_state(path + "-checkpoint")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        state = json.dumps(position.state_dict())
        Path(sys.argv[2]).write_text(state, encoding="utf-8")
    position.sampler = sampler = make_sampler()
    loader = accelerator.prepare(make_loader(sampler))
    accelerator.load_state(path + "-checkpoint")
    for _ in range(2):
        train("resumed", loader)

    if sys.argv[3:]:
        sampler = make_sampler()
        loader = accelerator.prepare(make_loader(sampler))
        sampler.load_state_dict(json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")))
        for _ in range(2):
            train("changed", loader)

    given = make_sampler(accelerator.process_index, accelerator.num_processes)
    log.note("second sharing", error_of(accelerator.prepare, make_loader(given)))
    given_loader = make_loader(given)
    for _ in range(2):
        train("given", given_loader)

    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(dispatch_batches=True)
    )
    loader = accelerator.prepare(make_loader(make_sampler()))
    log.note("dispatched", error_of(next, iter(loader)))

    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_stateful_dataloader=True)
    )
    for num_workers in (0, 2):
        run = f"stateful {num_workers}"
        loader = accelerator.prepare(make_loader(make_sampler(), num_workers))
        train(f"{run} stopped", loader)
        train(f"{run} stopped", loader, STOP)
        state = loader.state_dict()
        del loader
        loader = accelerator.prepare(make_loader(make_sampler(), num_workers))
        loader.load_state_dict(state)
        # accelerate counts epochs from 0 otherwise.
        loader.set_epoch(1)
        for _ in range(2):
            train(run, loader)
        del loader
    if accelerator.num_processes == 1:
        loader = accelerator.prepare(make_loader(make_sampler(), 2))
        loader.load_state_dict(state)
        for _ in range(2):
            train("uncounted", loader)

    log.save(accelerator.process_index)
    accelerator.end_training()


if __name__ == "__main__":
    main()

"""Trains with Lightning, which starts the other processes itself.

Usage: run_lightning.py FOLDER DEVICES [EARLIER]. EARLIER is the folder of a run with another number
of processes.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from training import Log, TinyModel, error_of, flatten, make_records, make_sampler
from training_checks import page_blocks

from virnucpro.data import PackedBatchSampler

STOP = 5


class LoggedModel(lightning.LightningModule):  # type: ignore[misc]
    """A model that logs the rows of each step."""

    def __init__(self, run: str, log: Log) -> None:
        super().__init__()
        self.run, self.log_of_rows = run, log
        self.logged_epoch = -1
        self.model = TinyModel()

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        if self.current_epoch != self.logged_epoch:
            self.logged_epoch = self.current_epoch
            self.log_of_rows.begin(self.run)
        loss: torch.Tensor = self.model(batch["input_ids"], batch["labels"])
        self.log_of_rows.add(self.run, batch, loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Position(lightning.Callback):  # type: ignore[misc]
    """Stores the sampler's state in checkpoints."""

    def __init__(self, sampler: PackedBatchSampler) -> None:
        self.sampler = sampler
        self.step = 0

    def on_train_batch_start(self, *values: Any) -> None:
        if values[-1] == 0:
            self.step = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict(self.step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)
        self.step = self.sampler.first_step


def recount() -> Any:
    """Return the callback of the page on training, for another number of processes."""
    (block,) = (block for block in page_blocks() if "class Recount" in block)
    found: dict[str, Any] = {}
    exec(block, found)
    return found["Recount"]()


def positions(run: str, sampler: PackedBatchSampler) -> list[Position]:
    """Return the callback for a loader that keeps no state itself."""
    return [Position(sampler)] if run == "state" else []


def first_checkpoint(folder: Path, run: str, name: str) -> Path:
    return min((folder / run / name).glob("*.ckpt"))


def main() -> None:
    folder, num_devices = Path(sys.argv[1]), int(sys.argv[2])
    warnings.simplefilter("ignore")
    logging.disable()
    log = Log(str(folder / "log"))
    records = make_records()

    num_steps = -(-len(records.plan) // num_devices)

    def make_loader(sampler: Any, kind: Any = DataLoader, num_workers: int = 0) -> Any:
        return kind(records, batch_sampler=sampler, collate_fn=flatten, num_workers=num_workers)

    def make_trainer(*callbacks: Any, is_shared: bool = False) -> Any:
        return lightning.Trainer(
            accelerator="cpu",
            devices=num_devices,
            strategy="ddp",
            use_distributed_sampler=is_shared,
            max_epochs=3,
            callbacks=list(callbacks),
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=any(isinstance(value, ModelCheckpoint) for value in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def train(run: str, loader: Any, *callbacks: Any, checkpoint: Any = None) -> Any:
        trainer = make_trainer(*callbacks)
        trainer.fit(LoggedModel(run, log), loader, ckpt_path=checkpoint)
        return trainer

    kinds = {
        "plain": (StatefulDataLoader, 0),
        "workers": (StatefulDataLoader, 2),
        "state": (DataLoader, 2),
    }
    for run, kind in kinds.items():
        # Within an epoch, after its last step, and at its end.
        saves = {
            "resumed": ("{step}", {"every_n_train_steps": num_steps + STOP}),
            "ended": ("{step}", {"every_n_train_steps": num_steps}),
            "continued": ("{epoch}", {"every_n_epochs": 1}),
        }
        savers = [
            ModelCheckpoint(folder / run / name, file, save_top_k=-1, **options)
            for name, (file, options) in saves.items()
        ]
        sampler = make_sampler()
        trainer = train(run, make_loader(sampler, *kind), *positions(run, sampler), *savers)
        for name in saves:
            sampler = make_sampler()
            loader = make_loader(sampler, *kind)
            checkpoint = first_checkpoint(folder, run, name)
            train(f"{run} {name}", loader, *positions(run, sampler), checkpoint=checkpoint)

    if sys.argv[3:]:
        for run in ("plain", "state"):
            sampler = make_sampler()
            loader = make_loader(sampler, *kinds[run])
            callbacks = [*positions(run, sampler), recount()]
            checkpoint = first_checkpoint(Path(sys.argv[3]), run, "resumed")
            train(f"{run} changed", loader, *callbacks, checkpoint=checkpoint)

    rank = trainer.global_rank
    train("given", make_loader(make_sampler(rank, num_devices)))
    for name, sampler in {"": make_sampler(), " given": make_sampler(rank, num_devices)}.items():
        shared = make_trainer(is_shared=True)
        model = LoggedModel("shared" + name, log)
        log.note("second sharing" + name, error_of(shared.fit, model, make_loader(sampler)))
    log.save(rank)


if __name__ == "__main__":
    main()

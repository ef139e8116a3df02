"""Trains with the Trainer of transformers, as torchrun starts it.

Usage: run_trainer.py FOLDER [EARLIER]. EARLIER is the folder of a run in one process.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from training import Flattener, Log, error_of, make_records, make_sampler
from training_llama import gradients, largest_difference, single_gradients, tiny_llama
from transformers import Trainer, TrainerCallback, TrainingArguments

from virnucpro.data import PackedBatchSampler

# Updates within an epoch.
STOP = 3


class LoggedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer with a loader of its own, which logs the rows of each step."""

    def __init__(self, folder: Path, run: str, log: Log, sampler: Any, **options: Any) -> None:
        arguments = TrainingArguments(
            str(folder / run),
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            report_to=[],
            **options,
        )
        self.run, self.log_of_rows, self.batch_sampler = run, log, sampler
        super().__init__(tiny_llama(), arguments, callbacks=[Steps(self)])

    def get_train_dataloader(self) -> Any:
        records = make_records()
        loader = DataLoader(records, batch_sampler=self.batch_sampler, collate_fn=Flattener())
        return self.accelerator.prepare(loader) if self.run.startswith("prepared") else loader

    def training_step(self, model: Any, inputs: Any, *values: Any) -> Any:
        batch = dict(inputs)
        del inputs["rows"]
        loss = super().training_step(model, inputs, *values)
        self.log_of_rows.add(self.run, batch, loss)
        return loss


class Steps(TrainerCallback):  # type: ignore[misc]
    """Logs epochs, and saves checkpoints after the first epoch and within the second."""

    def __init__(self, trainer: LoggedTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.log_of_rows.begin(self.trainer.run)

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        updates = state.max_steps // 3
        control.should_save = state.global_step in (updates, updates + STOP)


def distributed_gradients(sampler: PackedBatchSampler) -> list[torch.Tensor]:
    """Return the gradients of the mean over all labels, with torch alone."""
    loader: Any = DataLoader(make_records(), batch_sampler=sampler, collate_fn=Flattener())
    batches = list(loader)
    num_labels = sum((batch["labels"] != -100).sum() for batch in batches)
    torch.distributed.all_reduce(num_labels)
    model = DistributedDataParallel(tiny_llama())
    for number, batch in enumerate(batches, 1):
        del batch["rows"]
        model.require_backward_grad_sync = number == len(batches)
        loss = model(**batch, num_items_in_batch=num_labels).loss
        # The gradients of the ranks are averaged.
        (loss * torch.distributed.get_world_size()).backward()
    return gradients(model)


def main() -> None:
    folder = Path(sys.argv[1])
    logging.disable()
    log = Log(str(folder / "log"))
    accumulated = 2

    def make_trainer(run: str, *rank: int, **options: Any) -> LoggedTrainer:
        options = {
            "num_train_epochs": 3,
            "gradient_accumulation_steps": accumulated,
            **options,
        }
        return LoggedTrainer(folder, run, log, make_sampler(*rank), **options)

    for run in ("prepared", "unprepared"):
        trainer = make_trainer(run)
        trainer.train()
        updates = trainer.state.max_steps // 3
        log.note(f"{run} updates", trainer.state.global_step)
        for name, step in {"resumed": updates + STOP, "continued": updates}.items():
            trainer = make_trainer(f"{run} {name}")
            trainer.train(str(folder / run / f"checkpoint-{step}"))

    rank, world_size = trainer.accelerator.process_index, trainer.accelerator.num_processes
    log.note("second sharing", error_of(make_trainer("prepared given", rank, world_size).train))

    if sys.argv[2:]:
        # Half as many batches per update in each process: the same number of updates.
        updates = -(-len(make_sampler(0, 1)) // accumulated)
        checkpoint = Path(sys.argv[2], "unprepared", f"checkpoint-{updates + STOP}")
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        earlier = make_sampler(0, 1)
        earlier.set_epoch(state["global_step"] // updates)
        position = earlier.state_dict(state["global_step"] % updates * accumulated)
        for run in ("prepared", "unprepared"):
            trainer = make_trainer(
                f"{run} changed", gradient_accumulation_steps=1, ignore_data_skip=True
            )
            trainer.batch_sampler.load_state_dict(position)
            trainer.train(str(checkpoint))

    # One update of an epoch changes the parameters by minus the gradients.
    expected_loss, expected = single_gradients()
    sampler = make_sampler()
    trainer = make_trainer(
        "unprepared gradients",
        num_train_epochs=1,
        gradient_accumulation_steps=len(sampler),
        optim="sgd",
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    loss = trainer.train().training_loss
    changes = [old - new for old, new in zip(before, trainer.model.parameters(), strict=True)]
    log.note("loss", loss - expected_loss)
    log.note("gradients", largest_difference(changes, expected))

    if world_size > 1:
        log.note("weighted", largest_difference(distributed_gradients(sampler), expected))

    log.save(rank)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

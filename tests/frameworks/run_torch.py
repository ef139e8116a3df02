"""Trains with torch alone, as torchrun starts it.

Usage: run_torch.py LOG STATE [EARLIER]. Saves in STATE the state of a sampler in the middle of an
epoch; EARLIER is such a state, of another number of ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from training import Log, TinyModel, flatten, make_records, make_sampler

STOP = 5


def main() -> None:
    torch.distributed.init_process_group("gloo")
    log = Log(sys.argv[1])
    records = make_records()
    model = DistributedDataParallel(TinyModel())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def train(run: str, loader: Any, stop: int | None = None) -> None:
        log.begin(run)
        for step, batch in enumerate(loader, 1):
            loss = model(batch["input_ids"], batch["labels"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            log.add(run, batch, loss)
            if step == stop:
                break

    def make_loader(sampler: Any, kind: Any = DataLoader, num_workers: int = 0) -> Any:
        return kind(records, batch_sampler=sampler, collate_fn=flatten, num_workers=num_workers)

    samplers = {
        "plain": make_sampler(),
        "repack": make_sampler(repack=40),
        "dropped": make_sampler(drop_last=True),
    }
    for run, sampler in samplers.items():
        loader = make_loader(sampler)
        for _ in range(3):
            train(run, loader)

    sampler = make_sampler()
    loader = make_loader(sampler, num_workers=2)
    train("stopped", loader)
    train("stopped", loader, STOP)
    state = sampler.state_dict(STOP)
    resumed = make_sampler()
    resumed.load_state_dict(state)
    for _ in range(2):
        train("resumed", make_loader(resumed))
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(state), encoding="utf-8")

    for num_workers in (0, 2):
        loader = make_loader(make_sampler(), StatefulDataLoader, num_workers)
        train(f"stopped {num_workers}", loader)
        train(f"stopped {num_workers}", loader, STOP)
        position = loader.state_dict()
        del loader
        loader = make_loader(make_sampler(), StatefulDataLoader, num_workers)
        loader.load_state_dict(position)
        for _ in range(2):
            train(f"stateful {num_workers}", loader)
        del loader

    loader = make_loader(make_sampler(), StatefulDataLoader)
    train("read", loader)
    position = loader.state_dict()
    loader = make_loader(make_sampler(), StatefulDataLoader)
    loader.load_state_dict(position)
    for _ in range(2):
        train("continued", loader)

    if sys.argv[3:]:
        changed = make_sampler()
        changed.load_state_dict(json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")))
        for _ in range(2):
            train("changed", make_loader(changed))

    log.save(torch.distributed.get_rank())
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

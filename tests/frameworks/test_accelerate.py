"""Training with accelerate, started by `accelerate launch` in one and two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training import make_sampler
from training_checks import (
    ACCELERATE,
    Runs,
    check_changed,
    check_epochs,
    check_resumed,
    check_stopped,
    launch,
    read_runs,
)

SCRIPT = Path(__file__).with_name("run_accelerate.py")
STOP = 5

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs and states of one process, then of two that also resume from the state of one."""
    folder = tmp_path_factory.mktemp("accelerate")
    one, two = folder / "one", folder / "two"
    launch(["-m", *ACCELERATE, 1, "--cpu", SCRIPT, one, f"{one}.state"], folder)
    launch(
        ["-m", *ACCELERATE, 2, "--multi_gpu", SCRIPT, two, f"{two}.state", f"{one}.state"], folder
    )
    return folder


@pytest.fixture(params=["one", "two"])
def runs(request: pytest.FixtureRequest, folder: Path) -> Runs:
    return read_runs(folder / request.param, ["one", "two"].index(request.param) + 1)


@pytest.mark.parametrize(
    ("name", "num_epochs"), [("plain", 3), ("unprepared", 3), ("workers", 2), ("repack", 2)]
)
def test_epochs_have_every_row_once_in_another_order(
    runs: Runs, name: str, num_epochs: int
) -> None:
    check_epochs(runs, name, num_epochs)


def test_ways_of_sharing_give_the_same_batches(runs: Runs) -> None:
    for run in runs:
        assert run["plain"] == run["unprepared"]
        assert run["plain"][:2] == run["workers"]


def test_gradients_are_accumulated_to_the_end_of_an_epoch(runs: Runs) -> None:
    for run in runs:
        number = len(run["plain"][0])
        assert run["length"] == number
        assert number % 4
        assert run["updates"] == [-(-number // 4)] * 3


def test_skipping_the_first_batches_resumes_within_an_epoch(runs: Runs) -> None:
    check_resumed(runs, "skipped", STOP)


def test_checkpoint_resumes_within_an_epoch(runs: Runs) -> None:
    check_stopped(runs, "stopped", STOP)
    check_resumed(runs, "resumed", STOP)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_loader_resumes_within_an_epoch(runs: Runs, num_workers: int) -> None:
    check_stopped(runs, f"stateful {num_workers} stopped", STOP)
    check_resumed(runs, f"stateful {num_workers}", STOP)


def test_one_process_resumes_a_stateful_loader_whose_epoch_is_not_set(folder: Path) -> None:
    check_resumed(read_runs(folder / "one", 1), "uncounted", STOP)


def test_other_numbers_of_processes_resume(folder: Path) -> None:
    one, two = read_runs(folder / "one", 1), read_runs(folder / "two", 2)
    check_changed(one, STOP, two, "changed")
    sampler = make_sampler()
    sampler.load_state_dict(json.loads((folder / "two.state").read_text(encoding="utf-8")))
    check_changed(two, STOP, [{"changed": [list(sampler), list(sampler)]}], "changed")


def test_second_sharing_is_an_error(folder: Path) -> None:
    for rank, run in enumerate(read_runs(folder / "two", 2)):
        assert run["second sharing"] == (
            f"ValueError: the batches of this sampler are already those of rank {rank} of 2, and "
            "would be shared out a second time: for accelerate and the Trainer of transformers, "
            "leave out rank and world_size (or do not pass the loader to accelerator.prepare); for "
            "Lightning, use Trainer(use_distributed_sampler=False)"
        )
        assert "DataLoaderConfiguration(dispatch_batches=False)" in run["dispatched"]


def test_a_given_rank_is_right_without_a_second_sharing(folder: Path) -> None:
    check_epochs(read_runs(folder / "two", 2), "given", 2)
    (run,) = read_runs(folder / "one", 1)
    assert run["second sharing"] == run["dispatched"] == "none"

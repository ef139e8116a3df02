"""Training with the Trainer of transformers, started by torchrun in one and two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_checks import (
    TORCHRUN,
    Runs,
    check_changed,
    check_epochs,
    check_resumed,
    launch,
    read_runs,
)

SCRIPT = Path(__file__).with_name("run_trainer.py")
# Batches of a rank before a checkpoint, of two per update.
STOP = 6

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of one process, then of two that also resume from a checkpoint of one."""
    folder = tmp_path_factory.mktemp("trainer")
    one, two = folder / "one", folder / "two"
    one.mkdir()
    two.mkdir()
    launch(["-m", *TORCHRUN, 1, SCRIPT, one], folder)
    launch(["-m", *TORCHRUN, 2, SCRIPT, two, one], folder)
    return folder


@pytest.fixture(params=["one", "two"])
def runs(request: pytest.FixtureRequest, folder: Path) -> Runs:
    return read_runs(folder / request.param / "log", ["one", "two"].index(request.param) + 1)


@pytest.fixture(params=["prepared", "unprepared"])
def name(request: pytest.FixtureRequest) -> str:
    """Whether accelerate shares out the batches."""
    return str(request.param)


def test_epochs_have_every_row_once_in_another_order(runs: Runs, name: str) -> None:
    check_epochs(runs, name, 3)
    for run in runs:
        assert run["prepared"] == run["unprepared"]
        assert run[f"{name} updates"] == 3 * -(-len(run[name][0]) // 2)


def test_checkpoint_resumes_within_an_epoch(runs: Runs, name: str) -> None:
    check_resumed(runs, f"{name} resumed", STOP, name)


def test_checkpoint_resumes_between_epochs(runs: Runs, name: str) -> None:
    check_resumed(runs, f"{name} continued", 0, name)


def test_two_processes_resume_from_a_checkpoint_of_one(folder: Path, name: str) -> None:
    one, two = read_runs(folder / "one/log", 1), read_runs(folder / "two/log", 2)
    one = [{"plain": one[0]["unprepared"]}]
    check_changed(one, STOP, two, f"{name} changed")


def test_second_sharing_is_an_error(folder: Path) -> None:
    (run,) = read_runs(folder / "one/log", 1)
    assert run["second sharing"] == "none"
    for rank, run in enumerate(read_runs(folder / "two/log", 2)):
        assert run["second sharing"].startswith(
            f"ValueError: the batches of this sampler are already those of rank {rank} of 2"
        )


def test_loss_and_gradients_are_those_of_single_documents(runs: Runs) -> None:
    # Each process reports the loss of its own batches.
    assert abs(sum(run["loss"] for run in runs)) < 1e-5
    for run in runs:
        assert run["gradients"] < 1e-5


def test_losses_weighted_by_hand_have_the_gradients_of_single_documents(folder: Path) -> None:
    assert max(run["weighted"] for run in read_runs(folder / "two/log", 2)) < 1e-5

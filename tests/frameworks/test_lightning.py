"""Training with Lightning, in one process and in two, which it starts itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_checks import Runs, check_changed, check_epochs, check_resumed, launch, read_runs

SCRIPT = Path(__file__).with_name("run_lightning.py")
STOP = 5

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of one process, then of two that also resume from checkpoints of one."""
    folder = tmp_path_factory.mktemp("lightning")
    one, two = folder / "one", folder / "two"
    one.mkdir()
    two.mkdir()
    launch([SCRIPT, one, 1], folder)
    launch([SCRIPT, two, 2, one], folder)
    return folder


@pytest.fixture(params=["one", "two"])
def runs(request: pytest.FixtureRequest, folder: Path) -> Runs:
    return read_runs(folder / request.param / "log", ["one", "two"].index(request.param) + 1)


def test_epochs_have_every_row_once_in_another_order(runs: Runs) -> None:
    for name in ("plain", "workers", "state", "given"):
        check_epochs(runs, name, 3)
        assert all(run[name] == run["plain"] for run in runs)


@pytest.mark.parametrize("name", ["plain", "workers", "state"])
def test_checkpoint_resumes_within_an_epoch(runs: Runs, name: str) -> None:
    check_resumed(runs, f"{name} resumed", STOP)


@pytest.mark.parametrize("name", ["plain", "workers", "state"])
@pytest.mark.parametrize("saved", ["ended", "continued"])
def test_checkpoint_resumes_between_epochs(runs: Runs, name: str, saved: str) -> None:
    check_resumed(runs, f"{name} {saved}", 0)


@pytest.mark.parametrize("name", ["plain", "state"])
def test_two_processes_resume_from_a_checkpoint_of_one(folder: Path, name: str) -> None:
    one, two = read_runs(folder / "one/log", 1), read_runs(folder / "two/log", 2)
    check_changed(one, STOP, two, f"{name} changed")


def test_second_sharing_is_an_error(folder: Path) -> None:
    for rank, run in enumerate(read_runs(folder / "two/log", 2)):
        assert "Trainer(use_distributed_sampler=False)" in run["second sharing"]
        assert run["second sharing given"].startswith(
            f"ValueError: the batches of this sampler are already those of rank {rank} of 2"
        )

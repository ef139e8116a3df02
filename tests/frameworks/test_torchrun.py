"""Training with torch alone, started by torchrun in one and two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training import NUM_DOCUMENTS, make_sampler
from training_checks import (
    TORCHRUN,
    Runs,
    check_changed,
    check_epochs,
    check_resumed,
    check_stopped,
    launch,
    read_runs,
    rows_of,
)

SCRIPT = Path(__file__).with_name("run_torch.py")
STOP = 5

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs and states of one process, then of two that also resume from the state of one."""
    folder = tmp_path_factory.mktemp("torchrun")
    one, two = folder / "one", folder / "two"
    launch(["-m", *TORCHRUN, 1, SCRIPT, one, f"{one}.state"], folder)
    launch(["-m", *TORCHRUN, 2, SCRIPT, two, f"{two}.state", f"{one}.state"], folder)
    return folder


@pytest.fixture(params=["one", "two"])
def runs(request: pytest.FixtureRequest, folder: Path) -> Runs:
    return read_runs(folder / request.param, ["one", "two"].index(request.param) + 1)


def test_epochs_have_every_row_once_in_another_order(runs: Runs) -> None:
    check_epochs(runs, "plain", 3)
    check_epochs(runs, "repack", 3)


def test_incomplete_steps_are_left_out_on_request(runs: Runs) -> None:
    batches = [len(run["plain"][0]) for run in runs]
    left_out = max(len(batch) for run in runs for batch in run["plain"][0]) if len(runs) > 1 else 0
    check_epochs(runs, "dropped", 3, num_left_out=2 * left_out)
    if len(runs) > 1:
        assert [len(run["dropped"][0]) for run in runs] == [number - 1 for number in batches]


def test_state_resumes_within_an_epoch(runs: Runs) -> None:
    check_stopped(runs, "stopped", STOP)
    check_resumed(runs, "resumed", STOP)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_loader_resumes_within_an_epoch(runs: Runs, num_workers: int) -> None:
    check_stopped(runs, f"stopped {num_workers}", STOP)
    check_resumed(runs, f"stateful {num_workers}", STOP)


def test_stateful_loader_resumes_between_epochs(runs: Runs) -> None:
    check_resumed(runs, "continued", 0)


def test_two_processes_resume_from_the_state_of_one(folder: Path) -> None:
    check_changed(read_runs(folder / "one", 1), STOP, read_runs(folder / "two", 2), "changed")


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_state_of_two_processes_is_for_any_number(folder: Path, num_ranks: int) -> None:
    state = json.loads((folder / "two.state").read_text(encoding="utf-8"))
    later: Runs = []
    for rank in range(num_ranks):
        sampler = make_sampler(rank, num_ranks)
        sampler.load_state_dict(state)
        later.append({"changed": [list(sampler), list(sampler)]})
    check_changed(read_runs(folder / "two", 2), STOP, later, "changed")
    assert len(rows_of(*(run["changed"][0] for run in later))) < NUM_DOCUMENTS

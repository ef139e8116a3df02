"""How far a job has come: on terminals, and as lines elsewhere."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest
from rich.console import Console

import virnucpro.terminal
from virnucpro.terminal import Speed, describe_progress, progress_display


class Clock:
    """A clock to set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("virnucpro.terminal.time.monotonic", clock)
    return clock


def show_on(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, width: int = 80) -> io.StringIO:
    """Have the command line write to a text, as if it were a terminal or not."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=width)
    monkeypatch.setattr(virnucpro.terminal, "stderr", lambda: console)
    return text


@pytest.mark.parametrize(
    ("done", "total", "rate", "text"),
    [
        (0, None, None, "embedding"),
        (1500, None, None, "embedding 1,500 residues"),
        (0, 0, None, "embedding"),
        (0, 4000, None, "embedding 0.0 % of 4,000 residues"),
        (1000, 4000, 2.0, "embedding 25.0 % of 4,000 residues, 2 per second, 0:25:00 left"),
        (3999, 4000, 1.5, "embedding 99.9 % of 4,000 residues, 2 per second, 0:00:01 left"),
        (4000, 4000, 1e3, "embedding 100.0 % of 4,000 residues, 1,000 per second, 0:00:00 left"),
        (1, 10**9, 1e4, "embedding 0.0 % of 1,000,000,000 residues, 10,000 per second, "
         "1 day, 3:46:40 left"),
    ],
)  # fmt: skip
def test_texts(done: int, total: int | None, rate: float | None, text: str) -> None:
    assert describe_progress("embedding", done, total, rate) == text


def test_speed_is_that_of_the_last_minute_in_this_run(clock: Clock) -> None:
    speed = Speed()
    # An earlier run has done a million.
    assert speed.update("embedding", 1_000_000) is None
    assert speed.update("embedding", 1_000_100) is None
    for _ in range(6):
        clock.now += 10
        found = speed.update("embedding", 1_000_100 + int(clock.now - 1000) * 10)
    assert found == pytest.approx(700 / 60)
    done = 1_000_700
    for _ in range(20):
        clock.now += 10
        done += 5000
        found = speed.update("embedding", done)
    assert found == 500.0
    # Another stage begins anew.
    assert speed.update("writing", 5) is None
    clock.now += 1
    assert speed.update("writing", 5) is None
    assert speed.update("writing", 25) == 20.0


def test_lines_at_starts_and_once_per_interval(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    text = show_on(monkeypatch, is_terminal=False)
    with progress_display(False, 60) as progress:
        progress("reading", 7 * 2**20)
        for second in range(150):
            clock.now += 1
            progress("embedding", 100 * second, 30_000)
    assert text.getvalue().splitlines() == [
        "virnucpro: reading 7 MiB",
        "virnucpro: embedding 0.0 % of 30,000 residues",
        "virnucpro: embedding 20.0 % of 30,000 residues, 100 per second, 0:04:00 left",
        "virnucpro: embedding 40.0 % of 30,000 residues, 100 per second, 0:03:00 left",
    ]


@pytest.mark.parametrize(("quiet", "interval"), [(True, 1.0), (False, None)])
def test_no_lines(
    quiet: bool, interval: float | None, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    text = show_on(monkeypatch, is_terminal=False)
    with progress_display(quiet, interval) as progress:
        for second in range(150):
            clock.now += 1
            progress("embedding", 100 * second, 30_000)
    assert text.getvalue() == ""


@pytest.mark.parametrize("width", [80, 40])
def test_display_on_terminals(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = show_on(monkeypatch, is_terminal=True, width=width)
    with progress_display(False, 60) as progress:
        progress("loading", 0)
        progress("comparing", 1234)
        progress("embedding", 25, 1000)
    shown = text.getvalue()
    for part in ("Loading", "Comparing 1,234", "Embedding 2.5 % of"):
        assert part in shown
    # In spite of a terminal with narrow lines.
    assert shown.count("residues") >= 1
    # Removed at the end.
    assert shown.endswith("\x1b[2K")


def test_nothing_is_written_to_terminals_before_the_first_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = show_on(monkeypatch, is_terminal=True)
    with progress_display(False):
        pass
    assert text.getvalue() == ""


# A process that waits for a signal, as `virnucpro` does, perhaps in a fork.
WAITS = """
import os, sys, time
from virnucpro.__main__ import end_on_signals
from virnucpro.terminal import message_at_end
end_on_signals()
with message_at_end(lambda: "half is\\ndone"):
    if sys.argv[1] == "fork" and os.fork():
        os.wait()
        sys.exit()
    print(os.getpid(), flush=True)
    time.sleep(20)
"""


@pytest.mark.process
@pytest.mark.parametrize(("where", "said"), [("here", "virnucpro: half is\\ndone\n"), ("fork", "")])
def test_message_at_the_end_by_a_signal(where: str, said: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITS, where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.kill(int(process.stdout.readline()), signal.SIGTERM)
        assert process.stderr.read() == said
    assert process.returncode == (0 if where == "fork" else -signal.SIGTERM)

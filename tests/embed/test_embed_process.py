"""The process of `virnucpro embed`: threads, memory, and what it says when it is stopped."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Runs the command with another function instead of `embed_files`.
INSTEAD = """
import sys, time, virnucpro.jobs.embed
from pathlib import Path

def embed_files(*inputs, **options):
    {does}
    sys.exit()

virnucpro.jobs.embed.embed_files = embed_files
sys.argv[1:] = ["embed", "a.fa", "-o", "out", "--model", ".", *sys.argv[1:]]
from virnucpro.__main__ import main
main()
"""
THREADS = "import os, torch; print(torch.get_num_threads(), os.getenv('OPENBLAS_NUM_THREADS'))"


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("limit", [resource.RLIM_INFINITY, 2**36])
def test_models_run_on_all_cores(limit: int) -> None:
    environment = {name: os.environ[name] for name in os.environ if not name.endswith("_THREADS")}
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        ).stdout
        for code in (THREADS, INSTEAD.format(does=THREADS))
    ]
    assert found[0] == found[1] != ""


@pytest.mark.process
def test_limits_that_leave_too_little_are_an_error_at_once() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "virnucpro", "embed", "a.fa", "-o", "out", "--model", "."],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
    )
    assert result.returncode == 1
    assert result.stderr.startswith(
        "virnucpro: error: out of memory: the limit (ulimit -v or -d) leaves"
    )
    assert result.stderr.endswith(" MiB, at least 1.0 GiB are needed\n")


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "parts", "options", "said"),
    [
        (signal.SIGINT, 0, [], "virnucpro: stopped; the same command does the rest\n"),
        (
            signal.SIGTERM,
            3,
            [],
            "virnucpro: stopped, 3 of 1,200 parts are in out; the same command does the rest\n",
        ),
        (signal.SIGTERM, 3, ["-q"], ""),
    ],
)
def test_stopped_runs_say_what_is_left(
    stop: signal.Signals, parts: int, options: list[str], said: str
) -> None:
    Path("out").mkdir()
    for number in range(parts):
        Path(f"out/part-{number:05}-of-01200.parquet").touch()
    code = INSTEAD.format(does="print(flush=True); time.sleep(20)")
    with subprocess.Popen(
        [sys.executable, "-c", code, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Undoes what nohup does.
        preexec_fn=lambda: signal.signal(stop, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(stop)
        assert process.stderr.read() == said
    assert process.returncode == -stop

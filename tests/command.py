"""Runs the command line as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

from click.testing import CliRunner


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Return what `virnucpro` printed and its exit status, run in this process."""
    # Else every test would import what the command line needs anew.
    from virnucpro.cli import app

    words = list(map(str, arguments))
    result = CliRunner().invoke(app, words, prog_name="virnucpro", catch_exceptions=False)
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


def run_program(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Return the same, run in another process."""
    command = [sys.executable, "-m", "virnucpro", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_terminal(descriptor: int) -> bytes:
    """Return what a program writes to a terminal until it ends."""
    seen = b""
    # At the end, a terminal raises an error.
    with suppress(OSError):
        while some := os.read(descriptor, 4096):
            seen += some
    return seen

"""Runs the command line as a user does."""

from __future__ import annotations

import subprocess
import sys


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Return what `virnucpro` printed and its exit status."""
    command = [sys.executable, "-m", "virnucpro", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)

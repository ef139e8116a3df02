"""Runs Python code in a process of its own."""

from __future__ import annotations

import subprocess
import sys


def run_script(code: str) -> str:
    """Return what the code prints, once it has ended without an error or a warning."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout

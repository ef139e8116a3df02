"""Runs the blocks of a page in one session, as its readers do; `pages` starts it.

It knows nothing of the tests, since it runs in the environment of the page.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

# Blocks that begin with `# train.py` are files, and those with `# train.py: COMMAND` are also run.
FILE = re.compile(r"# ((?:[\w/]+\.py(?: and )?)+)(?:: (.+))?\n")

# Asks for a process with the same arguments, folder, variables and files, and ends as it does.
CLIENT = """#!/usr/bin/env -S {python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [request], [0, 1, 2])
    sys.exit(server.recv(1)[0])
"""


def serve_commands(folder: str) -> int:
    """Start a process that runs `virnucpro` in forks of itself, once models are imported.

    Importing them takes seconds, in which a page calls the command many times. The command of this
    name in the folder asks the process to run it, with the ID that is returned.
    """
    path = f"{folder}/socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    client = Path(folder, "virnucpro")
    client.write_text(CLIENT.format(python=sys.executable, path=path), encoding="utf-8")
    client.chmod(0o755)
    if server := os.fork():
        return server
    for name in ("transformers.models.auto", "transformers.models.esm.modeling_esm"):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.send(bytes([run_command(connection)]))
            os._exit(0)
        connection.close()


def run_command(connection: socket.socket) -> int:
    """Run `virnucpro` as a client asks, and return its exit status."""
    main = importlib.import_module("virnucpro.__main__").main
    request, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
    words, folder, variables = json.loads(request)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["virnucpro", *words]
    status = 0
    try:
        status = main() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def run_shell(code: str) -> str:
    """Run commands, and return what they print."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}:\n{done.stdout}")
    return done.stdout


def run_python(code: str, line: int, page: str, names: dict[str, Any]) -> str:
    """Run Python in the session, and return what it prints."""
    if file := FILE.match(code):
        for name in file[1].split(" and "):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(code, encoding="utf-8")
        return run_shell(file[2]) if file[2] else ""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        # With the line numbers of the page.
        exec(compile("\n" * line + code, page, "exec"), names)
    return printed.getvalue()


def run_blocks(job: dict[str, Any]) -> None:
    """Run the blocks of a job, and add what each printed."""
    session = sys.modules["__main__"] = ModuleType("__main__")
    names = session.__dict__
    for block in job["blocks"]:
        try:
            if block["language"] == "sh":
                block["printed"] = run_shell(block["code"])
            else:
                block["printed"] = run_python(block["code"], block["line"], job["page"], names)
        except BaseException:
            traceback.print_exc()
            sys.exit(f"the block at {job['page']}:{block['line']} failed")
    if job["check"]:
        path, name = job["check"]
        printed = [block["printed"] for block in job["blocks"]]
        runpy.run_path(path)[name](names, printed)


def main() -> None:
    """Run the job in the file that the first argument names, and write what blocks printed."""
    # Not the folder of the tests, but that of the session.
    sys.path[0] = ""
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        shell = "".join(block["code"] for block in job["blocks"] if block["language"] == "sh")
        if "virnucpro embed" not in shell:
            run_blocks(job)
        else:
            server = serve_commands(folder)
            os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
            try:
                run_blocks(job)
            finally:
                os.kill(server, signal.SIGTERM)
                os.waitpid(server, 0)
    path.write_text(json.dumps(job), encoding="utf-8")


if __name__ == "__main__":
    main()

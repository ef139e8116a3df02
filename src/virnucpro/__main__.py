"""The `virnucpro` command, also run as `python -m virnucpro`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

# What takes long to import is imported when signals are handled.
if TYPE_CHECKING:
    from types import FrameType

# Signals that end a process and can be handled: of a terminal, of schedulers and of limits.
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGXCPU")
# Bytes of memory that a limit must leave, also to run models. Libraries that lack it may crash.
MIN_MEMORY = 2**29
MIN_MODEL_MEMORY = 2**30
# What it must leave for the stacks of as many threads as there are cores.
THREADS_MEMORY = 2**32
# mallopt(3): the number of arenas, of which each reserves 64 MiB and each thread takes one.
M_ARENA_MAX = -8


def main() -> None:
    """Run the command line, or name the extra to install."""
    end_on_signals()
    hold_standard_streams()
    if not is_embedding():
        # No linear algebra is used, whose threads reserve memory and may fail to start.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):
        # A stream is None if it is closed. Text that it cannot encode is escaped.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    message = run()
    if message:
        if sys.stderr is not None:
            print(f"virnucpro: error: {message}", file=sys.stderr, flush=True)
        remove_unfinished()
        # Libraries that lack memory may crash at the exit.
        os._exit(2 if sys.argv[1:2] == ["verify"] else 1)


def is_embedding() -> bool:
    """Return whether the command is `embed`, which runs a model on all cores."""
    return sys.argv[1:2] == ["embed"]


def run() -> str | None:
    """Run the command line; return the message of an error that no command expects."""
    from virnucpro.extras import needing
    from virnucpro.memory import describe
    from virnucpro.text import shown

    try:
        keep_limits()
        with needing("the command line", "cli"):
            from virnucpro.cli import app
        app(prog_name="virnucpro")
    except (ModuleNotFoundError, OSError, SystemError) as error:
        return shown(error)
    except ImportError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return f"a library cannot be loaded ({shown(cause)})"
    except MemoryError as error:
        return describe(error)
    return None


def keep_limits() -> None:
    """Have libraries reserve little where memory is limited (`ulimit -v`), and check what is left.

    Raises:
        MemoryError: The limit leaves too little.
    """
    from virnucpro.memory import format_bytes, free_addresses

    available = min(free_addresses(), default=None)
    if available is None:
        return
    import ctypes

    if not is_embedding() or available < THREADS_MEMORY:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("ARROW_IO_THREADS", "1")
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    with suppress(AttributeError):
        # As set by MALLOC_ARENA_MAX, which glibc reads earlier; others have no arenas.
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    needed = MIN_MODEL_MEMORY if is_embedding() else MIN_MEMORY
    if available < needed:
        raise MemoryError(
            f"the limit (ulimit -v or -d) leaves {format_bytes(available)}, "
            f"at least {format_bytes(needed)} are needed"
        )


def hold_standard_streams() -> None:
    """Open what neither reads nor writes where a standard stream is closed.

    Otherwise, the next file that is opened would take its place.
    """
    for descriptor, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)


def end_on_signals() -> None:
    """Remove unfinished files when a signal ends the process; ignored signals stay ignored."""
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end)


def end(number: int, _frame: FrameType | None) -> None:
    """Remove unfinished files, say what is left, and end as if the signal were not handled."""
    remove_unfinished()
    if sys.stderr is not None and sys.stderr.isatty():
        # Clear the line of the progress display and show the cursor.
        os.write(sys.stderr.fileno(), b"\r\x1b[K\x1b[?25h")
    getattr(sys.modules.get("virnucpro.terminal"), "print_at_end", int)()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # The first process of a container is not ended by its own signals.
    os._exit(128 + number)


def remove_unfinished() -> None:
    """Remove unfinished files, if the module that makes them has been imported."""
    getattr(sys.modules.get("virnucpro.files.output"), "remove_all", int)()


if __name__ == "__main__":
    main()

"""Memory that is available to this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Bytes that are taken without asking what is available.
SMALL = 2**26
CGROUPS = Path("/sys/fs/cgroup")
# The files of a control group with its limit and its use, and its pages that can be reclaimed.
CGROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def check_memory(num_bytes: int, what: str) -> None:
    """Raise MemoryError if something that is `num_bytes` large exceeds the memory available.

    A process that takes more may be killed, without an error.
    """
    available = None if num_bytes < SMALL else available_memory()
    if available is not None and num_bytes > available:
        raise MemoryError(
            f"{what} need about {format_bytes(num_bytes)} of memory, "
            f"{format_bytes(available)} are available"
        )


def format_bytes(number: int) -> str:
    """Return a number of bytes in KiB, MiB or GiB."""
    if number < 2**20:
        return f"{number / 2**10:,.0f} KiB"
    return f"{number / 2**20:,.0f} MiB" if number < 2**30 else f"{number / 2**30:,.1f} GiB"


def describe(error: MemoryError) -> str:
    """Return the message of an error; libraries give what they asked for, or nothing."""
    return ": ".join(["out of memory", *filter(None, [str(error)])])


def available_memory() -> int | None:
    """Return the bytes that this process can still take; None where the system does not tell."""
    found = [*free_memory(), *free_addresses(), *free_in_cgroups()]
    return max(0, min(found)) if found else None


def free_memory() -> Iterator[int]:
    """Yield what the machine has."""
    numbers = read_numbers(Path("/proc/meminfo"))
    if "MemAvailable:" in numbers:
        yield 1024 * numbers["MemAvailable:"]


def free_addresses() -> Iterator[int]:
    """Yield what the limits on addresses and on data (`ulimit -v` and `-d`) leave."""
    used = read_numbers(Path("/proc/self/status"))
    if not used:
        return
    import resource

    for name, size in (("RLIMIT_AS", "VmSize:"), ("RLIMIT_DATA", "VmData:")):
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit != resource.RLIM_INFINITY:
            yield limit - 1024 * used[size]


def free_in_cgroups() -> Iterator[int]:
    """Yield what the limits of the control groups of this process leave."""
    for line in read_text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, name = line.split(":", 2)
        files = CGROUP_FILES.get(controllers)
        if files is None:
            continue
        group = Path(name.lstrip("/"))
        for folder in (group, *group.parents):
            at = CGROUPS / controllers / folder
            limit, used = (read_text(at / file).strip() for file in files[:2])
            if limit.isdecimal() and used.isdecimal():
                reclaimable = read_numbers(at / "memory.stat").get(files[2], 0)
                yield int(limit) - int(used) + reclaimable


def read_numbers(path: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number per line."""
    lines = (line.split() for line in read_text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def read_text(path: Path) -> str:
    """Return the text of a file; none if it cannot be read, as outside of Linux."""
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""

"""Runs the tasks of the Ray code in this process, one after another, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

MODULES = ("duplicates", "exchange", "pack", "ray_data", "reading")


def start(
    function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], **options: Any
) -> list[Any]:
    """Call a function for each tuple of arguments; check the number of its results."""
    results = [function(*values) for values in arguments]
    number = options.get("num_returns", 1)
    assert not isinstance(number, int) or number < 2 or {*map(len, results)} <= {number}
    return results


@contextmanager
def without_ray(task_bytes: int, max_ranges: int = 512) -> Iterator[None]:
    """Run tasks in this process, with so many bytes per task and ranges at most."""

    def same(value: Any) -> Any:
        return value

    fake = SimpleNamespace(
        put=same,
        get=same,
        wait=lambda refs, **_: (refs, []),
        cluster_resources=lambda: {"CPU": 2.0},
        data=SimpleNamespace(from_arrow_refs=same, Dataset=list),
    )
    with ExitStack() as stack:
        for name in MODULES:
            module = f"virnucpro.cluster.{name}"
            stack.enter_context(patch(f"{module}.ray", fake))
            stack.enter_context(patch(f"{module}.start", start, create=True))
        stack.enter_context(patch("virnucpro.cluster.tasks.start", start))
        stack.enter_context(patch("virnucpro.cluster.ray_data.execute", same))
        stack.enter_context(patch("virnucpro.cluster.ranges.TASK_BYTES", task_bytes))
        for name in ("ranges", "ray_data", "reading"):
            stack.enter_context(patch(f"virnucpro.cluster.{name}.MAX_RANGES", max_ranges))
        yield

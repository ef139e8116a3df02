"""Plans whose summary was forged are refused in one line, whichever way they are read."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from plans import SUFFIXES, read_table, sequences_of, with_values, write, write_table

from virnucpro.data import GreedyPacker, Layout, PackingPlan, TokenCounts
from virnucpro.files.plan_summary import encode_arrays
from virnucpro.files.tables import PLAN_KEY
from virnucpro.files.verify import verify_plan

NAMED = (ValueError, OSError, MemoryError, OverflowError)
DEEP = 100_000
# Values in JSON, of any place in a summary.
VALUES = {
    "deep list": "[" * DEEP + "]" * DEEP,
    "deep object": '{"a":' * DEEP + "1" + "}" * DEEP,
    "huge": "1" + "0" * 5000,
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "large float": "1e999",
    "long text": json.dumps("M" * 5_000_000),
    "long list": "[" + "1," * 100_000 + "1]",
    "long name": json.dumps({"k" * 5_000_000: 1}),
    "lone surrogate": '"\\ud800"',
    "commands": '"\\u001b[2Jx\\n"',
    "null": "null",
    "-1": "-1",
    "0": "0",
    "2**31": str(2**31),
    "2**62": str(2**62),
    "2**63 - 1": str(2**63 - 1),
    "2**63": str(2**63),
    "true": "true",
    "list": "[]",
    "object": "{}",
    "array": '{"int64": "AAAA"}',
    "no array": '{"int64": 7}',
    "array of -1": '{"int64": "//////////8="}',
    "array of 2**63 - 1": '{"int64": "/////////38="}',
}
# Those that are tried as the whole summary.
SUMMARIES = ("deep list", "deep object", "huge", "NaN", "long text", "long name", "null", "0")
PLACE = "here"


@pytest.fixture(scope="module", params=SUFFIXES)
def plan(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    path = tmp_path_factory.mktemp("plans") / f"plan{request.param}"
    sequences = sequences_of([5, 60, 33, 7, 7, 12], list("abcdef"))
    write(path, sequences, GreedyPacker(40, overlong="split"))
    return path


def places(part: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value in JSON."""
    for key in part if isinstance(part, dict) else range(len(part)):
        yield (*above, key)
        if isinstance(part[key], (dict, list)):
            yield from places(part[key], (*above, key))


def forge(plan: Path, place: tuple[Any, ...], value: str) -> Path:
    """Return a copy of a plan with another value, JSON, in a place of its summary."""
    table = read_table(plan)
    state = part = json.loads(table.schema.metadata[PLAN_KEY])
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = PLACE
    text = json.dumps(state).replace(json.dumps(PLACE), value)
    return with_text(plan, text)


def with_text(plan: Path, text: str | bytes) -> Path:
    """Return a copy of a plan with another summary."""
    path = plan.with_name(f"forged{plan.suffix}")
    write_table(path, read_table(plan).replace_schema_metadata({PLAN_KEY: text}))
    return path


def check_refusals(path: Path) -> int:
    """Read a plan in all ways; return how many refused it, after checking what they said."""
    messages = []
    for read in (PackingPlan.load, lambda path: verify_plan(path, None)):
        try:
            read(path)
        except NAMED as error:
            messages.append(str(error))
    for arguments in (["stats", path], ["report", path, "-o", path.with_suffix(".html")]):
        result = run(*arguments)
        if result.returncode:
            assert result.returncode == 1
            messages.append(result.stderr.rstrip("\n"))
    for message in messages:
        assert "\n" not in message
        assert message.isprintable()
        assert len(message) < 1500
    return len(messages)


@pytest.mark.parametrize("number", [15, pytest.param(10_000, marks=pytest.mark.long)])
def test_forged_values(plan: Path, number: int) -> None:
    """Each is refused by all, or is not used, or may be right."""
    state = json.loads(read_table(plan).schema.metadata[PLAN_KEY])
    cases = [(place, name) for place in places(state) for name in VALUES]
    for place, name in random.Random(plan.suffix).sample(cases, min(number, len(cases))):
        begin = time.monotonic()
        check_refusals(forge(plan, place, VALUES[name]))
        assert time.monotonic() - begin < 30, (place, name)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("limits", "max_tokens_per_batch"), "0"),
        (("limits", "max_tokens_per_batch"), "long list"),
        (("limits",), "deep object"),
        (("layout",), "deep list"),
        (("layout", "num_batches"), "array of 2**63 - 1"),
        (("layout", "num_batches"), "2**63 - 1"),
        (("layout", "counts", "num_truncated"), "array of -1"),
        (("layout", "counts", "sequences", "int64"), "long text"),
        (("layout", "runs", "per_batch"), "array of 2**63 - 1"),
        (("totals", "read"), "huge"),
        (("totals", "efficiency"), "NaN"),
        (("totals", "efficiency"), "large float"),
        (("options",), "long name"),
        (("inputs", 0, "name"), "lone surrogate"),
        (("inputs", 0, "name"), "long text"),
        (("inputs", 0, "sha256"), "long text"),
        (("version",), "long text"),
    ],
)
def test_refused_values(plan: Path, place: tuple[Any, ...], value: str) -> None:
    path = forge(plan, place, VALUES[value])
    with pytest.raises(NAMED, match=f"^{path}: "):
        PackingPlan.load(path)
    assert check_refusals(path) >= 3


@pytest.mark.parametrize("text", [b"", b"\0", b"\xff\xfe{}", *map(VALUES.get, SUMMARIES)])
def test_refused_summaries(plan: Path, text: str | bytes) -> None:
    assert check_refusals(with_text(plan, text)) == 4


def test_names_that_occur_twice(plan: Path) -> None:
    """Readers of JSON differ in which of the values they take."""
    text = read_table(plan).schema.metadata[PLAN_KEY].decode()
    for again in ('{"version": 5, ', '{"limits": {}, '):
        assert check_refusals(with_text(plan, again + text[1:])) == 4


def test_names_of_bytes_that_are_not_utf_8(plan: Path) -> None:
    path = forge(plan, ("inputs", 0, "name"), '"b\\udcff.fa"')
    assert run("stats", path, "--json").returncode == 0
    assert "is found neither from this folder" in run("verify", path).stderr
    assert run("report", path, "-o", path.with_suffix(".html")).returncode == 0


def test_large_layouts(plan: Path) -> None:
    """Nothing is allocated for batches that a layout has, but no row."""
    packer = GreedyPacker(40)
    state = {**packer.count([5]).to_dict(), "sequences": np.array([2**40])}
    layout = packer.lay_out(TokenCounts.from_dict(state))
    assert layout.num_batches > 2**36
    forged = forge(plan, ("layout",), json.dumps(encode_arrays(Layout.to_dict(layout))))
    tracemalloc.start()
    try:
        # Of its metadata, stats reads only the summary.
        assert check_refusals(forged) == 2
        (error,) = verify_plan(forged, None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "rows, expected 1,099,511,627,776" in error
    assert peak < 2**27


def test_large_batch_numbers(plan: Path) -> None:
    path = plan.with_name(f"forged{plan.suffix}")
    change = with_values("batch", lambda batches: [*batches[:-1], 2**31 - 1])
    write_table(path, change(read_table(plan)))
    result = run("report", path, "-o", path.with_suffix(".html"))
    assert result.returncode == 1
    assert "is 2,147,483,647, expected" in result.stderr
    assert any("missing batches: 2,147,483," in error for error in verify_plan(path, None))

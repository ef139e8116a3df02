"""Fuzzes what users pass in, odd objects included, against the reference.

Usage: fuzz_records.py [OPTION OF LIBFUZZER]... [CORPUS]...
"""

from __future__ import annotations

import gc
import logging
import operator
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import reference
from fragments import parts_of
from fuzz_draws import (
    CONTAINERS,
    ODD_CONTAINERS,
    Choices,
    draw_ids,
    draw_lengths,
    draw_parameters,
    draw_record,
    worst,
)
from fuzz_objects import OddError

from virnucpro.data import GreedyPacker

# What bad input may raise.
REFUSALS = (ValueError, TypeError, OverflowError)


def attempt(call: Callable[[], Any], verdict: str) -> Any:
    """Return the result of a call, or None if it refuses as it should or may."""
    try:
        result = call()
    except REFUSALS:
        assert verdict != "good"
        return None
    except OddError:
        assert verdict == "either"
        return None
    assert verdict != "bad"
    return result


def draw_packer(choices: Choices) -> tuple[GreedyPacker | None, dict[str, Any]]:
    """A packer, and the reference's parameters."""
    parameters = draw_parameters(choices)
    packer = attempt(lambda: GreedyPacker(**parameters.value), parameters.verdict)
    if packer is None:
        return None, {}
    plain = {name: n if n is None else operator.index(n) for name, n in parameters.meaning.items()}
    return packer, plain


def contents(record: Any) -> Any:
    """Return the identities that must not change."""
    if not isinstance(record, dict):
        return id(record)
    return [(id(key), id(value)) for key, value in dict.items(record)]


def check_records(choices: Choices) -> None:
    """Pack lists of dicts."""
    packer, parameters = draw_packer(choices)
    if packer is None:
        return
    are_texts = choices.below(4) > 0
    drawn = choices.several(lambda: draw_record(choices, are_texts))
    if drawn and choices.rarely():
        drawn.append(drawn[0])
    records = [record.value for record in drawn]
    ids, lengths = ([record.meaning[i] for record in drawn] for i in (0, 1))
    verdict = worst(drawn, ids)
    if choices.rarely():
        container, verdict = choices.one_of(ODD_CONTAINERS), "either"
    else:
        container = choices.one_of(CONTAINERS)
    if verdict == "either" and packer.overlong == "split":
        # A sequence that lies about its length has more fragments than fit in memory.
        return
    if verdict == "either":
        for call in (packer.pack_sequences, packer.sort_by_length):
            attempt(lambda call=call: call(container(records)), verdict)  # type: ignore[misc]
        attempt(lambda: packer.compute_efficiency([container(records)]), verdict)
        return

    before = list(map(contents, records))
    limit = reference.find_limit(**parameters)
    in_order = attempt(lambda: packer.sort_by_length(container(records)), verdict)
    if verdict == "good" and packer.overlong == "error" and max(lengths, default=0) > limit:
        verdict = "bad"
    parts = parts_of(lengths, limit, packer.overlong, packer.overlap)
    batches = attempt(lambda: packer.pack_sequences(container(records)), verdict)
    assert list(map(contents, records)) == before
    if in_order is not None:
        rows = sorted(range(len(records)), key=lambda row: (-lengths[row], ids[row]))
        assert list(map(id, in_order)) == [id(records[row]) for row in rows]
    if batches is None:
        return
    kept = [stop - start for _, start, stop in parts]
    expected = reference.first_fit_decreasing(
        kept, **parameters, ids=[ids[row] for row, _, _ in parts]
    )
    assert list(map(len, batches)) == list(map(len, expected))
    for batch, numbers in zip(batches, expected, strict=True):
        for record, (row, start, stop) in zip(batch, map(parts.__getitem__, numbers), strict=True):
            if lengths[row] <= limit:
                assert record is records[row]
                continue
            more = {"start": start, "stop": stop}
            if packer.overlong == "truncate":
                more = {"truncated": True}
            assert type(record) is dict
            assert record == {
                **records[row],
                "sequence": records[row]["sequence"][start:stop],
                **more,
            }
    tokens = sum(kept) + len(kept) * parameters["special_tokens"]
    room = len(batches) * parameters["max_tokens_per_batch"]
    assert packer.compute_efficiency(batches) == (tokens / room if room else 0.0)
    tokens = sum(map(packer.limits.tokens, lengths))
    verdict = "good" if tokens <= parameters["max_tokens_per_batch"] else "bad"
    attempt(lambda: packer.compute_efficiency([container(records)]), verdict)


def check_lengths(choices: Choices) -> None:
    """Pack arrays of lengths."""
    packer, parameters = draw_packer(choices)
    if packer is None:
        return
    lengths = draw_lengths(choices)
    limit, special_tokens = reference.find_limit(**parameters), parameters["special_tokens"]
    # Long ones have more fragments than fit in memory.
    if packer.overlong == "split" and (
        lengths.meaning is None or max(lengths.meaning, default=0) > 100 * limit
    ):
        return
    if lengths.meaning is None:
        attempt(lambda: packer.pack_lengths(lengths.value), lengths.verdict)
        attempt(lambda: packer.assign_batches(lengths.value), "either")
        return
    ids = draw_ids(choices, len(lengths.meaning))
    verdict = worst([lengths, ids])
    parts = parts_of(lengths.meaning, limit, packer.overlong, packer.overlap)
    kept = [stop - start for _, start, stop in parts]
    tokens = sum(kept) + len(kept) * special_tokens
    in_batches = sum(map(packer.limits.tokens, kept))
    cut = sum(max(0, n - limit) for n in lengths.meaning)
    if packer.overlong in ("drop", "split"):
        cut = 0
    if max(in_batches, cut) >= 2**63 or (packer.overlong == "error" and cut):
        verdict = "bad" if verdict == "good" else verdict
    plan = attempt(lambda: packer.pack_lengths(lengths.value, ids.value), verdict)
    if plan is None or ids.verdict == "either":
        return
    rows_of = [row for row, _, _ in parts]
    of_parts = None if ids.meaning is None else [ids.meaning[row] for row in rows_of]
    expected = reference.first_fit_decreasing(kept, **parameters, ids=of_parts)
    numbers = rows_of if packer.overlong == "drop" else range(len(parts))
    assert [rows.tolist() for rows in plan] == [[numbers[i] for i in batch] for batch in expected]
    assert (plan.total_tokens, plan.truncated_residues) == (tokens, cut)
    assert plan.num_rows == len(lengths.meaning)
    if packer.overlong == "split":
        fragments = [values.tolist() for values in plan.fragments or ()]
        has_long = max(lengths.meaning, default=0) > limit
        assert list(zip(*fragments, strict=True)) == (parts if has_long else [])
        return
    in_rows = reference.first_fit_decreasing(kept, **parameters)
    batch_of = {rows_of[i]: batch for batch, places in enumerate(in_rows) for i in places}
    slot_of = {rows_of[i]: slot for places in in_rows for slot, i in enumerate(places)}
    every = range(len(lengths.meaning))
    array = np.array(lengths.meaning, np.uint64)
    assert plan.slots(array[rows_of]).tolist() == [slot_of[row] for row in rows_of]
    out = choices.one_of([None, np.zeros(len(array), np.int64), np.zeros(len(array), ">i4"), array])
    verdict = "good" if out is None or out.dtype == np.int64 else "bad"
    batches = attempt(lambda: packer.assign_batches(array, out), verdict)
    assert batches is None or batches.tolist() == [batch_of.get(row, -1) for row in every]


def check(data: bytes) -> None:
    """Draw input from bytes and pack it."""
    choices = Choices(data)
    choices.one_of([check_records, check_records, check_lengths])(choices)


class Reader(logging.Handler):
    """Formats each message and discards it."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


# Modules in which a newly reached line makes an input worth keeping.
INSTRUMENTED = [
    "__main__",
    "fuzz_draws",
    "virnucpro.data.batch_totals",
    "virnucpro.data.layout",
    "virnucpro.data.methods",
    "virnucpro.data.packing",
    "virnucpro.data.plan",
    "virnucpro.data.records",
    "virnucpro.data.overlong",
    "virnucpro.kernel.arguments",
    "virnucpro.kernel.limits",
]


def main() -> None:
    import atheris

    logger = logging.getLogger("virnucpro")
    logger.addHandler(Reader())
    logger.propagate = False
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and function.__module__ in INSTRUMENTED:
            atheris.instrument_func(function)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

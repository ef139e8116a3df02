"""What docs/explanation/algorithm.md says of the layout: its drawing, and the bound on runs."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
from hypothesis import given
from numpy.typing import NDArray
from strategies import Case, cases

from virnucpro.data import GreedyPacker, Layout

DOCS = Path(__file__).parents[2] / "docs"


def runs_of(layout: Layout) -> list[NDArray[np.int64]]:
    """Return the runs of each size: first sequence, first batch, batches, per batch, first slot."""
    columns = layout.core.runs
    names = ("first_sequence", "first_batch", "num_batches", "per_batch", "first_slot")
    runs = np.stack([columns[name] for name in names], axis=1)
    return np.split(runs, layout.core.first_run[1:-1])


def number(how_many: int, what: str) -> str:
    return f"{how_many} {what}" if how_many == 1 else f"{how_many} {what}s"


def describe(first: int, num_batches: int) -> str:
    return f"batch {first}" if num_batches == 1 else f"batches {first} to {first + num_batches - 1}"


def draw(lengths: list[int], packer: GreedyPacker) -> str:
    """Draw how lengths become counts, counts become runs, and runs become rows."""
    counts = packer.count(lengths)
    layout = packer.lay_out(counts)
    plan = packer.pack_lengths(lengths)
    heading = f"{'counts':22}{'runs':38}free in batches with room"
    lines = [f"{'row':8}" + "".join(f"{row:3}" for row in range(len(lengths)))]
    lines += [f"{'length':8}" + "".join(f"{length:3}" for length in lengths), "", heading]
    free: list[int] = []
    for size, tokens in enumerate(counts.tokens.tolist()):
        first = f"{counts.sequences[size]} of {number(tokens, 'token')}"
        texts = []
        for _, batch, num_batches, per_batch, slot in runs_of(layout)[size].tolist():
            each = f"{per_batch} each" if num_batches > 1 else f"{per_batch}"
            texts.append(f"{describe(batch, num_batches)}: {each}, from slot {slot}")
            free += [packer.max_tokens_per_batch] * (batch + num_batches - len(free))
            for filled in range(batch, batch + num_batches):
                free[filled] -= per_batch * tokens
        rooms = []
        for room, neighbours in itertools.groupby(range(len(free)), free.__getitem__):
            group = list(neighbours)
            if room > 0:
                rooms.append(f"{describe(group[0], len(group))}: {room}")
        for columns in itertools.zip_longest([first], texts, rooms, fillvalue=""):
            lines.append("{:22}{:38}{}".format(*columns).rstrip())
    lines += ["", f"{'rows':22}tokens"]
    for batch, rows in enumerate(plan):
        tokens_of = [lengths[row] + packer.special_tokens for row in rows]
        boxes = "|".join(str(tokens) * tokens for tokens in tokens_of)
        left = packer.max_tokens_per_batch - sum(tokens_of)
        listed = " ".join(map(str, rows.tolist()))
        lines.append(f"{f'batch {batch}: {listed}':22}|{boxes}|{'.' * left}".rstrip())
    return "\n".join(lines)


def test_drawing_in_the_documentation_is_current() -> None:
    text = (DOCS / "explanation" / "algorithm.md").read_text(encoding="utf-8")
    found = re.search(
        r"drawn by tests/kernel/test_algorithm.py -->\n\n```text\n(.*?)\n```", text, re.DOTALL
    )
    lengths = [6, 1, 2, 1, 6, 1, 4, 1, 2, 6, 1, 1, 2, 6, 1]
    drawn = draw(lengths, GreedyPacker(10, special_tokens=0))
    assert found is not None
    assert found[1] == drawn


@given(cases())
def test_runs_are_bounded_by_sizes(case: Case) -> None:
    packer = GreedyPacker(**case.parameters)
    counts = packer.count(case.lengths)
    num_runs = sum(map(len, runs_of(packer.lay_out(counts))))
    num_sizes = len(counts.tokens)
    assert num_sizes <= num_runs <= min(num_sizes * (num_sizes + 1), len(case.lengths))

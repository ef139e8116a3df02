"""Compares batches of this project with those of other tools: padding, losses and seconds.

As a script, measures one of the ways on all data sets, and prints JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from data import DATA, Data
from first_fit import first_fit_tree, in_python, with_numba
from numpy.typing import NDArray
from results import Result, console, in_process, percent, table

from virnucpro.data import GreedyPacker

Tokens = NDArray[np.int32]
Prepared = Callable[[], Any]
SETS = ("E. coli", "viruses", "both", "1 million")
TOOLS = (
    "transformers",
    "fair-esm",
    "trl",
    "axolotl",
    "nemo-automodel",
    "lightbinpack",
    "binpacking",
    "numba",
)
# A way is called twice, and again until it has taken so many seconds; once if it takes longer.
ENOUGH = 1.5
MAX_SECONDS = 10
MAX_REPEATS = 25


@dataclass
class Batches:
    """Batches as the sizes of their sequences; `cut` sequences are in several of them."""

    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    cut: int = 0

    def __eq__(self, other: object) -> bool:
        """Return whether these are the same batches in the same order."""
        return isinstance(other, Batches) and (
            np.array_equal(self.sizes, other.sizes) and np.array_equal(self.offsets, other.offsets)
        )

    def contents(self) -> list[tuple[int, ...]]:
        """Return what each batch contains, in an order of its own."""
        pairs = itertools.pairwise(self.offsets.tolist())
        return sorted(tuple(sorted(self.sizes[begin:end].tolist())) for begin, end in pairs)


@dataclass(frozen=True)
class Way:
    """A way to make batches.

    `prepare` takes the tokens of each sequence and the data, runs outside the time measured, and
    returns a function without arguments that makes batches. `read` returns them as `Batches`.
    A model that is given padded batches computes the longest sequence for each; others are filled
    up to the budget, or else have as many tokens as they have.
    """

    prepare: Callable[[Tokens, Data], Prepared]
    read: Callable[[Any, Tokens], Batches]
    shape: str = "filled"
    at_most: int = 10_000_000


def from_lists(batches: Sequence[Sequence[int]], tokens: Tokens) -> Batches:
    """Read lists of rows."""
    rows = np.fromiter(itertools.chain.from_iterable(batches), np.int64)
    return Batches(tokens[rows].astype(np.int64), from_counts(map(len, batches)))


def from_counts(counts: Iterable[int]) -> NDArray[np.int64]:
    """Return the offsets of batches with so many entries."""
    return np.concatenate([[0], np.cumsum(np.fromiter(counts, np.int64))])


def from_numbers(numbers: NDArray[Any], tokens: Tokens) -> Batches:
    """Read a batch number for each row."""
    order = np.argsort(numbers, kind="stable")
    return Batches(tokens[order].astype(np.int64), from_counts(np.bincount(numbers)))


def from_plan(plan: Any, tokens: Tokens) -> Batches:
    """Read a plan of this project."""
    return Batches(tokens[plan.indices].astype(np.int64), np.asarray(plan.offsets))


def from_packed(dataset: Any, _: Tokens) -> Batches:
    """Read a data set packed by TRL, with the sizes of sequences."""
    lists = dataset.data.column("seq_lengths").combine_chunks()
    sizes = np.asarray(lists.flatten(), np.int64)
    return Batches(sizes, np.asarray(lists.offsets, np.int64) - lists.offsets[0].as_py())


def from_wrapped(dataset: Any, tokens: Tokens) -> Batches:
    """Read a data set wrapped by TRL, whose batches begin and end anywhere."""
    import pyarrow.compute as pc

    counts = pc.list_value_length(dataset.data.column("input_ids"))
    ends = np.cumsum(counts.to_numpy().astype(np.int64))
    of_sequences = np.cumsum(tokens, dtype=np.int64)
    inside = ends[~np.isin(ends, of_sequences)]
    cut = len(np.unique(np.searchsorted(of_sequences, inside)))
    return Batches(np.diff(ends, prepend=0), np.arange(len(ends) + 1), cut)


def ours(data: Data) -> GreedyPacker:
    """Return this project's packer, with a log handler that formats nothing."""
    logging.getLogger("virnucpro").addHandler(logging.NullHandler())
    return GreedyPacker(
        data.max_tokens_per_batch, data.max_sequence_length, special_tokens=data.special_tokens
    )


def pack_lengths(_: Tokens, data: Data) -> Prepared:
    """Prepare this project's plan with rows."""
    packer, lengths = ours(data), data.make()
    return lambda: packer.pack_lengths(lengths)


def assign_batches(_: Tokens, data: Data) -> Prepared:
    """Prepare this project's batch number per row."""
    packer, lengths = ours(data), data.make()
    return lambda: packer.assign_batches(lengths)


def every(size: int, order: Callable[[list[int]], Iterable[int]]) -> Any:
    """Return a `prepare` for `size` sequences per batch, in some order of their rows."""

    def prepare(tokens: Tokens, _: Data) -> Prepared:
        sizes = tokens.tolist()

        def batches() -> list[list[int]]:
            rows = list(order(sizes))
            return [rows[i : i + size] for i in range(0, len(rows), size)]

        return batches

    return prepare


def by_arrival(sizes: list[int]) -> Iterable[int]:
    """Return rows as they come."""
    return range(len(sizes))


def by_length(sizes: list[int]) -> Iterable[int]:
    """Return rows from the shortest sequence to the longest."""
    return sorted(range(len(sizes)), key=sizes.__getitem__)


def grouped(size: int) -> Any:
    """Return a `prepare` for `group_by_length` of transformers' Trainer."""

    def prepare(tokens: Tokens, data: Data) -> Prepared:
        from transformers.trainer_pt_utils import LengthGroupedSampler

        order = lambda sizes: LengthGroupedSampler(size, lengths=sizes)  # noqa: E731
        return every(size, order)(tokens, data)  # type: ignore[no-any-return]

    return prepare


def fair_esm(tokens: Tokens, data: Data) -> Prepared:
    """Prepare the batches of fair-esm's extract.py."""
    from esm.data import FastaBatchedDataset

    # It takes the length of each, and the two special tokens for one.
    sequences = [range(length) for length in (tokens - data.special_tokens).tolist()]
    dataset = FastaBatchedDataset([""] * len(sequences), sequences)
    return lambda: dataset.get_batch_indices(data.max_tokens_per_batch, extra_toks_per_seq=1)


def light_bin_pack(name: str) -> Any:
    """Return a `prepare` for a function of lightbinpack, which takes a list."""

    def prepare(tokens: Tokens, data: Data) -> Prepared:
        import lightbinpack

        function, sizes = getattr(lightbinpack, name), tokens.tolist()
        return lambda: function(sizes, data.max_tokens_per_batch)

    return prepare


def bin_packing(tokens: Tokens, data: Data) -> Prepared:
    """Prepare binpacking, which takes a dict."""
    import binpacking

    sizes = dict(enumerate(tokens.tolist()))
    return lambda: list(map(list, binpacking.to_constant_volume(sizes, data.max_tokens_per_batch)))


def axolotl(tokens: Tokens, data: Data) -> Prepared:
    """Prepare axolotl's sampler with the settings of its `sample_packing`."""
    from axolotl.utils.samplers.multipack import MultipackBatchSampler
    from torch.utils.data import RandomSampler

    def pack() -> list[list[int]]:
        sampler = MultipackBatchSampler(
            RandomSampler(range(len(tokens))),
            batch_size=1,
            batch_max_len=data.max_tokens_per_batch,
            lengths=tokens,
            bin_size=200,
        )
        return [rows for batch in sampler for rows in batch]

    MultipackBatchSampler([0], 1, 2, np.ones(1), 1).generate_batches()
    return pack


def neat_packing(tokens: Tokens, data: Data) -> Prepared:
    """Prepare the packing of NeMo AutoModel, which LLaMA-Factory calls neat packing."""
    from nemo_automodel.components.datasets.llm.neat_packing import greedy_knapsack

    sizes = tokens.tolist()
    return lambda: greedy_knapsack(sizes, data.max_tokens_per_batch)


def trl(strategy: str) -> Any:
    """Return a `prepare` for TRL, which packs the tokens themselves, a thousand rows at a time."""

    def prepare(tokens: Tokens, data: Data) -> Prepared:
        import datasets
        import pyarrow as pa
        from trl.data_utils import pack_dataset

        datasets.disable_progress_bars()
        offsets = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)]).astype(np.int32)
        values = np.zeros(offsets[-1], np.int32)
        table = pa.table({"input_ids": pa.ListArray.from_arrays(offsets, values)})
        dataset = datasets.Dataset(table)
        kept = {"load_from_cache_file": False}
        return lambda: pack_dataset(dataset, data.max_tokens_per_batch, strategy, kept)

    return prepare


WAYS = {
    "`pack_lengths`": Way(pack_lengths, from_plan),
    "`assign_batches`": Way(assign_batches, from_numbers),
    "transformers, 8 as they come": Way(every(8, by_arrival), from_lists, "padded"),
    "transformers, 16 as they come": Way(every(16, by_arrival), from_lists, "padded"),
    "transformers, `group_by_length`, 8": Way(grouped(8), from_lists, "padded"),
    "transformers, `group_by_length`, 16": Way(grouped(16), from_lists, "padded"),
    "transformers, 16 in order of length": Way(every(16, by_length), from_lists, "padded"),
    "transformers, `DataCollatorWithFlattening`, 16": Way(
        every(16, by_arrival), from_lists, "as they are"
    ),
    "fair-esm, `get_batch_indices(4096)`": Way(fair_esm, from_lists, "padded"),
    "TRL, `bfd`": Way(trl("bfd"), from_packed),
    "TRL, `wrapped`": Way(trl("wrapped"), from_wrapped),
    "axolotl, `sample_packing`": Way(axolotl, from_lists),
    "NeMo AutoModel, neat packing": Way(neat_packing, from_lists),
    "lightbinpack, `obfd`": Way(light_bin_pack("obfd"), from_lists),
    "lightbinpack, `ffd`": Way(light_bin_pack("ffd"), from_lists),
    "binpacking": Way(bin_packing, from_lists, at_most=10_000),
    "FFD with a tree, numba": Way(with_numba(first_fit_tree), from_numbers),
    "FFD with a tree, Python": Way(in_python, from_numbers),
}


def measure_one(name: str, quick: bool) -> dict[str, Any]:
    """Return what is measured of a way, by the name of the data set."""
    way, found = WAYS[name], {}
    for set_name in SETS:
        data = DATA.get("20 thousand" if quick and set_name == "1 million" else set_name)
        if data is None or len(tokens := data.tokens()) > way.at_most:
            continue
        call = way.prepare(tokens, data)
        seconds: list[float] = []
        batches: list[Batches] = []
        while sum(seconds) < ENOUGH or (len(seconds) < 2 and sum(seconds) < MAX_SECONDS):
            if len(seconds) == MAX_REPEATS:
                break
            begin = time.perf_counter()
            result = call()
            seconds.append(time.perf_counter() - begin)
            if len(batches) < 2:
                batches.append(way.read(result, tokens))
            del result
        found[set_name] = {"seconds": statistics.median(seconds), **describe(way, data, *batches)}
    return found


def describe(way: Way, data: Data, first: Batches, again: Batches | None = None) -> dict[str, Any]:
    """Return what the batches of a way are like, of one or two calls."""
    tokens = data.tokens()
    starts, ends = first.offsets[:-1], first.offsets[1:]
    held = np.add.reduceat(first.sizes, starts)
    computed = held
    if way.shape == "padded":
        computed = (ends - starts) * np.maximum.reduceat(first.sizes, starts)
    elif way.shape == "filled":
        computed = np.maximum(held, data.max_tokens_per_batch)
    exact = from_plan(pack_lengths(tokens, data)(), tokens)
    return {
        "batches": len(held),
        "padding": 1 - int(held.sum()) / int(computed.sum()),
        "largest": int(computed.max()),
        "mean": float(computed.mean()),
        "cut": first.cut,
        "lost": int(tokens.sum(dtype=np.int64)) - int(held.sum()),
        "same": again is None or first == again,
        "exact": len(exact.offsets) == len(first.offsets) and exact.contents() == first.contents(),
    }


def versions() -> Iterator[str]:
    """Yield the tools that are installed, with their versions."""
    for tool in TOOLS:
        with contextlib.suppress(PackageNotFoundError):
            yield f"{tool} {version(tool)}"


def rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the rows of the table of padding."""
    for name, sets in found.items():
        if isinstance(sets, str):
            yield [name, sets, *[""] * 7]
            continue
        of = sets.get("both") or sets["1 million"]
        yield [
            name,
            *(percent(sets[key]["padding"]) if key in sets else "" for key in SETS),
            f"{of['mean']:,.0f}, {of['largest']:,}",
            f"{of['cut']:,}",
            f"{of['lost']:,}",
            "yes" if all(one["same"] for one in sets.values()) else "no",
        ]


def times(found: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the rows of the table of seconds."""
    base = next(iter(found.values()))
    for name, sets in found.items():
        if isinstance(sets, str):
            continue
        cells = [name]
        for key in ("both", "1 million"):
            of = sets.get(key)
            cells += [
                f"{of['seconds'] / base[key]['seconds']:,.1f}" if of else "",
                f"{of['seconds']:.4f}" if of else "",
                f"{of['batches']:,}" if of else "",
            ]
        yield [*cells, "yes" if all(of["exact"] for of in sets.values()) else "no"]


def measure(quick: bool, _: Path) -> Result:
    """Measure all ways."""
    found: dict[str, Any] = {}
    for name in WAYS:
        console.print(name)
        # Processes of their own, since what one imports can slow down another.
        found[name] = attempt(name, quick) if quick else in_process("packers.py", name)
    lines = [
        f"Versions: {', '.join(versions())}.",
        "",
        *table(
            "batches | padding: E. coli | viruses | both | 1 million | "
            "tokens per batch: mean, largest | sequences cut | tokens lost | same again",
            rows(found),
        ),
        *table(
            "batches | times `pack_lengths`: both | seconds | number of batches | "
            "1 million | seconds | number of batches | exactly FFD",
            times(found),
        ),
    ]
    return Result(lines, figures(found))


def figures(found: dict[str, Any]) -> list[str]:
    """Return lines for the README."""
    if "both" not in DATA:
        return []
    both, million = (
        {name: sets[key] for name, sets in found.items() if isinstance(sets, dict) and key in sets}
        for key in ("both", "1 million")
    )
    padding = {name: percent(one["padding"]) for name, one in both.items()}
    by_length = "fair-esm, `get_batch_indices(4096)`"
    more = both[by_length]["batches"] / both["`pack_lengths`"]["batches"] - 1
    tools = {"lightbinpack, `ffd`": "lightbinpack", "axolotl, `sample_packing`": "axolotl"}
    slower = (
        f", {million[way]['seconds']:.2g} s with {tool}"
        for way, tool in {**tools, "TRL, `bfd`": "TRL's `pack_dataset`"}.items()
        if way in million
    )
    return [
        f"- Padding, of the tokens that a model computes for {len(DATA['both'].make()):,} real "
        f"proteins: {padding['transformers, 8 as they come']} in batches of 8 as they come, "
        f"{padding['transformers, 16 as they come']} in batches of 16, "
        f"{padding['`pack_lengths`']} in packed batches, all of one shape. fair-esm's batches in "
        f"order of length have {padding[by_length]}, but any shape, and are {percent(more)} more.",
        f"- A million lengths: {million['`pack_lengths`']['seconds']:.2g} s with `pack_lengths`"
        f"{''.join(slower)}.",
    ]


def attempt(name: str, quick: bool) -> dict[str, Any] | str:
    """Return what is measured of a way, or why it cannot be."""
    try:
        return measure_one(name, quick)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"


if __name__ == "__main__":
    logging.disable()
    print(json.dumps(attempt(sys.argv[1], quick=False)))

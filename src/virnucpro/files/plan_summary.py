"""The summary of a plan, which its file stores in the metadata."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virnucpro import kernel
from virnucpro.data.groups import counts_of_groups
from virnucpro.data.layout import Layout
from virnucpro.data.overlong import EMPTY, NO_SPLIT, OVERLONG, Split, count_split
from virnucpro.data.plan import PackingPlan
from virnucpro.files.fasta import ReadOptions
from virnucpro.files.sequences import InputFile, Sequences
from virnucpro.files.tables import PLAN_KEY
from virnucpro.kernel.limits import Limits
from virnucpro.text import quoted, shown

# The version of the summary's format, and that of plans with groups, or with both fragments and
# dropped rows, which version 5 does not have.
VERSION = 5
NEWER_VERSION = 6
# Maximum bytes of a summary: parsing takes many times its size.
MAX_BYTES = 2**28
# Maximum bytes of the name of an input file.
MAX_NAME = 2**15


@dataclass(frozen=True)
class Totals:
    """The totals of a plan and its input. Those that are not known are None.

    A plan that was saved without its input has no numbers of the changes made when reading, nor of
    duplicate IDs, nor of the residues of dropped sequences, nor of empty sequences if they may have
    been dropped, or if their size is that of others too.

    Attributes:
        read: Sequences read, packed or dropped.
        packed: Sequences in batches, whole, truncated or split.
        dropped: Sequences without a batch, because they were too long or, if those are dropped,
            empty.
        truncated: Sequences packed with only their first residues.
        split: Sequences packed as several fragments.
        fragments: Fragments of these sequences.
        empty: Sequences without residues.
        stops: Stops (``*``) removed when reading.
        lower_case: Lower-case letters converted to upper case when reading.
        gaps: Gaps removed when reading.
        insertions: Lower-case letters removed when reading.
        duplicate_ids: Sequences with the ID of an earlier sequence.
        residues: Residues read, whether kept, truncated or dropped.
        residues_kept: Residues in batches, each counted once.
        residues_repeated: Residues in batches again, because fragments overlap.
        residues_truncated: Residues removed from truncated sequences.
        residues_dropped: Residues of dropped sequences.
        tokens: Tokens in batches, including special tokens, not padding.
        batches: Number of batches.
        first_fit_batches: Number of batches by First-Fit Decreasing for the same sequences, in the
            same groups.
        efficiency: `tokens` divided by the sum of the budgets of all batches.
        lower_bound: Lower bound on the number of batches of any packing.
    """

    read: int
    packed: int
    dropped: int
    truncated: int
    split: int
    fragments: int
    empty: int | None
    stops: int | None
    lower_case: int | None
    gaps: int | None
    insertions: int | None
    duplicate_ids: int | None
    residues: int | None
    residues_kept: int
    residues_repeated: int
    residues_truncated: int
    residues_dropped: int | None
    tokens: int
    batches: int
    first_fit_batches: int
    efficiency: float
    lower_bound: int


@dataclass(frozen=True)
class Summary:
    """The summary of a plan, which its file stores in the metadata.

    A plan that was saved without its input (`PackingPlan.save`) has no method, options and inputs,
    unless it was loaded from a file that had them.

    Attributes:
        limits: The limits on batches and sequences.
        method: The packing method, "ffd" or "tight"; None if it is not known.
        overlong: How sequences above the limit were handled: "truncate", "error", "drop" or
            "split"; None if it is not known.
        overlap: Residues that neighboring fragments share.
        options: How the input was read; None if it is not known.
        totals: The totals of the plan and its input.
        inputs: The input files, in order.
        empty: How sequences without residues were handled: "pack" or "drop"; None if it is not
            known.
    """

    limits: Limits
    method: str | None
    overlong: str | None
    overlap: int
    options: ReadOptions | None
    totals: Totals
    inputs: list[InputFile]
    empty: str | None = "pack"

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the plan by name, as plain values."""
        return {
            **asdict(self.limits),
            "method": self.method,
            "overlong": self.overlong,
            "overlap": self.overlap,
            **({"empty": self.empty} if self.empty == "drop" else {}),
            **(asdict(self.options) if self.options else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values, with a version; `empty` only if it is "drop"."""
        state = {"version": VERSION, **asdict(self), "limits": self.limits.to_dict()}
        if self.empty != "drop":
            del state["empty"]
        return state

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Summary:
        """Return a summary from the result of `to_dict`.

        Raises:
            KeyError: A value is missing.
            TypeError: A value has the wrong type.
            ValueError: A value is not valid.
        """
        options = state["options"]
        summary = cls(
            limits=Limits.from_dict(state["limits"]),
            method=state["method"],
            overlong=state["overlong"],
            overlap=state["overlap"],
            options=None if options is None else ReadOptions(**options),
            totals=Totals(**{field.name: state["totals"][field.name] for field in fields(Totals)}),
            inputs=[InputFile(**file) for file in state["inputs"]],
            # A plan that was saved without its input has no parameters.
            empty=state.get("empty", None if state["overlong"] is None else "pack"),
        )
        check_values(summary)
        return summary

    def __reduce__(self) -> tuple[Any, ...]:
        return Summary.from_dict, (self.to_dict(),)


def summarize(plan: PackingPlan) -> Summary:
    """Return the summary of a plan without its input."""
    if plan.summary is not None:
        return plan.summary
    return Summary(
        limits=plan.limits,
        method=None,
        overlong=None,
        overlap=0,
        options=None,
        totals=totals_of(plan, len(plan.dropped), count_split(plan.fragments)),
        inputs=[],
        empty=None,
    )


def totals_of(layout: Layout, num_dropped: int = 0, split: Split = NO_SPLIT) -> Totals:
    """Return the totals that are known without the input."""
    counts, repeated = layout.core.counts, split.residues_repeated
    num_rows = layout.num_sequences - split.fragments + split.sequences
    # Rounded up, short sequences may have as many tokens as empty ones.
    size_of_empty, next_size = layout.limits.tokens(0), layout.limits.tokens(1)
    num_empty = int(counts.sequences[counts.tokens == size_of_empty].sum())
    is_known = size_of_empty < next_size and not (num_dropped and num_empty == 0)
    kept = layout.total_tokens - layout.special_tokens * layout.num_sequences - repeated
    return Totals(
        read=num_rows + num_dropped,
        packed=num_rows,
        dropped=num_dropped,
        truncated=layout.num_truncated,
        split=split.sequences,
        fragments=split.fragments,
        empty=num_empty if is_known else None,
        stops=None,
        lower_case=None,
        gaps=None,
        insertions=None,
        duplicate_ids=None,
        residues=None if num_dropped else kept + layout.truncated_residues,
        residues_kept=kept,
        residues_repeated=repeated,
        residues_truncated=layout.truncated_residues,
        residues_dropped=None if num_dropped else 0,
        tokens=layout.total_tokens,
        batches=layout.num_batches,
        first_fit_batches=sum(
            kernel.first_fit_decreasing(of_group).num_batches
            for of_group in counts_of_groups(layout.core, layout.limits, layout.group_offsets)
        ),
        efficiency=layout.efficiency,
        lower_bound=layout.lower_bound,
    )


def compute_totals(plan: PackingPlan, sequences: Sequences, duplicate_ids: int) -> Totals:
    """Return the totals of a plan for sequences that were read."""
    lengths = sequences.lengths
    return replace(
        totals_of(plan, len(plan.dropped), count_split(plan.fragments)),
        **asdict(sequences.changes),
        empty=int((lengths == 0).sum()),
        duplicate_ids=duplicate_ids,
        residues=int(lengths.sum()),
        residues_dropped=int(lengths[plan.dropped].sum()),
    )


def encode_summary(
    summary: Summary, layout: Layout, checksums: dict[str, NDArray[np.int64]] | None = None
) -> dict[bytes, str]:
    """Return the metadata of a plan file, with the checksums of its rows if they are known."""
    state = {**summary.to_dict(), "layout": encode_arrays(Layout.to_dict(layout))}
    if layout.group_offsets is not None or (summary.totals.split and summary.totals.dropped):
        state["version"] = NEWER_VERSION
    if checksums is not None:
        state["checksums"] = encode_arrays(checksums)
    text = json.dumps(state)
    if len(text) > MAX_BYTES:
        raise ValueError(
            f"the layout is too large for a plan file: {len(layout.core.runs['per_batch']):,} runs "
            f"of batches make a summary of {len(text):,} bytes, more than {MAX_BYTES:,}"
        )
    return {PLAN_KEY: text}


def decode_summary(path: str | PathLike[str], metadata: Any) -> tuple[Summary, dict[str, Any]]:
    """Return the summary in the metadata of a plan file, and all that is stored with it.

    Raises:
        ValueError: The metadata has no summary, or one that is damaged or of another version.
    """
    text = (metadata or {}).get(PLAN_KEY, b"")
    if len(text) > MAX_BYTES:
        raise not_a_plan(path, f"its summary has {len(text):,} bytes, more than {MAX_BYTES:,}")
    try:
        state: dict[str, Any] = json.loads(text, object_pairs_hook=unique)
        version = state["version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise not_a_plan(path, "no summary in its metadata") from error
    if version not in (4, VERSION, NEWER_VERSION):
        raise ValueError(
            f"{shown(path)}: plan file of version {quoted(version)} "
            f"(this release reads versions 4 to {NEWER_VERSION})"
        )
    if version == 4:
        state = upgrade(state)
    try:
        return Summary.from_dict(state), state
    except KeyError as error:
        raise not_a_plan(path, f"no {error} in its summary") from error
    except (TypeError, ValueError) as error:
        raise not_a_plan(path, str(error)) from error


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; raise ValueError if a name occurs twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name occurs twice")
    return values


def upgrade(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a plan file of version 4 with what later ones have."""
    totals = state.get("totals")
    if isinstance(totals, dict):
        totals = {"split": 0, "fragments": 0, "residues_repeated": 0, **totals}
    return {"overlap": 0, **state, "totals": totals}


def decode_layout(path: str | PathLike[str], state: dict[str, Any]) -> Layout:
    """Return the layout that is stored with a summary.

    Raises:
        ValueError: It is missing or damaged.
    """
    try:
        return Layout.from_dict(decode_arrays(state["layout"]))
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise not_a_plan(path, f"its layout: {error}") from error
    except RecursionError as error:
        raise not_a_plan(path, "its layout is nested too deeply") from error


def decode_checksums(
    path: str | PathLike[str], state: dict[str, Any]
) -> dict[str, NDArray[np.int64]] | None:
    """Return the checksums that are stored with a summary, by column; None if there are none.

    Raises:
        ValueError: They are damaged.
    """
    try:
        checksums = decode_arrays(state.get("checksums"))
    except (TypeError, ValueError, RecursionError) as error:
        raise not_a_plan(path, "its checksums cannot be read") from error
    if checksums is None:
        return None
    if not isinstance(checksums, dict) or not all(
        isinstance(values, np.ndarray) for values in checksums.values()
    ):
        raise not_a_plan(path, "its checksums are not numbers")
    return checksums


def not_a_plan(path: str | PathLike[str], reason: str) -> ValueError:
    """Return the error for a file that is not a plan file."""
    return ValueError(f"{shown(path)}: not a plan file ({shown(reason)})")


# The types of the fields of `Totals` and `InputFile`; JSON may turn a float into an int.
FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (float, int),
    "str": (str,),
}


def check_values(summary: Summary) -> None:
    """Raise TypeError or ValueError if a value in a summary read from a file is not valid."""
    parts: list[Totals | InputFile] = [summary.totals, *summary.inputs]
    for part in parts:
        for field in fields(part):
            value = getattr(part, field.name)
            if type(value) not in FIELD_TYPES[str(field.type)]:
                raise TypeError(f"invalid {field.name} {quoted(value)}")
            if isinstance(value, (int, float)) and not 0 <= value < 2**63:
                raise ValueError(f"invalid {field.name} {quoted(value)}")
            if isinstance(value, str) and not is_name(value):
                raise ValueError(f"invalid {field.name} {quoted(value)}")
    if summary.method not in (None, "ffd", "tight"):
        raise ValueError(f"invalid method {quoted(summary.method)}")
    if summary.overlong not in (None, *OVERLONG):
        raise ValueError(f"invalid overlong {quoted(summary.overlong)}")
    if summary.empty not in (None, *EMPTY):
        raise ValueError(f"invalid empty {quoted(summary.empty)}")
    if type(summary.overlap) is not int or not 0 <= summary.overlap < summary.limits.max_residues:
        raise ValueError(f"invalid overlap {quoted(summary.overlap)}")


def is_name(text: str) -> bool:
    """Return whether a text may be the name of a file; bytes that are not UTF-8 are surrogates."""
    try:
        return len(text.encode("utf-8", "surrogateescape")) <= MAX_NAME
    except UnicodeEncodeError:
        return False


def encode_arrays(value: Any) -> Any:
    """Return a dict for JSON, with its int64 arrays encoded in Base64."""
    if isinstance(value, np.ndarray):
        return {"int64": base64.b64encode(value.astype("<i8").tobytes()).decode()}
    if isinstance(value, dict):
        return {name: encode_arrays(part) for name, part in value.items()}
    return value


def decode_arrays(value: Any) -> Any:
    """Return the dict that `encode_arrays` encoded."""
    if isinstance(value, dict) and value.keys() == {"int64"}:
        return np.frombuffer(base64.b64decode(value["int64"]), "<i8").astype(np.int64)
    if isinstance(value, dict):
        return {name: decode_arrays(part) for name, part in value.items()}
    return value

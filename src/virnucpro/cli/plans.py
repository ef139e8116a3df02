"""The commands on plans: `stats`, `verify` and `report`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from virnucpro.cli.options import Plan, Quiet
from virnucpro.terminal import (
    exit_on_error,
    format_value,
    log_to_stderr,
    make_table,
    print_error,
    print_message,
    print_output,
    progress_display,
)
from virnucpro.text import shown


def stats(
    plan: Annotated[
        str,
        typer.Argument(
            metavar="PLAN", help="Plan written by `pack`, or folder written by `embed`, or a URI."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print all fields as JSON.")] = False,
    as_tsv: Annotated[
        bool, typer.Option("--tsv", help="Print parameters and totals as tab-separated values.")
    ] = False,
) -> None:
    """Print the summary of a plan, or of embeddings and the parts that are complete.

    Reads only the metadata of the files.
    """
    if as_json and as_tsv:
        raise typer.BadParameter("--json and --tsv are mutually exclusive")
    from virnucpro.files.embedding_parts import find_parts, is_embeddings
    from virnucpro.files.embeddings import flatten
    from virnucpro.files.plan_reader import read_summary
    from virnucpro.jobs.labels import label_totals

    with exit_on_error():
        if is_embeddings(plan):
            parts = find_parts(plan)
            of_parts = {
                "parts": parts[0].num_parts,
                "complete": len(parts),
                "failed": sum(len(part.failed) for part in parts),
                "unknown": sum(part.num_unknown for part in parts),
            }
            state = {"summary": parts[0].summary.to_dict(), **of_parts}
            if as_json:
                print_output(json.dumps(state, indent=2))
            elif as_tsv:
                lines = (f"{name}\t{format_value(value)}" for name, value in flatten(state))
                print_output("\n".join(lines))
            else:
                labels = label_totals(parts[0].summary.totals)
                labels["Unknown residues"] = f"{of_parts['unknown']:,}"
                labels["Failed sequences"] = f"{of_parts['failed']:,}"
                labels["Parts"] = f"{len(parts):,} of {parts[0].num_parts:,}"
                print_output(make_table(labels))
            return
        summary = read_summary(plan)
        if as_json:
            print_output(json.dumps(summary.to_dict(), indent=2))
        elif as_tsv:
            values = {**summary.parameters, **asdict(summary.totals)}
            lines = (f"{name}\t{format_value(value)}" for name, value in values.items())
            print_output("\n".join(lines))
        else:
            print_output(make_table(label_totals(summary.totals)))


def verify(
    plan: Plan,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...",
            help="The input of the plan, in the same order.  [default: the files it was made of]",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Verify a plan against its input.

    Re-reads the input and checks that the plan contains each sequence exactly once, as in the
    input; that batches are within the limits and, with --method ffd, are those of First-Fit
    Decreasing; and that the totals are correct. A plan without names of its input, which
    `PackingPlan.save` wrote, is checked as far as it can be.

    Prints one line per error found. Exits with status 1 if there are any, and with status 2 if the
    plan or its input cannot be read.
    """
    from virnucpro.files.fasta import ReadOptions
    from virnucpro.files.inputs import find_inputs, total_size
    from virnucpro.files.places import is_regular, is_uri
    from virnucpro.files.plan_reader import open_plan
    from virnucpro.files.sequences import read_files
    from virnucpro.files.verify import verify_plan

    with exit_on_error(status=2):
        file = open_plan(plan)
        plan = file.name
        names = inputs or [recorded.name for recorded in file.summary.inputs]
        for name in names if not inputs else ():
            if name == "-" or not (is_uri(name) or is_regular(name)):
                found = "is standard input" if name == "-" else "is not found from this folder"
                raise FileNotFoundError(
                    f"{shown(name)}: an input of {shown(plan)}, {found}; give the inputs after PLAN"
                )
        sequences = None
        if names:
            has_residues = "sequence" in file.schema.names
            options = file.summary.options or ReadOptions()
            with log_to_stderr(quiet), progress_display(quiet) as progress:
                found_inputs = find_inputs(names)
                size = total_size(found_inputs)
                sequences = read_files(
                    [each.path for each in found_inputs],
                    options,
                    lambda done: progress("reading", done, size),
                    has_residues,
                )
        findings = verify_plan(file.origin, sequences)
    for finding in findings:
        print_error(f"{shown(plan)}: {finding}")
    if findings:
        raise typer.Exit(1)
    if not quiet:
        number = f"{file.summary.totals.read:,} sequences"
        print_message(f"{shown(plan)}: OK ({number}{'' if names else ', without its input'})")


def report(
    plan: Plan,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="HTML", help="HTML file to write, or its URI.")
    ],
) -> None:
    """Write an HTML report on a plan.

    The report contains the summary, and plots of sequence lengths, batch fill and sequences per
    batch.
    """
    from virnucpro.files.places import name_of
    from virnucpro.jobs.report import write_report

    with exit_on_error():
        write_report(plan, output)
    print_message(f"Report written to {shown(name_of(output))}")

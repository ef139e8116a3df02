"""The commands on plans: `stats`, `verify` and `report`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from virnucpro.cli import options as shared
from virnucpro.cli.hints import hinting
from virnucpro.cli.options import OUTPUT
from virnucpro.cli.program import Helped, argument, option
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


@click.command(
    cls=Helped,
    examples="""
virnucpro stats plan.parquet

# One value for a script.
virnucpro stats plan.parquet --tsv | awk '$1 == "efficiency" { print $2 }'

# How far embeddings are.
virnucpro stats out --json
""",
    statuses=(
        "The summary is printed.",
        "The plan or the embeddings cannot be read.",
        "The command is not valid.",
    ),
)
@argument(
    "plan",
    metavar="PLAN",
    help="A plan that `virnucpro pack` wrote, a folder that `virnucpro embed` wrote, or the URI of "
    "one.",
)
@option("--json", "as_json", is_flag=True, group=OUTPUT, help="Print all fields as JSON.")
@option(
    "--tsv",
    "as_tsv",
    is_flag=True,
    group=OUTPUT,
    help="Print parameters and totals as lines of a name, a tab and a value.",
)
def stats(plan: str, as_json: bool, as_tsv: bool) -> None:
    """Print the summary of a plan or of embeddings.

    Reads only the metadata of the files. Of embeddings, also shows how many parts are complete.
    """
    if as_json and as_tsv:
        raise click.UsageError("--json and --tsv exclude each other: give one of them")
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
        with hinting(plan):
            summary = read_summary(plan)
        if as_json:
            print_output(json.dumps(summary.to_dict(), indent=2))
        elif as_tsv:
            values = {**summary.parameters, **asdict(summary.totals)}
            lines = (f"{name}\t{format_value(value)}" for name, value in values.items())
            print_output("\n".join(lines))
        else:
            print_output(make_table(label_totals(summary.totals)))


@click.command(
    cls=Helped,
    examples="""
virnucpro verify plan.parquet

# The input has moved.
virnucpro verify plan.parquet archive/proteins.fasta

# In a script.
virnucpro verify plan.parquet --quiet || echo 'the plan does not fit'
""",
    statuses=(
        "The plan is correct.",
        "It has errors, which are printed, one per line.",
        "The plan or its input cannot be read, or the command is not valid.",
    ),
)
@shared.plan_argument
@argument(
    "inputs",
    nargs=-1,
    metavar="[INPUT]...",
    help="The input of the plan, in the same order. [default: the files that the plan names, from "
    "this folder, or from that of the plan and those above it]",
)
@option(
    "--json",
    "as_json",
    is_flag=True,
    group=OUTPUT,
    help="Print the plan, its number of sequences and the errors as JSON on stdout.",
)
@shared.quiet
def verify(plan: str, inputs: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Verify a plan against its input.

    Re-reads the input and checks that the plan contains each sequence exactly once, as in the
    input; that batches are within the limits and, with --method ffd, are those of First-Fit
    Decreasing; and that the totals are correct. A plan without names of its input, which
    `PackingPlan.save` wrote, is checked as far as it can be.
    """
    from virnucpro.files.fasta import ReadOptions
    from virnucpro.files.inputs import find_inputs, total_size
    from virnucpro.files.plan_reader import open_plan
    from virnucpro.files.recorded import find_recorded
    from virnucpro.files.sequences import read_files
    from virnucpro.files.verify import verify_plan

    with exit_on_error(status=2):
        with hinting(plan):
            file = open_plan(plan)
        plan = file.name
        try:
            if not inputs and any(each.name == "-" for each in file.summary.inputs):
                raise FileNotFoundError(f"{shown(plan)}: its input - is standard input")
            names = list(inputs) or find_recorded(file)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; give the inputs after PLAN") from error
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
        hashes = [each.sha256 for each in file.summary.inputs]
        found = [each.sha256 for each in sequences.inputs] if sequences else hashes
        if found != hashes and sorted(found) == sorted(hashes):
            errors = ["its inputs are given in another order"]
        else:
            errors = verify_plan(file.origin, sequences)
        number = file.summary.totals.read
        if as_json:
            result = {"plan": plan, "sequences": number, "errors": errors}
            print_output(json.dumps(result, indent=2))
    for fault in errors:
        print_error(f"{shown(plan)}: {fault}")
    if errors:
        raise click.exceptions.Exit(1)
    if not quiet:
        without = "" if names else ", without its input"
        print_message(f"{shown(plan)}: OK ({number:,} sequences{without})")


@click.command(
    cls=Helped,
    examples="virnucpro report plan.parquet -o report.html",
    statuses=(
        "The report is written.",
        "The plan cannot be read, or the report cannot be written.",
        "The command is not valid.",
    ),
)
@shared.plan_argument
@option(
    "-o",
    "--output",
    metavar="HTML",
    required=True,
    group=OUTPUT,
    help="The HTML file to write, or its URI.",
)
@option(
    "--json",
    "as_json",
    is_flag=True,
    group=OUTPUT,
    help="Print the names of the plan and of the report as JSON on stdout.",
)
@shared.quiet
def report(plan: str, output: str, as_json: bool, quiet: bool) -> None:
    """Write an HTML report on a plan.

    The report begins with the padding that is avoided and the residues that were lost, lists the
    sequences that lost most, and has plots of lengths, fill and sequences per batch.
    """
    from virnucpro.files.places import file_name, name_of
    from virnucpro.jobs.report import write_report

    shared.check_name(output, "a report is a file, such as report.html")
    if not file_name(output).lower().endswith((".html", ".htm")):
        raise click.UsageError(
            f"{shown(name_of(output))}: a report must have the suffix .html, such as report.html"
        )
    with exit_on_error():
        with hinting(plan):
            write_report(plan, output)
        if not quiet:
            print_message(f"Report written to {shown(name_of(output))}")
        if as_json:
            names = {"plan": name_of(plan), "report": name_of(output)}
            print_output(json.dumps(names, indent=2))

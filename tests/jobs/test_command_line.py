"""How the command line is used: help, numbers, mistakes and what to type instead, JSON."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import run
from fasta import fasta
from hypothesis import given
from hypothesis import strategies as st

import virnucpro
from virnucpro.cli import app
from virnucpro.cli.hints import kind_of
from virnucpro.cli.program import Helped, count, name_of, wrap
from virnucpro.terminal import FLAGS, OPTIONS, with_options

COMMANDS = sorted(app.commands)
PROTEINS = [("b", "MKTAYIAKQR" * 30), ("a", "MKTAYIAKQR" * 30), ("long", "MKTAY" * 300)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what commands work on and may be confused."""
    monkeypatch.chdir(tmp_path)
    Path("proteins.fasta").write_bytes(fasta(PROTEINS))
    Path("no_suffix").write_bytes(fasta(PROTEINS))
    Path("proteomes").mkdir()
    Path("proteomes/first.fasta.gz").write_bytes(gzip.compress(fasta(PROTEINS)))
    Path("archive").mkdir()
    shutil.copy("proteins.fasta", "archive")
    Path("out").mkdir()
    Path("out/part-00000-of-00001.parquet").touch()
    assert run("pack", "proteins.fasta", "-o", "plan.parquet").returncode == 0
    return tmp_path


def command_of(name: str) -> Helped:
    command = app.commands[name]
    assert isinstance(command, Helped)
    return command


def test_help_and_version() -> None:
    for name in COMMANDS:
        for words in (["-h"], [name, "-h"], [name, "--help"]):
            result = run(*words)
            assert (result.returncode, result.stderr) == (0, "")
            assert "Usage: virnucpro" in result.stdout
    assert run("--version").stdout == f"virnucpro {virnucpro.__version__}\n"
    assert run().stdout == run("-h").stdout


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help_is_whole_sentences_in_80_columns(words: list[str]) -> None:
    text = run(*words, "-h").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"<\w+>|\[required\]|\.\.\.$|\w-$|INTEGER|TEXT", text, re.MULTILINE)
    command = command_of(words[0]) if words else app
    for rows in command.lists(click.Context(command)).values():
        for name, sentence in rows:
            sentence = re.sub(r" \[default: [^]]+\]$", "", sentence)
            # Each option is shown with its whole text.
            assert sentence.endswith(".")
            assert name in text
            assert " ".join(sentence.split()) in " ".join(text.split())


@given(st.lists(st.sampled_from(["--max-length", "lower-case", "a", "-"]), min_size=1))
def test_lines_of_the_help_break_between_words(words: list[str]) -> None:
    assert wrap(" ".join(words), 20).split() == words


def test_choices_are_in_the_help() -> None:
    for name in COMMANDS:
        for param in app.commands[name].params:
            if isinstance(param.type, click.Choice):
                text = str(getattr(param, "help", ""))
                assert all(choice in text for choice in param.type.choices), param.opts


@pytest.mark.process
@pytest.mark.parametrize("name", sorted({"pack", "stats", "verify", "report"} & set(COMMANDS)))
def test_examples_run(name: str, folder: Path) -> None:
    """Those of `embed` are run in tests/embed."""
    program = folder / "bin" / "virnucpro"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m virnucpro "$@"\n')
    program.chmod(0o755)
    shutil.rmtree("out")
    examples = "".join(
        line.replace("stats out", "stats plan.parquet") + "\n"
        for line in command_of(name).examples.splitlines()
    )
    assert "virnucpro " in examples
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", "-ec", examples], check=True, env=environment)


@given(st.integers(-(10**12), 10**12))
def test_numbers_are_read_in_each_way_to_write_them(number: int) -> None:
    for text in (f"{number}", f"{number:,}", f"{number:_}", f" {number} "):
        assert count(text) == number
    for suffix, times in (("k", 1024), ("K", 1024), ("m", 1024**2), ("M", 1024**2)):
        assert count(f"{number}{suffix}") == number * times
        assert count(f"{number:,}{suffix}") == number * times


@pytest.mark.parametrize(
    "text",
    ["", "k", "1.5k", "4e3", "16kb", "1,6", "1,23,456", "16 k", "1__0", "0x10", "١٦", "9" * 5000],
)
def test_other_texts_are_no_numbers(text: str) -> None:
    with pytest.raises(click.BadParameter, match="must be a whole number, such as 4096 or 16k"):
        count(text)


@pytest.mark.usefixtures("folder")
def test_numbers_reach_the_plan() -> None:
    words = "--max-tokens 16k --max-length 1,022 --max-sequences 1_000 --multiple-of 8"
    result = run("pack", "proteins.fasta", "-o", "plan.arrow", *words.split(), "--json", "-q")
    assert json.loads(result.stdout)["limits"] == {
        "max_tokens_per_batch": 16384,
        "max_sequence_length": 1022,
        "special_tokens": 2,
        "max_sequences_per_batch": 1000,
        "multiple_of": 8,
    }


# What is typed, the error, and its end, if that is not how to get help.
MISTAKES = """
pack | INPUT is missing (usage: virnucpro pack INPUT... -o PLAN [OPTIONS])
pack a.fa | -o PLAN is missing (usage: virnucpro pack INPUT... -o PLAN [OPTIONS])
pack a.fa -o | option '-o' requires an argument
pack a.fa -o - | -o - is not possible: a plan is a file, such as plan.parquet
'' | no such command: ''
pack a.fa -o '' | -o '' is not possible: a plan is a file, such as plan.parquet
pack a.fa -o x.csv | x.csv: a plan file must have the suffix .parquet or .arrow
pack a.fa -o plan | plan: a plan file must have the suffix .parquet or .arrow
pack a.fa -o /dev/null | /dev/null: a plan file must have the suffix .parquet or .arrow
pack a.fa -o plan/ | plan/: a folder, which needs --engine ray
pack a.fa -o b.arrow --max-tokens 2 | --max-tokens must leave room for one residue and 2 special \
tokens (got 2)
pack a.fa -o b.arrow --max-tokens many | --max-tokens must be a whole number, such as 4096 or 16k \
(got 'many')
pack a.fa -o b.arrow --max-length 0 | --max-length must be at least 1 (got 0)
pack a.fa -o b.arrow --max-sequences 0 | --max-sequences must be at least 1 (got 0)
pack a.fa -o b.arrow --threads 0 | --threads must be at least 1 (got 0)
pack a.fa -o b.arrow --threads 2 --engine ray | --threads has no effect with --engine ray: leave \
it out
pack a.fa -o b.arrow --overlong cut | --overlong must be truncate, error, drop or split (got 'cut')
pack a.fa -o b.arrow --overlap 5 | --overlap must be 0 unless --overlong split (got 5)
pack a.fa -o b.arrow --overlong split --overlap 1022 | --overlap must be at most 1,021 (got 1022)
pack a.fa -o b.arrow --max-token 16k | no such option: --max-token; did you mean --max-tokens?
pack a.fa -o b.arrow --quiet=yes | option '--quiet' does not take a value
stats | PLAN is missing (usage: virnucpro stats PLAN [OPTIONS])
stats a.parquet b.parquet | got unexpected extra argument (b.parquet)
stats a.parquet --json --tsv | --json and --tsv exclude each other: give one of them
verify | PLAN is missing (usage: virnucpro verify PLAN [INPUT]... [OPTIONS])
report a.parquet | -o HTML is missing (usage: virnucpro report PLAN -o HTML [OPTIONS])
report a.parquet -o - | -o - is not possible: a report is a file, such as report.html
report a.parquet -o x.txt | x.txt: a report must have the suffix .html, such as report.html
embed a.fa -o out | --model MODEL is missing (usage: virnucpro embed INPUT... --model MODEL -o \
FOLDER [OPTIONS])
embed a.fa -o - --model m | -o - is not possible: embeddings are a folder of Parquet files
embed a.fa -o e.parquet --model m | e.parquet: embeddings are a folder of Parquet files, so leave \
out .parquet
embed a.fa -o e --model m --threads 0 | --threads must be at least 1 (got 0)
embed a.fa -o e --model m --dtype int8 | --dtype must be float32, bfloat16 or float16 (got 'int8')
pak | no such command: pak; did you mean pack?
unpack | no such command: unpack; did you mean pack?
elephant | no such command: elephant
proteins.fasta | no such command: proteins.fasta; did you mean `virnucpro pack proteins.fasta -o \
plan.parquet`?
no_suffix | no such command: no_suffix; did you mean `virnucpro pack no_suffix -o plan.parquet`?
plan.parquet | no such command: plan.parquet; did you mean `virnucpro stats plan.parquet`?
out | no such command: out; did you mean `virnucpro stats out`?
--wrong | no such option: --wrong
"""


@pytest.mark.parametrize("mistake", MISTAKES.strip().splitlines())
def test_mistakes_say_what_to_type(mistake: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    typed, message = mistake.split(" | ")
    result = run(*shlex.split(typed))
    assert (result.returncode, result.stdout) == (2, "")
    command = typed.split()[0] if typed.split()[0] in COMMANDS else ""
    if "(usage: " not in message:
        message += f" (for help: {f'virnucpro {command}'.strip()} -h)"
    assert result.stderr == f"virnucpro: error: {message}\n"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", ["stats", "verify", "report"])
def test_other_files_than_plans_say_which_command_is_meant(command: str) -> None:
    options = ["-o", "report.html"] if command == "report" else []
    for name in ("proteins.fasta", "no_suffix", "proteomes"):
        result = run(command, name, *options)
        assert result.returncode == (2 if command == "verify" else 1)
        assert f"{name}: not a plan file (" in result.stderr
        hint = f"; did you mean `virnucpro pack {name} -o plan.parquet`?\n"
        assert result.stderr.endswith(hint)
    if command != "stats":
        hint = "; did you mean `virnucpro stats out`?\n"
        assert run(command, "out", *options).stderr.endswith(hint)


def test_columns_that_tables_do_not_have(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"name": ["a"], "size": [5]}), path)
    words = ["pack", path, "-o", tmp_path / "plan.parquet"]
    for column, option in (("id", "--id-column"), ("length", "--length-column")):
        result = run(*words)
        assert result.returncode == 1
        message = f"{path}: no column {column!r} (it has name, size); name it with {option}"
        assert result.stderr == f"virnucpro: error: {message}\n"
        words += [option, {"id": "name", "length": "size"}[column]]
    assert run(*words).returncode == 0


@pytest.mark.usefixtures("folder")
def test_damaged_plans_and_uris_have_no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("damaged.parquet").write_bytes(Path("plan.parquet").read_bytes()[:-9])
    os.mkfifo("fifo")
    # A plan that has no summary.
    shutil.copy(Path(__file__).parents[1] / "stored" / "plan-4.arrow", "old.arrow")
    for name in ("damaged.parquet", "fifo", "old.arrow"):
        assert "did you mean" not in run("stats", name).stderr
        assert run("stats", name).returncode == 1
    monkeypatch.setattr("virnucpro.files.plan_reader.PlanFile", None)
    assert kind_of("s3://bucket/plan.parquet") == ""


@pytest.mark.usefixtures("folder")
def test_plans_as_inputs_are_told() -> None:
    result = run("pack", "plan.parquet", "-o", "again.parquet")
    assert result.returncode == 0
    assert result.stderr.startswith("virnucpro: warning: plan.parquet: a plan, which is read as a")
    assert run("pack", "plan.parquet", "-o", "again.parquet", "-q").stderr == ""


@pytest.mark.usefixtures("folder")
def test_json_alone_is_on_stdout() -> None:
    packed = run("pack", "proteins.fasta", "-o", "plan.parquet", "--json")
    assert packed.stdout == run("stats", "plan.parquet", "--json").stdout
    assert "Plan written to plan.parquet" in packed.stderr
    verified = run("verify", "plan.parquet", "--json", "-q")
    assert verified.stderr == ""
    assert json.loads(verified.stdout) == {"plan": "plan.parquet", "sequences": 3, "errors": []}
    Path("proteins.fasta").write_bytes(fasta([*PROTEINS[:2], ("long", "MK")]))
    wrong = run("verify", "plan.parquet", "--json")
    assert wrong.returncode == 1
    errors = json.loads(wrong.stdout)["errors"]
    assert errors[0].startswith("input proteins.fasta has changed: ")
    lines = [f"virnucpro: error: plan.parquet: {error}" for error in errors]
    assert wrong.stderr.splitlines() == lines
    report = run("report", "plan.parquet", "-o", "report.html", "--json")
    assert json.loads(report.stdout) == {"plan": "plan.parquet", "report": "report.html"}
    assert run("report", "plan.parquet", "-o", "report.html", "-q").stderr == ""


@pytest.mark.usefixtures("folder")
def test_verify_finds_the_input_from_other_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("plans/old").mkdir(parents=True)
    Path("plan.parquet").rename("plans/old/plan.parquet")
    monkeypatch.chdir("plans")
    assert run("verify", "old/plan.parquet").returncode == 0
    # A file with the right content is preferred to one that is nearer.
    content = Path("../proteins.fasta").read_bytes()
    for nearer in (fasta([("other", "M")]), content.replace(b"M", b"K")):
        Path("proteins.fasta").write_bytes(nearer)
        assert run("verify", "old/plan.parquet").returncode == 0
    Path("proteins.fasta").write_bytes(fasta([("other", "M")]))
    # Else a file of that name is told to be another.
    Path("../proteins.fasta").unlink()
    result = run("verify", "old/plan.parquet")
    assert (result.returncode, result.stdout) == (1, "")
    message = "old/plan.parquet: input proteins.fasta has changed: 1 sequences in"
    assert result.stderr.startswith(f"virnucpro: error: {message}")
    Path("proteins.fasta").unlink()
    result = run("verify", "old/plan.parquet")
    assert result.returncode == 2
    assert result.stderr == (
        "virnucpro: error: old/plan.parquet: its input proteins.fasta is found neither from "
        "this folder nor from that of the plan; give the inputs after PLAN\n"
    )
    assert run("verify", "old/plan.parquet", "../archive/proteins.fasta").returncode == 0


@pytest.mark.usefixtures("folder")
def test_verify_finds_an_input_beside_a_link_to_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data", "store"):
        Path(name).mkdir()
    Path("data/l.fasta").write_bytes(fasta([("a", "MK")]))
    monkeypatch.chdir("data")
    assert run("pack", "l.fasta", "-o", "../store/l.parquet").returncode == 0
    Path("l.parquet").symlink_to("../store/l.parquet")
    monkeypatch.chdir("..")
    assert run("verify", "data/l.parquet").returncode == 0


def test_verify_finds_an_input_that_moved_with_its_plan(folder: Path) -> None:
    assert run("pack", folder / "archive/proteins.fasta", "-o", "plan.parquet").returncode == 0
    Path("moved").mkdir()
    for name in ("archive/proteins.fasta", "plan.parquet"):
        shutil.move(name, "moved")
    assert run("verify", "moved/plan.parquet").returncode == 0


@pytest.mark.usefixtures("folder")
def test_verify_takes_no_file_for_two_inputs() -> None:
    for name, text in (("a", "M"), ("b", "K")):
        Path(name).mkdir()
        Path(name, "x.fasta").write_bytes(fasta([(name, text)]))
    assert run("pack", "a/x.fasta", "b/x.fasta", "-o", "plan.parquet").returncode == 0
    Path("moved").mkdir()
    shutil.move("plan.parquet", "moved")
    shutil.move("a/x.fasta", "moved")
    Path("b/x.fasta").unlink()
    result = run("verify", "moved/plan.parquet")
    assert result.returncode == 2
    message = "moved/plan.parquet: its input b/x.fasta is found neither from this folder"
    assert result.stderr.startswith(f"virnucpro: error: {message}")
    Path("c.fasta").write_bytes(fasta([("b", "K")]))
    result = run("verify", "moved/plan.parquet", "c.fasta", "moved/x.fasta")
    assert result.returncode == 1
    assert result.stderr.endswith("moved/plan.parquet: its inputs are given in another order\n")


@pytest.mark.process
@pytest.mark.usefixtures("folder")
def test_verify_without_a_reader_of_its_output() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    words = [sys.executable, "-m", "virnucpro", "verify", "plan.parquet", "--json"]
    done = subprocess.run(words, stdout=theirs, stderr=subprocess.PIPE, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (2, b"")


def test_messages_name_options() -> None:
    for name, option in OPTIONS.items():
        if "_" in name:
            assert with_options(f"x: {name} was 5 (got 6)") == f"x: {option} was 5 (got 6)"
        assert with_options(f"{name} must be 5") == f"{option} must be 5"
        assert with_options(f"try {name}=5 or {name}=...") == f"try {option} 5 or {option} ..."
        assert with_options(f"x ({name}='y' is better)") == f"x ({option} y is better)"
        assert with_options(f"a plan with its own {name}: x") == f"a plan with its own {option}: x"
    for name, (option, value) in FLAGS.items():
        for before in ("True", "False"):
            how = "with" if before == value else "without"
            message = with_options(f"x: {name} was {before} (got y); z")
            assert message == f"x: it was made {how} {option}; z"
    for text in (
        "data/max_tokens.fa: no such file",
        "'max_tokens' (row 3) failed",
        "max_tokens.fa: no such file",
        "duplicate IDs: 1 (for example max_tokens)",
        "num_threads: no such file",
        "x overlap must be.fasta: no such file",
        "the method of the device",
        "overlap of 5 residues",
    ):
        assert with_options(text) == text


def test_options_in_messages_are_those_of_commands() -> None:
    known = {option for name in COMMANDS for each in app.commands[name].params
             for option in each.opts}  # fmt: skip
    named = [*OPTIONS.values(), *(option for option, _ in FLAGS.values())]
    assert known.issuperset(re.findall(r"--[\w-]+", " ".join(named)))


@pytest.mark.process
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_names(folder: Path) -> None:
    program = folder / "virnucpro"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m virnucpro "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(_VIRNUCPRO_COMPLETE=bash_source virnucpro)"\n'
        "complete -p virnucpro\n"
        "for words in 'virnucpro v' 'virnucpro pack --max-' 'virnucpro pack --overlong t'; do\n"
        "  COMPREPLY=(); COMP_WORDS=($words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n"
        "  _virnucpro_completion virnucpro; echo ${COMPREPLY[@]}\n"
        "done"
    )
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stdout.splitlines()[1:] == [
        "verify",
        "--max-tokens --max-length --max-sequences",
        "truncate",
    ]
    for words in ("stats p", "pack proteins.fasta -o p", "embed a.fa --model p"):
        found = subprocess.run(
            [sys.executable, "-m", "virnucpro"],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                "_VIRNUCPRO_COMPLETE": "bash_complete",
                "COMP_WORDS": f"virnucpro {words}",
                "COMP_CWORD": str(len(words.split())),
            },
        )
        assert found.stdout == "file,p\n"


@pytest.mark.process
def test_page_of_the_documentation_has_all_options() -> None:
    script = Path(__file__).parents[2] / "tools" / "command_page.py"
    page = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True
    ).stdout
    for name in COMMANDS:
        section = page.split(f"\n## virnucpro {name}\n")[1].split("\n## ")[0]
        command = command_of(name)
        assert command.examples in section
        assert all(status in section for status in command.statuses)
        for param in command.params:
            assert f"`{name_of(param)}`" in section
        assert "`-h, --help`" in section

"""The command line with folders, patterns, and files in an object store."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import run
from fasta import fasta
from object_store import KEYS, ObjectStore

pytestmark = pytest.mark.process

RECORDS = [("a", "MKTAY"), ("b", "MKTAYIAK"), ("c", "MK")]
ACCESS, SECRET = KEYS.values()
CREDENTIALS = f"{ACCESS}:{SECRET.replace('/', '%2F')}@"


def test_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in/sub").mkdir(parents=True)
    Path("in/sub/a.fa").write_bytes(fasta(RECORDS))
    Path("in/b.tsv").write_text("id\tlength\nd\t5\n")
    result = run("pack", "in", "-o", "plan.parquet")
    assert (result.returncode, "ignored" in result.stderr) == (0, False)
    Path("in/sub/README").write_text("hello")
    result = run("pack", "in", "-o", "plan.parquet")
    assert result.returncode == 0
    assert (
        "virnucpro: warning: files ignored in input folders: 1, which are neither" in result.stderr
    )
    assert "in/sub/README" in result.stderr
    for inputs in ([], ["in"], ["in/b.tsv", "in/**/*.fa"]):
        result = run("verify", "plan.parquet", *inputs)
        assert (result.returncode, result.stdout) == (0, ""), result.stderr
        assert result.stderr.endswith("plan.parquet: OK (4 sequences)\n")
        assert ("files ignored" in result.stderr) == (inputs == ["in"])
    assert run("verify", "plan.parquet", "in/**/*.fa", "in/b.tsv").returncode == 1
    # An input that is gone is not taken for a pattern.
    Path("in/b.tsv").rename("in/[b].tsv")
    assert run("pack", "in/[b].tsv", "-o", "other.parquet", "-q").stderr == ""
    Path("in/[b].tsv").rename("in/b.tsv")
    result = run("verify", "other.parquet")
    assert (result.returncode, "its input in/[b].tsv is found" in result.stderr) == (2, True)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_no_secret_is_kept_or_shown(store: ObjectStore, tmp_path: Path, suffix: str) -> None:
    store.write("in/a b.fa", fasta(RECORDS))
    store.write("in/README", b"")
    folder = f"s3://{CREDENTIALS}proteins/in{store.query}"
    plan = f"s3://{CREDENTIALS}proteins/plan{suffix}{store.query}"
    page = f"s3://{CREDENTIALS}proteins/report.html{store.query}"
    shown = ""
    for words in (
        ("pack", folder, "-o", plan, "--max-tokens", "12", "--max-length", "10"),
        *(("stats", plan), ("stats", plan, "--json"), ("verify", plan), ("verify", plan, folder)),
        ("report", plan, "-o", page),
    ):
        result = run(*words)
        assert result.returncode == 0, result.stderr
        shown += result.stdout + result.stderr
    assert f"Plan written to s3://proteins/plan{suffix}{store.query}\n" in shown
    assert f"s3://proteins/in/a%20b.fa{store.query}" in shown
    assert f"s3://proteins/plan{suffix}{store.query}: OK (3 sequences)\n" in shown
    assert store.keys() == ["in/README", "in/a b.fa", f"plan{suffix}", "report.html"]
    shown += store.read(f"plan{suffix}").decode("latin-1") + store.read("report.html").decode()
    for command in (
        ("pack", folder.replace("/in", "/none"), "-o", plan),
        ("pack", folder, "-o", folder.replace("/in", "/in/plan.arrow")),
        ("pack", folder, "-o", plan.replace("/plan", "x/plan")),
        ("pack", folder, "-o", f"{plan}&token=hush", "--max-tokens", "0"),
        ("pack", folder, "-o", f"{plan}&token=hush"),
        ("pack", f"{folder}&token=hush", "-o", plan),
        ("pack", f"s3://{ACCESS}:{SECRET}@proteins/in{store.query}", "-o", plan),
        ("pack", f"s3://{ACCESS}:{SECRET}@proteins/in{store.query}", "-o", tmp_path / "a.parquet"),
        ("pack", f"s3://{ACCESS}:{SECRET}x@proteins/in{store.query}", "-o", tmp_path / "a.parquet"),
        *(("verify", plan, f"{folder}&token=hush"), ("stats", f"{plan}&token=hush")),
        *(("stats", folder), ("report", folder, "-o", page), ("report", plan, "-o", folder)),
    ):
        result = run(*command)
        assert result.returncode in (1, 2), command
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1 or "--max-tokens" in command
        shown += result.stderr
    for secret in (ACCESS, SECRET, SECRET.replace("/", "%2F"), "hush"):
        assert secret not in shown


def test_inputs_are_found_again(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    names = ["%.fa", "[1]*.fa", "a b.fa", "é?#.fa"]
    for number, name in enumerate(names):
        store.write(f"in/{name}", fasta([(f"{number}", "MK" * (number + 1))]))
    plan = "s3://proteins/plan.parquet"
    for options in ((), ("--sequences",)):
        assert run("pack", "s3://proteins/in/", "-o", plan, "-q", *options).stderr == ""
        assert run("verify", plan, "-q").stderr == ""
    store.write("in/%.fa", fasta([("0", "MKK")]))
    result = run("verify", plan)
    assert result.returncode == 1
    assert "s3://proteins/plan.parquet: input s3://proteins/in/%25.fa has changed" in result.stderr
    store.files.delete_file("proteins/in/%.fa")
    result = run("verify", plan)
    assert (result.returncode, result.stderr) == (
        2,
        "virnucpro: error: s3://proteins/in/%25.fa: no such file\n",
    )

"""The command `embed`: what reaches `embed_files`, what is printed, exit statuses."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import read_terminal, run
from fasta import fasta
from models import huggingface_tokenizer, tiny_esm2

import virnucpro.jobs.embed
from virnucpro.cli.embed import embed
from virnucpro.data import EmbeddingRun, ReadOptions
from virnucpro.files.embedding_parts import FailedSequence

PROTEINS = [("long", "MKTAY" * 30), ("a", "MKTAYIAK"), ("b", "MKTAYIAK"), ("c", "mkj"), ("d", "")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_esm2().save_pretrained(folder)
    huggingface_tokenizer(folder).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.fa").write_bytes(fasta(PROTEINS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command passes on, which then fails."""
    found: dict[str, Any] = {}

    def embed_files(inputs: Any, output: Any, model: Any, **options: Any) -> EmbeddingRun:
        found.update(inputs=inputs, output=output, model=model, **options)
        raise ValueError("as far as this\ngoes")

    monkeypatch.setattr(virnucpro.jobs.embed, "embed_files", embed_files)
    return found


def table_of(stderr: str) -> dict[str, str]:
    lines = [line.strip().split("  ", 1) for line in stderr.splitlines()]
    return {line[0]: line[1].strip() for line in lines if len(line) == 2}


def test_default_options(given: dict[str, Any]) -> None:
    result = run("embed", "a.fa", "-o", "out", "--model", "some/model")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "virnucpro: error: as far as this\\ngoes\n"
    assert callable(given.pop("progress"))
    assert given == {
        "inputs": ("a.fa",),
        "output": "out",
        "model": "some/model",
        "max_tokens": None,
        "max_sequence_length": None,
        "overlong": "truncate",
        "overlap": 0,
        "options": None,
        "deduplicate": True,
        "states": False,
        "dtype": None,
        "embedding_dtype": "float32",
        "device": None,
        "shard": (1, 1),
    }


def test_all_options(given: dict[str, Any]) -> None:
    words = (
        "embed a.fa b/*.fa - -o out --model some/model --max-tokens 100 --max-length 50 "
        "--overlong split --overlap 10 --dtype bfloat16 --embedding-dtype float16 --states "
        "--no-dedup --shard 2/4 --device cuda:1 --keep-stop --keep-case --drop-gaps --json -q"
    )
    assert run(*words.split()).returncode == 1
    del given["progress"]
    assert given == {
        "inputs": ("a.fa", "b/*.fa", "-"),
        "output": "out",
        "model": "some/model",
        "max_tokens": 100,
        "max_sequence_length": 50,
        "overlong": "split",
        "overlap": 10,
        "options": ReadOptions(strip_stop=False, uppercase=False, drop_gaps=True),
        "deduplicate": False,
        "states": True,
        "dtype": "bfloat16",
        "embedding_dtype": "float16",
        "device": "cuda:1",
        "shard": (2, 4),
    }


@pytest.mark.parametrize("shard", ["0/4", "5/4", "x", "1", "1/", "/2", "-1/2", "1/2/3", "1 /2", ""])
def test_shards_that_are_none(shard: str, given: dict[str, Any]) -> None:
    result = run("embed", "a.fa", "-o", "out", "--model", "m", "--shard", shard)
    assert (result.returncode, result.stdout, given) == (2, "", {})
    message = f"--shard must be I/N, with I from 1 to N, such as 2/4 (got {shard!r})"
    assert message in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        "a.fa -o out",
        "a.fa --model m",
        "-o out --model m",
        "a.fa -o out --model m --dtype int8",
        "a.fa -o out --model m --embedding-dtype bfloat16",
        "a.fa -o out --model m --overlong cut",
        "a.fa -o out --model m --max-tokens many",
        "a.fa -o out --model m --max-tokens 2",
        "a.fa -o out --model m --max-length 0",
        "a.fa -o out --model m --overlap 5",
        "a.fa -o out --model m --threads 0",
    ],
)
def test_usage_errors(words: str, given: dict[str, Any]) -> None:
    result = run("embed", *words.split())
    assert (result.returncode, result.stdout, given) == (2, "", {})
    assert "virnucpro embed" in result.stderr


def test_help_has_the_options_and_what_to_do_next() -> None:
    result = run("embed", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    text = " ".join(result.stdout.split())
    for words in (
        "--max-tokens", "--max-length", "--overlong", "--overlap", "--dtype", "--embedding-dtype",
        "--states", "--no-dedup", "--shard I/N", "--device", "--keep-stop", "--keep-case",
        "--drop-gaps", "--json", "-q, --quiet", "The same command again does what is left",
    ):  # fmt: skip
        assert words in text
    assert "embed " in run("--help").stdout


def test_examples_run(checkpoint: Path, folder: Path) -> None:
    shutil.copytree(checkpoint, "esm2")
    Path("proteins.fasta").write_bytes(fasta(PROTEINS))
    Path("proteomes").mkdir()
    Path("proteomes/a.faa").write_bytes(fasta(PROTEINS))
    assert run("pack", "proteins.fasta", "-o", "plan.parquet").returncode == 0
    words = [each.split() for each in embed.examples.splitlines() if each.startswith("virnucpro ")]
    assert len(words) >= 4
    for number, (program, *arguments) in enumerate(words):
        model = arguments.index("--model") + 1
        assert arguments[model] in ("esm2", "facebook/esm2_t33_650M_UR50D")
        arguments[model] = "esm2"
        arguments[arguments.index("-o") + 1] = f"out{number}"
        result = run(*arguments, "--device", "cpu")
        assert (program, result.returncode) == ("virnucpro", 0), result.stderr
        assert (folder / f"out{number}").is_dir()


def test_embeddings_and_what_is_printed(checkpoint: Path) -> None:
    words = ("embed", "a.fa", "-o", "out", "--model", checkpoint, "--max-length", 100)
    result = run(*words, "--device", "cpu")
    assert (result.returncode, result.stdout) == (0, "")
    found = table_of(result.stderr)
    assert found == {
        "Sequences": "5",
        "Distinct sequences": "3",
        "Empty": "1",
        "Truncated": "1",
        "Lower case converted": "3",
        "Residues": "169",
        "Residues lost": "50 (29.59 %)",
        "Batches": "1",
        "Unknown residues": "1",
    }
    assert result.stderr.endswith("\n2 of 2 parts are in out\n")
    table = pq.read_table("out").sort_by("row").to_pydict()
    assert table["id"] == [name for name, _ in PROTEINS]
    # Nothing is left to do, and nothing is said with --quiet.
    result = run(*words, "-q", "--device", "cpu")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_json(checkpoint: Path) -> None:
    words = ("embed", "a.fa", "-o", "out", "--model", checkpoint, "--json", "--device", "cpu")
    first, second = (json.loads(run(*words, "-q").stdout) for _ in range(2))
    assert {name: value for name, value in first.items() if name != "summary"} == {
        "parts": 2,
        "complete": 2,
        "written": 2,
        "failed": [],
        "unknown": {"J": 1},
    }
    assert second == {**first, "written": 0, "unknown": {}}
    metadata = pq.read_schema(next(Path("out").iterdir())).metadata
    assert first["summary"] == json.loads(metadata[b"virnucpro.embeddings"])


def test_failed_sequences_are_named_and_change_the_status(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("embed", "a.fa", "-o", "out", "--model", checkpoint, "--device", "cpu")
    embed_files = virnucpro.jobs.embed.embed_files
    for number in (1, 10, 13):
        failed = [FailedSequence(1000 + i, f"s{i}\n", "no\x1b[2J memory") for i in range(number)]

        def fail(*given: Any, failed: Any = failed, **options: Any) -> EmbeddingRun:
            found = embed_files(*given, **options)
            return replace(found, failed=failed)

        monkeypatch.setattr(virnucpro.jobs.embed, "embed_files", fail)
        result = run(*words, "-q", "--json")
        assert result.returncode == 1
        named = [f"virnucpro: error: 's{i}\\n' (row {1000 + i:,}) failed: no\\x1b[2J memory"
                 for i in range(min(number, 10))]  # fmt: skip
        more = ["virnucpro: error: 3 more sequences failed"] if number == 13 else []
        assert result.stderr.splitlines() == [*named, *more]
        in_json = json.loads(result.stdout)["failed"]
        assert in_json == [each._asdict() for each in failed]
        assert "parts are in out" in run(*words).stderr


@pytest.mark.process
@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_missing_packages_are_named(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "sys.argv[1:] = 'embed a.fa -o out --model m'.split()\n"
        "from virnucpro.__main__ import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.stderr.startswith(f"virnucpro: error: virnucpro embed needs {package}: ")
    assert "pip install '.[cli,esm]'" in result.stderr
    assert (result.returncode, Path("out").exists()) == (1, False)


def on_terminal(words: list[str], **settings: str) -> tuple[int, str]:
    """Return the exit status of the program, and what it shows on a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm", **settings}
    with subprocess.Popen(
        [sys.executable, "-m", "virnucpro", *words], stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        seen = read_terminal(ours)
    os.close(ours)
    return process.returncode, seen.decode()


@pytest.mark.process
@pytest.mark.slow
def test_terminals_show_progress_and_no_other_library(checkpoint: Path) -> None:
    Path("a.fa").write_bytes(fasta((f"s{i}", "MKTAYIAKQR" * (i % 40)) for i in range(200)))
    words = ["embed", "a.fa", "-o", "out", "--model", str(checkpoint), "--no-dedup"]
    status, seen = on_terminal([*words, "-q"])
    assert (status, seen) == (0, "")
    Path("out").rename("before")
    status, seen = on_terminal(words)
    assert status == 0
    for part in ("Loading", "Reading 100.0 % of", "Embedding ", " % of 39,000 residues"):
        assert part in seen
    for part in ("it/s", "LOAD REPORT", "Warning", "weights"):
        assert part not in seen
    assert "parts are in out\r\n" in seen


@pytest.mark.process
@pytest.mark.slow
def test_output_without_a_terminal_is_the_table(checkpoint: Path) -> None:
    Path("a.fa").write_bytes(fasta([*PROTEINS[1:3], ("d", "")]))
    words = ["embed", "a.fa", "-o", "out", "--model", str(checkpoint), "--device", "cpu"]
    command = [sys.executable, "-m", "virnucpro", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = result.stderr.splitlines()
    stages = [line for line in lines if line.startswith("virnucpro: ")]
    assert [line.split()[1] for line in stages] == [
        *("loading", "reading", "comparing", "packing", "embedding")
    ]
    lines = lines[len(stages) :]
    assert lines[0].split() == ["Sequences", "3"]
    assert lines[-1] == "2 of 2 parts are in out"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for a model whose files are in the folder `files`."""

    files: Path

    def do_HEAD(self) -> None:
        self.send()

    def do_GET(self) -> None:
        self.wfile.write(self.send())

    def send(self) -> bytes:
        """Send the head of an answer; return its content."""
        path = self.files / self.path.partition("?")[0].rpartition("/")[2]
        is_found = "/resolve/" in self.path and path.is_file()
        content = path.read_bytes() if is_found else b""
        self.send_response(200 if is_found else 404)
        self.send_header("Content-Length", str(len(content)))
        if is_found:
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        return content

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(checkpoint: Path, folder: Path) -> Iterator[dict[str, str]]:
    """The settings of a hub that has the checkpoint, whatever the name."""
    handler = type("ThisHub", (Hub,), {"files": checkpoint})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(folder / "cache"),
            "NO_PROXY": "127.0.0.1",
        }
        server.shutdown()
        thread.join()


@pytest.mark.process
@pytest.mark.slow
def test_downloads_are_shown_on_terminals(hub: dict[str, str]) -> None:
    words = ["embed", "a.fa", "-o", "out", "--model", "some/model"]
    status, seen = on_terminal(words, **hub)
    assert status == 0
    assert "model.safetensors: 100%" in seen
    assert "Loading" not in seen
    shutil.rmtree("cache")
    shutil.rmtree("out")
    status, seen = on_terminal([*words, "-q"], **hub)
    assert (status, seen) == (0, "")
    assert len(pq.read_table("out")) == len(PROTEINS)

"""The command in odd surroundings: names, locales, streams, full disks and missing folders."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from command import run
from fasta import fasta

from virnucpro.data import GreedyPacker, PackedFastaDataset, PackingPlan, pack_files
from virnucpro.files.output import TemporaryFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names and limits of Linux")

CONTENT = fasta((f"s{number}", "MKTAYIAKQR" * (number % 40)) for number in range(1, 2000))
NAME = "pl\udcffan ü\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.fa").write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "virnucpro", *arguments]
    settings: dict[str, object] = {"capture_output": True, "text": True, "check": False, **options}
    return subprocess.run(command, **settings)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_names_that_are_not_utf_8(suffix: str) -> None:
    fasta_name, plan, table = f"{NAME}.fa", f"{NAME}{suffix}", f"{NAME}.tsv"
    Path("a.fa").rename(fasta_name)
    Path(table).write_text("id\tlength\na\t5\n")
    for arguments in (
        ["pack", fasta_name, "-o", plan],
        ["verify", plan],
        ["verify", plan, fasta_name],
        ["report", plan, "-o", f"{NAME}.html"],
        ["pack", plan, "-o", f"again{suffix}"],
        ["pack", table, "-o", f"table{suffix}"],
    ):
        found = run(*arguments)
        assert found.returncode == 0, found.stderr
        assert found.stderr.replace("\n", "").isprintable()
    assert json.loads(run("stats", plan, "--json").stdout)["inputs"][0]["name"] == fasta_name
    assert len(PackedFastaDataset(fasta_name, plan)) == len(PackingPlan.load(plan))
    assert "pl\\udcffan" in Path(f"{NAME}.html").read_text(encoding="utf-8")


@pytest.mark.process
@pytest.mark.parametrize(
    "settings",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "no_SUCH"},
    ],
)
def test_locales(settings: dict[str, str]) -> None:
    Path("a.fa").rename("ü.fa")
    environment = {**os.environ, **settings}
    packed = program("pack", "ü.fa", "-o", "ü.parquet", env=environment)
    assert packed.returncode == 0, packed.stderr
    assert program("verify", "ü.parquet", env=environment).returncode == 0
    shown = program("stats", "--json", "ü.parquet", env=environment)
    assert json.loads(shown.stdout)["totals"]["read"] == 1999
    missing = program("verify", "missing ü.parquet", env=environment)
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)


@pytest.mark.process
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"])
@pytest.mark.parametrize(
    "words", ["pack a.fa -o new.parquet", "verify plan.parquet", "stats plan.parquet"]
)
def test_closed_and_full_streams(words: str, closed: str) -> None:
    pack_files("a.fa", "plan.parquet", GreedyPacker(4096))
    shell = f'"$0" -m virnucpro {words} {closed}'
    found = subprocess.run(
        ["sh", "-c", shell, sys.executable], capture_output=True, text=True, check=False
    )
    fails = closed == ">/dev/full" and "stats" in words
    assert found.returncode == fails
    if fails:
        message = "standard output: cannot be written (No space left on device)"
        assert found.stderr == f"virnucpro: error: {message}\n"
    if words.startswith("pack"):
        assert Path("new.parquet").read_bytes() == Path("plan.parquet").read_bytes()


@pytest.mark.process
def test_missing_folders_of_the_environment(folder: Path) -> None:
    Path("a.fa.gz").write_bytes(gzip.compress(CONTENT))
    missing = str(folder / "missing")
    environment = {**os.environ, "TMPDIR": missing, "HOME": missing, "XDG_CACHE_HOME": missing}
    arguments = ["pack", "a.fa.gz", "-o", "plan.parquet"]
    assert program(*arguments, env=environment).returncode == 0
    found = program(*arguments, "--sequences", env=environment)
    name = f"the folder for temporary files, {missing}"
    message = f"virnucpro: error: {name}: cannot be written (No such file or directory)\n"
    assert (found.returncode, found.stderr) == (1, message)
    found = program("report", "plan.parquet", "-o", "a.html", env=environment)
    assert (found.returncode, found.stderr) == (0, "Report written to a.html\n")
    environment = {"PATH": os.environ["PATH"]}
    assert program("verify", "plan.parquet", env=environment).returncode == 0


def mount(place: Path, size: str) -> bool:
    """Mount a small file system; return whether that is permitted."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.process
@pytest.mark.parametrize(
    "words",
    [
        "pack a.fa.gz -o full/plan.parquet",
        "pack a.fa.gz -o full/plan.arrow",
        "pack a.fa.gz -o full/plan.parquet --sequences",
        "pack a.fa.gz -o plan.parquet --sequences",
        "report old.parquet -o full/a.html",
    ],
)
def test_full_disks(folder: Path, words: str) -> None:
    place = folder / "full"
    if not mount(place, "8k"):
        pytest.skip("file systems cannot be mounted")
    try:
        Path("a.fa.gz").write_bytes(gzip.compress(CONTENT))
        pack_files("a.fa", "old.parquet", GreedyPacker(4096))
        before = sorted(folder.iterdir())
        found = program(*words.split(), env={**os.environ, "TMPDIR": str(place)})
        assert (found.returncode, found.stderr.count("\n")) == (1, 1)
        assert found.stderr.endswith("cannot be written (No space left on device)\n")
        assert list(place.iterdir()) == []
        assert sorted(folder.iterdir()) == before
        Path("full/plan.arrow").write_bytes(b"old")
        plan = PackingPlan.load("old.parquet")
        with pytest.raises(OSError, match=r"^full/plan\.arrow: cannot be written \(No space left"):
            plan.save("full/plan.arrow")
        assert {path.name: path.read_bytes() for path in place.iterdir()} == {"plan.arrow": b"old"}
    finally:
        subprocess.run(["umount", str(place)], check=True)


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.process
@pytest.mark.parametrize("size", [0, 100, 1000, 5000])
def test_files_that_may_not_grow(folder: Path, size: int) -> None:
    """A write may fail at any place."""
    Path("plan.parquet").write_bytes(b"old")
    found = program(
        "pack", "a.fa", "-o", "plan.parquet", "-q", preexec_fn=lambda: limit_files(size)
    )
    reason = "plan.parquet: cannot be written (File too large)"
    assert (found.returncode, found.stderr) == (1, f"virnucpro: error: {reason}\n")
    assert Path("plan.parquet").read_bytes() == b"old"
    assert {path.name for path in folder.iterdir()} == {"a.fa", "plan.parquet"}


@pytest.mark.process
def test_leftovers_are_those_that_nobody_has(folder: Path) -> None:
    mine = TemporaryFolder(folder)
    (mine.path / "unfinished").write_bytes(b"x")
    begin = mine.path.name.rsplit(".", 2)[0]
    killed, other, file = (
        folder / f"{begin}.0000000000000000.tmp",
        folder / ".virnucpro.another-machine.0000000000000000.tmp",
        folder / f"{begin}.1111111111111111.tmp",
    )
    killed.mkdir()
    (killed / "unfinished").write_bytes(b"x")
    other.mkdir()
    file.write_bytes(b"not a folder")
    pack_files("a.fa", "plan.parquet", GreedyPacker(4096))
    assert not killed.exists()
    assert {path.name for path in folder.iterdir()} == {
        *(mine.path.name, other.name, file.name),
        *("a.fa", "plan.parquet"),
    }
    child = os.fork()
    if child == 0:
        # Neither removes what its parent has.
        mine.remove()
        os._exit(0)
    os.waitpid(child, 0)
    assert (mine.path / "unfinished").exists()
    path = mine.path
    del mine
    assert not path.exists()


@pytest.mark.process
def test_odd_leftovers_are_left_alone(folder: Path) -> None:
    mine = TemporaryFolder(folder)
    begin = mine.path.name.rsplit(".", 2)[0]
    mine.remove()
    precious = folder / f"{begin}.precious.tmp"
    precious.mkdir()
    (precious / "data").write_bytes(b"x")
    deep = folder / f"{begin}.0123456789abcdef.tmp"
    path = deep
    script = "import os\nfor _ in range(2000): os.mkdir('d'); os.chdir('d')"
    path.mkdir()
    subprocess.run([sys.executable, "-c", script], cwd=path, check=True)
    pack_files("a.fa", "plan.parquet", GreedyPacker(4096))
    assert (precious / "data").read_bytes() == b"x"
    subprocess.run(["rm", "-rf", str(deep)], check=True)


@pytest.mark.process
def test_a_full_folder_for_temporary_files_is_not_exchanged(folder: Path) -> None:
    place = folder / "full"
    if not mount(place, "8k"):
        pytest.skip("file systems cannot be mounted")
    try:
        (place / "x").write_bytes(bytes(8192))
        Path("a.fa.gz").write_bytes(gzip.compress(CONTENT))
        arguments = ["pack", "a.fa.gz", "-o", "plan.parquet", "--sequences"]
        found = program(*arguments, env={**os.environ, "TMPDIR": str(place)})
        assert (found.returncode, found.stderr.count("\n")) == (1, 1)
        assert f" in {place}: cannot be written (No space left on device)" in found.stderr
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.process
def test_readers_that_have_gone() -> None:
    pack_files("a.fa", "plan.parquet", GreedyPacker(4096))
    for words, status in (
        ("verify plan.parquet 2> >(exit 0)", 0),
        ("pack a.fa -o new.parquet 2> >(exit 0)", 0),
        ("stats plan.parquet --json > >(exit 0)", 1),
        ("stats plan.parquet > >(exit 0)", 1),
    ):
        shell = f'sleep 0.2; "$0" -m virnucpro {words}'
        command = ["bash", "-c", shell, sys.executable]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (found.returncode in (0, status), found.stderr) == (True, "")


@pytest.mark.process
@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
@pytest.mark.parametrize("command", ["pack a.fa", "report plan.parquet"])
def test_limits_of_memory(folder: Path, command: str, name: str) -> None:
    """Libraries that lack memory may crash: a limit that leaves too little is an error at once."""
    run("pack", "a.fa", "-o", "plan.parquet", "-q")
    for mebibytes, status in ((200, 1), (400, 1), (600, 0)):
        size = mebibytes * 2**20
        limit = partial(resource.setrlimit, getattr(resource, name), (size, size))
        output = "out.html" if command.startswith("report") else "out.parquet"
        found = program(*command.split(), "-o", output, preexec_fn=limit)
        assert found.returncode == status, found.stderr
        assert Path(output).exists() == (status == 0)
        if status:
            assert found.stderr.startswith(
                "virnucpro: error: out of memory: the limit (ulimit -v or -d)"
            )
            assert found.stderr.endswith(" MiB, at least 512 MiB are needed\n")
            assert found.stderr.count("\n") == 1
    assert {path.name for path in folder.iterdir()} == {"a.fa", "plan.parquet", output}

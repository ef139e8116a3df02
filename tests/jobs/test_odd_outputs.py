"""Outputs that are not what they look like: nothing else is changed, and nothing is left."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from command import run
from fasta import fasta

from virnucpro.data import GreedyPacker, PackingPlan, pack_files
from virnucpro.jobs.report import write_report

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, modes and devices of POSIX")

PROTEINS = Path(__file__).parents[2] / "examples" / "proteins.fasta"
CONTENT = fasta([("a", "MKTAY"), ("b", "MKTAYIAKQR"), ("c", "MK")])
# What writes to a path, given the folder with the input `a.fa` and the plan `old.parquet`.
WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "pack_files": lambda folder, path: pack_files(folder / "a.fa", path, GreedyPacker(12)),
    "save": lambda _, path: GreedyPacker(12).pack_lengths([5, 10, 2]).save(path),
    "report": lambda folder, path: write_report(folder / "old.parquet", path),
}
READERS: dict[str, Callable[[Path, Path], object]] = {
    "pack_files": lambda source, path: pack_files(source, path, GreedyPacker(12)),
    "report": write_report,
}
SUFFIXES = {"pack_files": ".parquet", "save": ".arrow", "report": ".html"}


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_loop(path: Path) -> None:
    path.symlink_to("other")
    path.with_name("other").symlink_to(path.name)


def make_chain(path: Path) -> None:
    for number in range(45):
        path.with_name(f"link{number}").symlink_to(f"link{number + 1}")
    path.symlink_to("link0")


# How the place is made, its name, and the error.
REFUSED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "folder": (Path.mkdir, "plan{}", "is a folder"),
    "link to folder": (link("."), "plan{}", "is a folder"),
    "fifo": (os.mkfifo, "plan{}", "not a regular file"),
    "socket": (make_socket, "plan{}", "not a regular file"),
    "link to device": (link("/dev/null"), "plan{}", "not a regular file"),
    "link to full device": (link("/dev/full"), "plan{}", "not a regular file"),
    "link to output": (link("/dev/stdout"), "plan{}", "not a regular file"),
    "link to descriptor": (link("/dev/fd/2"), "plan{}", "not a regular file"),
    "link to process": (link("/proc/self/fd/1"), "plan{}", "not a regular file"),
    "loop": (make_loop, "plan{}", "a loop of links|Too many levels"),
    "long chain": (make_chain, "plan{}", "a loop of links|Too many levels"),
    "link to nowhere": (link("missing/plan"), "plan{}", "its folder does not exist"),
    "missing folder": (lambda _: None, "missing/plan{}", "its folder does not exist"),
    "file as folder": (lambda _: None, "a.fa/plan{}", "its folder does not exist"),
    "long name": (lambda _: None, "x" * 300 + "{}", "File name too long"),
    "null": (lambda _: None, "x\0{}", "a name with a null character"),
}


def state_of(folder: Path) -> dict[str, object]:
    """Return what is in a folder, by name."""
    found: dict[str, object] = {}
    for path in folder.iterdir():
        content: object = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[path.name] = path.lstat().st_mode, content
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.fa").write_bytes(CONTENT)
    pack_files(tmp_path / "a.fa", tmp_path / "old.parquet", GreedyPacker(12))
    return tmp_path


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", REFUSED)
def test_places_that_are_refused(folder: Path, place: str, writer: str) -> None:
    make, name, reason = REFUSED[place]
    path = folder / name.format(SUFFIXES[writer])
    make(path)
    before = state_of(folder)
    with pytest.raises(OSError, match=reason) as caught:
        WRITERS[writer](folder, path)
    assert caught.value.errno is None
    assert str(caught.value).isprintable()
    assert state_of(folder) == before


@pytest.mark.parametrize("writer", READERS)
@pytest.mark.parametrize("kind", ["same", "hard link", "link", "other way", "descriptor"])
def test_inputs_by_other_names(folder: Path, kind: str, writer: str) -> None:
    is_pack = writer == "pack_files"
    read = folder / ("a.fa" if is_pack else "old.parquet")
    path = folder / f"plan{SUFFIXES[writer]}"
    source = read
    if kind == "same":
        shutil.move(read, path)
        source = path
    elif kind == "hard link":
        path.hardlink_to(read)
    elif kind == "link":
        path.symlink_to(read.name)
    elif kind == "other way":
        (folder / "sub").mkdir()
        shutil.move(read, path)
        source = folder / "sub" / ".." / path.name
    else:
        shutil.move(read, path)
        descriptor = os.open(path, os.O_RDONLY)
        source = Path(f"/dev/fd/{descriptor}")
    before = state_of(folder)
    with pytest.raises(ValueError, match=f"^{path}: output is also an input$"):
        READERS[writer](source, path)
    assert state_of(folder) == before


def test_a_report_replaces_no_part_of_what_it_reads(folder: Path) -> None:
    plan = folder / "plan"
    plan.mkdir()
    shutil.copy(folder / "old.parquet", plan / "part-0.parquet")
    shutil.copy(folder / "old.parquet", plan / "_common_metadata")
    before = state_of(plan)
    for name in ("_common_metadata", "part-0.parquet", "new.html"):
        path = plan / name
        with pytest.raises(ValueError, match=f"^{path}: output is inside an input folder$"):
            write_report(plan, path)
    assert state_of(plan) == before
    path = folder / "a.fa"
    with pytest.raises(ValueError, match=f"^{path}: output is also an input$"):
        write_report(folder / "old.parquet", path)
    assert path.read_bytes() == CONTENT


def test_what_the_place_has_become_is_not_replaced(folder: Path) -> None:
    path = folder / "plan.parquet"

    def change(_stage: str, _done: int, _total: int | None) -> None:
        if not path.exists():
            os.mkfifo(path)

    with pytest.raises(OSError, match=f"^{path}: not a regular file$"):
        pack_files(folder / "a.fa", path, GreedyPacker(12), progress=change)
    assert path.is_fifo()
    path.unlink()

    def make_link(_stage: str, _done: int, _total: int | None) -> None:
        if not path.is_symlink():
            path.symlink_to("other")

    with pytest.raises(OSError, match=f"^{path}: replaced by a link in the meantime$"):
        pack_files(folder / "a.fa", path, GreedyPacker(12), progress=make_link)
    assert path.is_symlink()
    assert not (folder / "other").exists()


@pytest.mark.process
def test_many_write_to_one_folder_at_once(tmp_path: Path) -> None:
    script = """
import sys
from concurrent.futures import ThreadPoolExecutor
from virnucpro.files.output import write_file

def write(number):
    for _ in range(60):
        with write_file(f"{sys.argv[1]}/{number}") as file:
            file.write(b"x")

with ThreadPoolExecutor(4) as pool:
    list(pool.map(write, range(4)))
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_modes_are_kept(folder: Path, writer: str, mode: int) -> None:
    path = folder / f"plan{SUFFIXES[writer]}"
    path.write_bytes(b"old")
    path.chmod(mode)
    WRITERS[writer](folder, path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    path.unlink()
    before = os.umask(0o027)
    try:
        WRITERS[writer](folder, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("target", ["old file", "new file", "chain"])
def test_links_are_followed(folder: Path, writer: str, target: str) -> None:
    path, other = folder / f"plan{SUFFIXES[writer]}", folder / "sub" / "target"
    other.parent.mkdir()
    if target == "old file":
        other.write_bytes(b"old")
    path.symlink_to("sub/link" if target == "chain" else "sub/target")
    if target == "chain":
        (folder / "sub" / "link").symlink_to(other)
    WRITERS[writer](folder, path)
    assert path.is_symlink()
    assert other.read_bytes() not in (b"", b"old")
    assert {entry.name for entry in other.parent.iterdir()} <= {"target", "link"}


@pytest.mark.parametrize("name", ["pl\x1b[2Jan\n{}", "\udcff\udcfe{}", "ü{}", "-o{}", " {}"])
@pytest.mark.parametrize("writer", WRITERS)
def test_odd_names(folder: Path, writer: str, name: str) -> None:
    path = folder / name.format(SUFFIXES[writer])
    WRITERS[writer](folder, path)
    assert path.stat().st_size > 0
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        WRITERS[writer](folder, path)
    assert str(caught.value).isprintable()


def test_the_folder_may_be_renamed_and_the_working_directory_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is resolved once, when the job begins."""
    monkeypatch.chdir(folder)
    (folder / "elsewhere").mkdir()

    def leave(_stage: str, _done: int, _total: int | None) -> None:
        os.chdir(folder / "elsewhere")

    pack_files("a.fa", "plan.parquet", GreedyPacker(12), progress=leave)
    assert len(PackingPlan.load(folder / "plan.parquet")) == 2
    assert list((folder / "elsewhere").iterdir()) == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("shell", "message"),
    [
        ("pack - -o a.parquet < a.parquet", "a.parquet: output is also an input"),
        ("pack - -o link.parquet < a.parquet", "link.parquet: output is also an input"),
        ("pack a.fa -o out.parquet >> log", "out.parquet: not a regular file"),
        ("pack a.fa -o log.parquet >> log.parquet", "log.parquet: output is also standard output"),
        ("report old.parquet -o out.html >> log", "out.html: not a regular file"),
        ("report old.parquet -o fd.html 3>> log", "fd.html: not a regular file"),
        ("report old.parquet -o log.html >> log.html", "log.html: output is also standard output"),
    ],
)
def test_outputs_of_the_shell(folder: Path, shell: str, message: str) -> None:
    (folder / "a.parquet").write_bytes(CONTENT)
    (folder / "link.parquet").symlink_to("a.parquet")
    for name, target in (("out.parquet", "stdout"), ("out.html", "fd/1"), ("fd.html", "fd/3")):
        (folder / name).symlink_to(f"/dev/{target}")
    for log in ("log", "log.parquet", "log.html"):
        (folder / log).write_bytes(b"old\n")
    before = state_of(folder)
    found = subprocess.run(
        ["sh", "-c", f'"$0" -m virnucpro {shell}', sys.executable],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith(f"virnucpro: error: {message}")
    assert found.stderr.count("\n") == 1
    assert state_of(folder) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_places_without_permission(kind: str, writer: str) -> None:
    """They are noticed before the input is read."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "a.fa").write_bytes(b"not FASTA")
        pack_files(PROTEINS, folder / "old.parquet", GreedyPacker(4096))
        place = folder / "place"
        place.mkdir()
        path = place / f"plan{SUFFIXES[writer]}"
        path.write_bytes(b"old")
        place.chmod(0o777 if kind == "file" else 0o555)
        path.chmod(0o444 if kind == "file" else 0o666)
        reason = "a file without permission to write"
        if kind == "folder":
            reason = r"cannot be written \(Permission denied\)"
        os.seteuid(65534)
        try:
            with pytest.raises(PermissionError, match=f"^{path}: {reason}$"):
                WRITERS[writer](folder, path)
        finally:
            os.seteuid(0)
        assert path.read_bytes() == b"old"
        assert list(place.iterdir()) == [path]


@pytest.mark.process
@pytest.mark.parametrize("command", ["pack", "report"])
def test_the_command_says_what_is_wrong_in_one_line(folder: Path, command: str) -> None:
    name = {"pack": "a.fa", "report": "old.parquet"}[command]
    path = folder / "missing" / {"pack": "plan.parquet", "report": "page.html"}[command]
    found = run(command, folder / name, "-o", path)
    assert (found.returncode, found.stderr) == (
        1,
        f"virnucpro: error: {path}: its folder does not exist\n",
    )


def test_folders_need_another_engine(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(CONTENT)
    result = run("pack", tmp_path / "a.fa", "-o", f"{tmp_path}/plan/")
    assert (result.returncode, result.stdout) == (2, "")
    message = f"virnucpro: error: {tmp_path}/plan/: a folder, which needs --engine ray"
    assert result.stderr.startswith(message)
    assert not (tmp_path / "plan").exists()

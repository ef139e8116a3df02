"""The files that names, folders and patterns stand for."""

from __future__ import annotations

import glob
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virnucpro.files.inputs import find_inputs, table_kind
from virnucpro.files.places import as_local, file_name, is_uri, join, name_of, parse
from virnucpro.files.sequences import read_files

NAMES = ["a.fa", "b.faa.gz", "c.tsv", ".h.fa", "_x.fa", "[1].fa", "é *.fa", "sub", ".git", "d%20\n"]
PATTERNS = [
    *("*", "**", "*.fa", "?.fa", "?*", "[!a]*", "sub"),
    *(".*", ".git", "[[]1].fa", "[1].fa", "*b*"),
]


def make(folder: Path, *names: str) -> None:
    """Write FASTA files."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(">a\nMK\n")


def found_in(folder: Path, *names: str) -> list[str]:
    """Return the paths of the inputs in a folder."""
    found = find_inputs([str(folder / name) for name in names])
    return [Path(file.name).relative_to(folder).as_posix() for file in found]


def test_folders_have_their_inputs_in_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = ["a-b/1.FASTA", "a/2.fa.gz", "a/3.fna.zst", "b.parquet", "c.tsv.gz", "d.A3M", "é.faa"]
    left_out = [".a.fa", "_b.fa", "a/.c/d.fa", "_e/f.fa", "a/2.fa.gz.fai"]
    make(tmp_path, *inputs, *left_out)
    assert found_in(tmp_path, "") == inputs
    assert not caplog.records
    make(tmp_path, "a/README", "z.txt", "c.parquet.gz")
    assert (
        found_in(
            tmp_path,
            "",
        )
        == inputs
    )
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("files ignored in input folders: 3, which are neither FASTA")
    assert record.message.endswith(f"(for example {tmp_path / 'a/README'})")
    # A file that is named is read, whatever its suffix.
    assert found_in(tmp_path, "z.txt", "_b.fa", "a/2.fa.gz.fai") == [
        "z.txt",
        "_b.fa",
        "a/2.fa.gz.fai",
    ]


@given(
    st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), min_size=1, max_size=8),
    st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3),
)
def test_patterns_match_what_the_standard_library_matches(
    files: list[list[str]], patterns: list[str]
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        for parts in files:
            path = folder.joinpath(*parts)
            # Some of the parts may be files already.
            if not any(above.is_file() for above in path.parents) and not path.exists():
                make(path.parent, path.name)
        pattern = str(folder.joinpath(*patterns))
        expected = {
            str(Path(match))
            for match in glob.glob(pattern, recursive=True)  # noqa: PTH207
            if Path(match).is_file()
        }
        if os.path.lexists(pattern):
            return
        if not expected:
            with pytest.raises(FileNotFoundError, match=r"matches no file|no such file"):
                find_inputs([pattern])
            return
        found = [file.name for file in find_inputs([pattern])]
        assert set(found) == expected
        assert found == sorted(found)
        assert len(found) == len(expected)


def test_a_file_of_that_very_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a[1].fa", "a1.fa", "*.fa", "s3:x", "C:\\x", "new\nline.fa")
    assert found_in(tmp_path, "a[1].fa") == ["a[1].fa"]
    assert found_in(tmp_path, "*.fa") == ["*.fa"]
    assert found_in(tmp_path, "[*].fa", "a[[]1].fa") == ["*.fa", "a[1].fa"]
    monkeypatch.chdir(tmp_path)
    for name in ("s3:x", "C:\\x", "new\nline.fa", "./*.fa"):
        (found,) = find_inputs([name])
        assert (found.name, found.size) == (name, 6)
    assert [file.name for file in find_inputs(["?1.fa"])] == ["a1.fa"]


def test_inputs_are_picklable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "in/a.fa")
    monkeypatch.chdir(tmp_path)
    (found,) = pickle.loads(pickle.dumps(find_inputs(["in"])))
    assert found == ("in/a.fa", "in/a.fa", 6)
    (stdin,) = find_inputs(["-"])
    assert stdin == ("-", "-", None)


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    try:
        Path(os.fsdecode(folder + b"/\xff.fa")).write_text(">a\nMK\n")
    except OSError:
        pytest.skip("the file system has no such names")
    for name in (str(tmp_path), str(tmp_path / "*"), tmp_path.as_uri() + "/%FF.fa"):
        (found,) = find_inputs([name])
        assert os.fsencode(found.name) == folder + b"/\xff.fa"


def test_files_are_found_once(tmp_path: Path) -> None:
    make(tmp_path, "a.fa", "b.fa")
    (tmp_path / "link.fa").symlink_to("a.fa")
    for names in (["a.fa", "a.fa"], ["b.fa", "*"], [""], ["link.fa", "a.fa"]):
        with pytest.raises(ValueError, match=r"(a|b|link)\.fa: given twice$"):
            found_in(tmp_path, *names)
    with pytest.raises(ValueError, match=r"^-: given twice$"):
        find_inputs(["-", "-"])
    uri = (tmp_path / "a.fa").as_uri()
    with pytest.raises(ValueError, match="given twice"):
        find_inputs([uri, str(tmp_path / "a.fa")])


def link(target: str) -> Callable[[Path], None]:
    """Return a function that makes a link to a target."""
    return lambda path: path.symlink_to(target)


@pytest.mark.parametrize(
    ("name", "prepare", "kind", "message"),
    [
        ("in", lambda _: None, FileNotFoundError, "in: no such file"),
        ("a\0b", lambda _: None, FileNotFoundError, r"a\\x00b: no such file"),
        ("in/*", lambda _: None, FileNotFoundError, "matches no file: .*in is not a folder"),
        ("in/*.fa", Path.mkdir, FileNotFoundError, r"in/\*.fa: matches no file"),
        ("in", Path.mkdir, ValueError, "in: is a folder without FASTA files or tables"),
        ("in", lambda path: make(path, "README"), ValueError, r"1 others, such as .*README\)"),
        ("in", lambda path: make(path, ".a.fa"), ValueError, "without FASTA files or tables"),
        ("in", link("in"), OSError, "cannot be read"),
    ],
)
def test_what_is_not_found_is_an_error(
    tmp_path: Path,
    name: str,
    prepare: Callable[[Path], object],
    kind: type[Exception],
    message: str,
) -> None:
    prepare(tmp_path / "in")
    with pytest.raises(kind, match=message):
        find_inputs([str(tmp_path / name)])


def test_loops_pipes_and_broken_links_in_folders(tmp_path: Path) -> None:
    make(tmp_path, "in/a.fa")
    loop = tmp_path / "in/sub"
    loop.symlink_to("..")
    with pytest.raises(OSError, match=r"a loop of links"):
        find_inputs([str(tmp_path / "in")])
    loop.unlink()
    (tmp_path / "in/b.fa").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"b\.fa: not a regular file$"):
        find_inputs([str(tmp_path / "in")])
    if hasattr(os, "mkfifo"):
        (tmp_path / "in/b.fa").unlink()
        os.mkfifo(tmp_path / "in/b.fa")
        with pytest.raises(ValueError, match=r"b\.fa: not a regular file$"):
            find_inputs([str(tmp_path / "in")])
        # A pipe that is named is read.
        assert [file.size for file in find_inputs([str(tmp_path / "in/b.fa")])] == [None]


def test_file_uris_are_paths(tmp_path: Path) -> None:
    make(tmp_path, "a b%20ü?.fa")
    path = tmp_path / "a b%20ü?.fa"
    (found,) = find_inputs([path.as_uri()])
    assert found.name == found.path == str(path)
    assert [file.name for file in find_inputs([f"{tmp_path.as_uri()}/*.fa"])] == [str(path)]
    assert read_files([path.as_uri()]).inputs == read_files([str(path)]).inputs
    for uri in ("file://host/a.fa", "file:///a.fa?x", "file://"):
        with pytest.raises(ValueError, match="a file:// URI has no host, an absolute path, and"):
            as_local(uri)


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://AKIA:hush@bucket/a", "s3://bucket/a"),
        ("s3://AKIA@bucket/a", "s3://bucket/a"),
        ("S3://AKIA:hush%2F%40@bucket/a@b?region=x&token=hush", "s3://bucket/a@b?region=x"),
        ("s3://bucket/a b#[1]*%20%2A.fa", "s3://bucket/a%20b%23%5B1%5D%2A%20%2A.fa"),
        ("gs://anonymous@bucket/ü", "gs://bucket/%C3%BC"),
        ("abfss://container:hush@account.dfs.core.windows.net/a", None),
        ("hdfs://user:hush@host:8020/a?kerb_ticket=hush", "hdfs://user@host:8020/a"),
        ("s3://bucket", "s3://bucket"),
    ],
)
def test_names_have_no_secrets(uri: str, name: str | None) -> None:
    assert is_uri(uri)
    name = name or "abfss://container@account.dfs.core.windows.net/a"
    assert name_of(uri) == name_of(name) == name
    assert parse(uri).scheme == uri.partition(":")[0].lower()
    assert "hush" not in uri or {"hush", "hush/@"} & set(parse(uri).secrets)


@pytest.mark.parametrize(
    "uri",
    [
        *("s3://AKIA:hush/hush@bucket/a", "s3://AKIA:hush?hush@bucket/a", "s3://AKIA:hush#@bucket"),
        *("s3://AKIA:8020/hush@bucket/a", "hdfs://user:hush/hush@host/a"),
        *("s3://AKIA:hush@bucket/%zz", "s3://AKIA:hush@bucket/\udc80"),
    ],
)
def test_no_error_has_a_secret(uri: str) -> None:
    for function in (name_of, parse, file_name, table_kind, lambda name: find_inputs([name])):
        with pytest.raises(ValueError, match=r"^\w+://") as caught:
            function(uri)
        assert "hush" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_paths_in_uris() -> None:
    uri = "s3://key:hush@bucket/my%20folder/?region=x"
    inside = join(uri, "a b/é*.parquet")
    assert inside == "s3://key:hush@bucket/my%20folder/a%20b/%C3%A9%2A.parquet?region=x"
    assert file_name(inside) == "é*.parquet"
    assert table_kind(inside) == table_kind("a.PQ") == "parquet"
    assert table_kind("s3://bucket/a.fa?x=.parquet") is None
    assert not any(map(is_uri, ("s3:x", "C:\\x", "C://x", "/s3://x", "-", "file:/x")))

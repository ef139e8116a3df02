"""The scanner of FASTA against the obvious reader, and what is refused around it."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest
from reference_fasta import read_plainly

from virnucpro import kernel
from virnucpro.files.fasta import ReadOptions, make_scanner

# Texts to scan; `make compare` tries more.
CASES = 200_000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 6000
PIECES = [
    *(b">", b">", b"\n", b"\n", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\v", b"\f", b"\0"),
    *(b"M", b"K", b"MKTAYIAKQR" * 7, b"mk", b"*", b"*", b"-", b".", b"X", b"z"),
    *(b"1", b";", b"/", b"@", b"+", b",", b"~", b"\x7f", b"P1;", b">a\n", b">a b\n", b"\n>"),
    *("é".encode(), "\U0001f9ec".encode(), b"\xe9", b"\xef", b"\xbb", b"\xbf", b"\xef\xbb\xbf"),
    *(b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf"),
    *(b">\xf5\x80\x80\x80\n", b">\xe2\x82\n", b">\xf0\x9f\xa7\n"),
]
# Most texts of any characters are refused at once.
TAME = [p for p in PIECES if p.isalpha() and p.isascii()] + [
    b"\n",
    b"\n>",
    b" ",
    b"*",
    b"-",
    b"\r\n",
]


def scan(text: bytes, options: ReadOptions, keep: bool, cut: random.Random) -> Any:
    """Return records (or lengths), begins, changes and the fault of a text in random pieces."""
    scanner = make_scanner(options, keep)
    taken: list[Any] = []
    begins: list[int] = []
    most = cut.choice([1, 2, 7, 100, 1000])
    while text:
        size = cut.randint(1, most)
        scanner.feed(text[:size])
        text = text[size:]
        if cut.random() < 0.5:
            taken += take(scanner, keep, begins)
    scanner.finish()
    taken += take(scanner, keep, begins)
    return taken, begins, scanner.changes, scanner.fault


def take(scanner: kernel.FastaScanner, keep: bool, begins: list[int]) -> list[Any]:
    if keep:
        return scanner.take_records()
    offsets, ids, lengths, some_begins = scanner.take_lengths()
    begins += some_begins.tolist()
    text = ids.tobytes()
    names = [text[a:b].decode() for a, b in itertools.pairwise(offsets)]
    return list(zip(names, lengths.tolist(), strict=True))


@pytest.mark.compare
@pytest.mark.parametrize("part", range(4))
def test_scanner_equals_the_naive_reader(part: int) -> None:
    draw = random.Random(part)
    num_read = 0
    for _ in range(CASES // 4):
        pieces = PIECES if draw.random() < 0.6 else TAME
        start = draw.choice([b">a\n", b">", b"", b"\xef\xbb\xbf"])
        text = start + b"".join(draw.choices(pieces, k=draw.randrange(24)))
        flags = [draw.random() < 0.5 for _ in range(3)]
        options = ReadOptions(strip_stop=flags[0], uppercase=flags[1], drop_gaps=flags[2])
        expected = read_plainly(text, *flags)
        records, _, changes, fault = scan(text, options, True, draw)
        assert records == expected.records, text
        lengths, begins, *again = scan(text, options, False, draw)
        assert lengths == [(name, len(sequence)) for name, sequence in records], text
        assert begins == expected.begins, text
        assert again == [changes, fault]
        if expected.fault is None:
            assert fault is None, text
            assert list(changes) == expected.changes, text
            num_read += 1
        else:
            line, record, _, reason = fault
            word = expected.fault[2]
            assert (line, record) == expected.fault[:2], text
            assert word in reason, (text, word, reason)
    # Neither kind is rare.
    assert 0.1 < num_read / (CASES // 4) < 0.9


@pytest.mark.parametrize("piece", ["text", 1, None, np.zeros((2, 2))[:, 0]])
def test_only_bytes_are_scanned(piece: Any) -> None:
    scanner = make_scanner(ReadOptions(), keep_residues=True)
    with pytest.raises((TypeError, BufferError, ValueError)):
        scanner.feed(piece)
    scanner.feed(bytearray(b">a\nM"))
    scanner.feed(memoryview(b"K\n"))
    scanner.feed(np.frombuffer(b"T", np.uint8))
    scanner.finish()
    assert scanner.take_records() == [("a", "MKT")]


def test_scanners_are_made_in_one_way() -> None:
    kind: Any = kernel.FastaScanner
    for make in (kind, partial(kind.__new__, kind), partial(object.__new__, kind)):
        with pytest.raises(TypeError, match=r"cannot create|is not safe"):
            make()
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(make_scanner(ReadOptions(), keep_residues=True))


def test_one_thread_at_a_time() -> None:
    """Others are refused, whatever they do, and nothing is read twice."""
    scanner = make_scanner(ReadOptions(), keep_residues=True)
    piece = b">a\n" + b"MKTAYIAKQR" * 500_000 + b"\n"
    fed: list[int] = []
    refused: list[str] = []
    start = threading.Barrier(4)

    def feed() -> None:
        start.wait()
        for _ in range(20):
            try:
                scanner.feed(piece)
                fed.append(1)
                scanner.take_lengths()
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=feed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(refused) <= {"another thread is using this scanner"}
    assert len(fed) + len(refused) >= 80
    assert scanner.fault is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strip_stop": 1}, TypeError, r"strip_stop must be a bool \(got 1\)"),
        ({"uppercase": None}, TypeError, r"uppercase must be a bool \(got None\)"),
        ({"drop_gaps": "no"}, TypeError, r"drop_gaps must be a bool \(got 'no'\)"),
        ({"id_column": None}, TypeError, r"id_column must be a str \(got None\)"),
        ({"length_column": 3}, TypeError, r"length_column must be a str \(got 3\)"),
    ],
)
def test_bad_options(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ReadOptions(**options)

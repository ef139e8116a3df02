"""The obvious reader of FASTA, which the scanner is compared with: all of a text, line by line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

BLANKS = b" \t\v\f"
MARK = b"\xef\xbb\xbf"
UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class Reading:
    """What a text holds: records up to the fault, which is a line, a record and a word for it."""

    records: list[tuple[str, str]] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    changes: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    fault: tuple[int, int, str] | None = None


class WrongError(Exception):
    """What a line may not hold."""


def read_plainly(text: bytes, strip_stop: bool, uppercase: bool, drop_gaps: bool) -> Reading:
    """Read a text as the documentation says."""
    found = Reading()
    begin = len(MARK) if text.startswith(MARK) else 0
    lines = text[begin:].split(b"\n")
    ids: list[str] = []
    sequences: list[bytearray] = []
    title = 0
    for number, line in enumerate(lines, start=1):
        plain = line[:-1] if line.endswith(b"\r") else line
        try:
            if plain.startswith(b">"):
                found.begins.append(begin)
                ids.append("")
                sequences.append(bytearray())
                ids[-1] = header(plain[1:])
                is_pir = re.match(r"(P1|F1|DL|DC|RL|RC|N1|N3|XX);", ids[-1])
                title = number + 1 if is_pir else 0
            elif not ids:
                begins_file(plain)
            else:
                if number == title and plain.strip(BLANKS):
                    raise WrongError("CR" if plain.strip(BLANKS)[0] == ord("\r") else "PIR")
                kept = residues(plain, uppercase, drop_gaps, found.changes)
                sequences[-1] += kept
        except WrongError as error:
            found.fault = (number, len(ids), str(error))
            break
        begin += len(line) + 1
    if found.fault is None:
        if not text or not ids:
            found.fault = (0, 0, "no record" if text else "empty file")
        elif lines[-1] == b">":
            found.fault = (len(lines), len(ids), "incomplete")
    if found.fault is not None:
        ids, sequences = ids[:-1], sequences[:-1]
        found.begins = found.begins[: len(ids)]
    for identifier, sequence in zip(ids, sequences, strict=True):
        kept = bytes(sequence).rstrip(b"*") if strip_stop else bytes(sequence)
        found.changes[0] += len(sequence) - len(kept)
        found.records.append((identifier, kept.decode()))
    return found


def begins_file(line: bytes) -> None:
    """Look at a line before the first record."""
    rest = line.lstrip(BLANKS)
    if rest[:1] == b"\r":
        raise WrongError("CR")
    if rest:
        raise WrongError("begin")


def header(line: bytes) -> str:
    """Return the ID of a header without its '>'."""
    bad = re.search(rb"[\0\r]", line)
    match = re.match(rb"[ \t\v\f]*([^ \t\v\f]*)", line)
    assert match is not None
    if bad is None or match.end() < bad.start():
        try:
            identifier = match[1].decode()
        except UnicodeDecodeError:
            raise WrongError("UTF-8") from None
    if bad is not None:
        raise WrongError("NUL" if bad[0] == b"\0" else "CR")
    return identifier


def residues(line: bytes, uppercase: bool, drop_gaps: bool, changes: list[int]) -> bytes:
    """Return the residues of a line and count what is changed."""
    kept = b""
    for place, byte in enumerate(line):
        letter = bytes([byte])
        if letter in BLANKS:
            continue
        if letter in UPPER or letter == b"*":
            kept += letter
        elif letter.upper() in UPPER and uppercase:
            kept += letter.upper()
            changes[1] += 1
        elif letter.upper() in UPPER and drop_gaps:
            changes[3] += 1
        elif letter in b"-." and drop_gaps:
            changes[2] += 1
        elif letter.upper() in UPPER or letter in b"-.":
            kept += letter
        else:
            raise WrongError(wrong(letter, place == 0))
    return kept


def wrong(letter: bytes, is_first: bool) -> str:
    """Return a word for what is not a residue."""
    words = {b"\0": "NUL", b"\r": "CR", b">": "'>' in a sequence"}
    if letter in words:
        return words[letter]
    if letter in b"0123456789":
        return "digit"
    if is_first and letter in b";/@+":
        return f"a line that begins with {letter.decode()!r}"
    return "character"

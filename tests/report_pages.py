"""Pages about plans, and what they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pyarrow as pa
import pyarrow.parquet as pq
from command import run
from fasta import fasta

from virnucpro.data import GreedyPacker, pack_files

UNIPROT = "https://www.uniprot.org/uniprotkb/"
LENGTHS = [30, 2000, *range(20, 1500, 3)]


def report(plan: Path) -> str:
    """Return the page about a plan, which the command writes."""
    page = plan.with_suffix(".html")
    result = run("report", plan, "-o", page)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert result.stderr == f"Report written to {page}\n"
    return page.read_text(encoding="utf-8")


def pack(folder: Path, lengths: list[int], *options: object) -> Path:
    """Return a plan for proteins of these lengths."""
    path, plan = folder / "a.fa", folder / "plan.parquet"
    path.write_bytes(fasta((f"<s{i}&>", "M" * n) for i, n in enumerate(lengths)))
    assert run("pack", path, "-o", plan, *options).returncode == 0
    return plan


def pack_table(
    folder: Path, ids: list[str], lengths: list[int], max_tokens: int = 4096, **options: Any
) -> Path:
    """Return a plan for a table of IDs and lengths, by a packer with these options."""
    path, plan = folder / "lengths.parquet", folder / "plan.parquet"
    pq.write_table(pa.table({"id": ids, "length": lengths}), path)
    pack_files(path, plan, GreedyPacker(max_tokens, **options))
    return plan


def parse(page: str) -> Element:
    """Return the tree of a page, which is well-formed XML, after checking it."""
    tree = ElementTree.fromstring(page)
    assert tree.tag == "html"
    policy = list(tree.iter("meta"))[1].attrib
    assert policy["http-equiv"] == "Content-Security-Policy"
    allowed = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-"
    assert policy["content"].startswith(allowed)
    names = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
    assert len(names) == len(set(names))
    for element in tree.iter():
        assert element.tag not in ("link", "img", "iframe", "object", "embed", "form", "base")
        assert not {"src", "srcset", "data", "onclick", "onerror"} & element.attrib.keys()
        if element.tag == "a":
            assert element.attrib["href"].startswith(UNIPROT)
        else:
            assert "href" not in element.attrib
    (style,) = tree.iter("style")
    assert not re.search(r"url\(|@import|expression", text_of(style))
    assert len(list(tree.iter("script"))) == 1
    for table in tree.iter("table"):
        assert len({len(row) for row in table.iter("tr")}) == 1
    return tree


def text_of(element: Element) -> str:
    return "".join(element.itertext()).replace("\xa0", " ")


def tables_of(page: str) -> dict[str, list[list[str]]]:
    """Return the cells of the tables of a page by the heading before each."""
    found, heading = {}, ""
    for element in parse(page).iter():
        if element.tag == "h2":
            heading = text_of(element)
        elif element.tag == "table":
            found[heading] = [[text_of(cell) for cell in row] for row in element.iter("tr")]
    return found


def cards_of(page: str) -> dict[str, tuple[str, str, str]]:
    """Return the class, value and note of each number at the top by its label."""
    (cards,) = (part for part in parse(page).iter("dl"))
    found = {}
    for card in cards:
        label, value = card
        found[text_of(label)] = (card.attrib["class"], value.text or "", text_of(value[0]))
    return {
        label: (kind, value.replace("\xa0", " "), note)
        for label, (kind, value, note) in found.items()
    }

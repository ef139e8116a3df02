"""The pages of the documentation, and their blocks of code, which run as they stand there.

A paragraph that begins with "Requires the extras `cli` and `esm`, and the packages `pandas` and
`polars`." or "Requires only NumPy." says in which environment the blocks below it run, in order and
in one session. A block of `output` is what the block before it prints, with `...` for anything.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from environments import make_environment, variables_of
from proteins import random_lengths

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"))
)
# What changes the checkout or the environment, or measures for minutes, is not run here.
OUTSIDE = re.compile(
    r"(make|(python3? -m )?pip install|python3? -m venv|source|git clone|cd|hf download|uv build"
    r"|cp -r src/\S+|PYTHONPATH=\S+ python3 benchmarks/\S+) .+|#.*|"
)
FENCE = re.compile(
    r"^(?P<fence>```+)(?P<language>\S*)[^\n]*\n(?P<code>.*?)^(?P=fence)$"
    r"|^Requires (?P<needs>(?:(?!\n\n).)+?)\.(?!\S)",
    re.DOTALL | re.MULTILINE,
)
# Which collations, lower case or UTF-16 would put in another order.
ODD = ["", "a", "B", "b", "É", "é", "z", "Z", "_", "\uffff", "\U00010000", "e\u0301", "10", "9"]
MORE = b">one\nMKTAYIAK\n>twice\nMKTAYIAK\n>none\n>long\n" + b"MKV" * 700 + b"\n"
REAL = ("ecoli_k12.faa.gz", "uniprot_viruses.faa.gz")


@dataclass
class Block:
    """A block of code, the number of the line before it, and what its environment needs."""

    language: str
    code: str
    line: int
    requirements: tuple[str, ...] | None

    @property
    def is_run(self) -> bool:
        """Whether the block runs in the environment of the page."""
        if self.language == "sh":
            return not all(OUTSIDE.fullmatch(line.strip()) for line in self.code.splitlines())
        return self.language == "python"


def read_requirements(text: str) -> tuple[str, ...]:
    """Return the requirements that the sentence after "Requires" names."""
    extras, _, packages = text.partition(" package")
    names = re.findall(r"`(.+?)`", extras)
    assert names or extras == "only NumPy", text
    return (f"virnucpro[{','.join(names)}]", *re.findall(r"`(.+?)`", packages))


def read_blocks(page: str) -> list[Block]:
    """Return the blocks of a page, without the directives of Sphinx."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks: list[Block] = []
    requirements = None
    for found in FENCE.finditer(text):
        if found["needs"]:
            requirements = read_requirements(found["needs"])
        elif not found["language"].startswith("{"):
            line = text.count("\n", 0, found.start("code"))
            blocks.append(Block(found["language"], found["code"], line, requirements))
    return blocks


def write_inputs(folder: Path, page: str, checkpoint: Path, is_real: bool = False) -> None:
    """Write the files that pages take for granted, and a tiny model under each name of ESM-2."""
    (folder / "examples").symlink_to(ROOT / "examples")
    example = (ROOT / "examples/proteins.fasta").read_bytes()
    if is_real:
        real = Path(os.environ["VIRNUCPRO_REAL_DATA"])
        proteins, more = (gzip.decompress((real / name).read_bytes()) for name in REAL)
    else:
        proteins, more = example, MORE
    for name, content in (("proteins.fasta", proteins), ("more.fasta", more)):
        (folder / name).write_bytes(content)
        with gzip.open(folder / f"{name}.gz", "wb", 1) as file:
            file.write(content)
    (folder / "proteins/part").mkdir(parents=True)
    shutil.copy(folder / "proteins.fasta.gz", folder / "proteins/first.faa.gz")
    shutil.copy(folder / "more.fasta.gz", folder / "proteins/part/second.faa.gz")
    (folder / "lengths").mkdir()
    ids, lengths = some_lengths()
    rows = np.array_split(np.arange(len(ids)), 3)
    for number, part in enumerate(rows):
        table = pa.table({"id": [ids[row] for row in part], "length": lengths[part]})
        pq.write_table(table, folder / f"lengths/part-{number}.parquet")
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in set(re.findall(r"facebook/esm2_\w+", text)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(checkpoint)


def some_lengths() -> tuple[list[str], np.ndarray]:
    """Return the IDs and lengths in `lengths/`; all odd IDs tie, as do most truncated sequences."""
    lengths = random_lengths(21_000)
    names = np.random.default_rng(1).permutation(len(lengths) - len(ODD))
    lengths[-len(ODD) :] = 300
    return [*(f"p{name}" for name in names), *ODD], lengths


class Pages:
    """Runs pages in environments that it makes once for each set of requirements."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environments: dict[tuple[str, ...], Path] = {}

    def environment(self, requirements: tuple[str, ...]) -> Path:
        """Return the folder of programs of an environment."""
        if requirements not in self.environments:
            folder = self.folder / f"environment-{len(self.environments)}"
            bin_folder = make_environment(folder, requirements)
            for name in ("sbatch", "srun"):
                (bin_folder / name).symlink_to(ROOT / "tests/fake_slurm.py")
            self.environments[requirements] = bin_folder
        return self.environments[requirements]

    def run(
        self, page: str, folder: Path, check: str | None = None, more: dict[str, str] | None = None
    ) -> Iterator[tuple[Block, str]]:
        """Run a page in a folder and check the names of its last session; yield what it prints."""
        blocks = [block for block in read_blocks(page) if block.is_run]
        sessions = [list(some) for _, some in groupby(blocks, key=lambda b: b.requirements)]
        for number, session in enumerate(sessions):
            requirements = session[0].requirements
            assert requirements is not None, f"{page} does not say what its blocks require"
            bin_folder = self.environment(requirements)
            is_last = number == len(sessions) - 1
            job = {
                "page": str(ROOT / page),
                "blocks": [vars(block) for block in session],
                "check": (str(ROOT / "tests/page_checks.py"), check) if check and is_last else None,
            }
            path = self.folder / "job.json"
            path.write_text(json.dumps(job), encoding="utf-8")
            done = subprocess.run(
                [bin_folder / "python", ROOT / "tests/run_page.py", path],
                cwd=folder,
                env={**variables_of(bin_folder, self.folder), **(more or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=600,
                check=False,
            )
            assert done.returncode == 0, done.stdout
            printed = json.loads(path.read_text(encoding="utf-8"))["blocks"]
            for block, found in zip(session, printed, strict=True):
                yield block, found["printed"]


def expected_outputs(page: str) -> dict[int, str]:
    """Return what blocks print as the page has it, by the lines of the blocks."""
    blocks = read_blocks(page)
    return {
        before.line: block.code for before, block in pairwise(blocks) if block.language == "output"
    }


def is_output(expected: str, printed: str) -> bool:
    """Return whether a block printed what the page has.

    `...` stands for anything within a line, and for any lines if it is a line. Any number of spaces
    is as good as one, as widths of tables differ.
    """

    def lines(text: str) -> list[str]:
        return [" ".join(line.split()) for line in text.strip().splitlines()]

    pattern = "".join(
        r"(.*\n)*?" if line == "..." else re.escape(line).replace(re.escape("..."), ".*?") + r"\n"
        for line in lines(expected)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines(printed))) is not None

"""Draw padded and packed batches of real proteins, for the README.

    VIRNUCPRO_REAL_DATA=folder python benchmarks/picture.py

Writes docs/padding.svg and prints the shares of padding.
"""

from __future__ import annotations

from pathlib import Path

import data
import numpy as np
from numpy.typing import NDArray

from virnucpro.data import GreedyPacker

PICTURE = Path(__file__).parents[1] / "docs/padding.svg"
BUDGET = 4096
NUM_BATCHES = 12

# In pixels.
MARGIN, TITLE, ROW, GAP = 16, 38, 6, 10
PER_TOKEN = 0.19
WIDTH = BUDGET * PER_TOKEN + 3 * GAP + 2 * MARGIN

STYLE = """
  .back { fill: #f8f9fb } .padding { fill: #cfd4dc } .tokens { fill: #2f6fb0 }
  text { font: 20px system-ui, sans-serif; fill: #1d2530 } tspan { font-weight: bold }
  @media (prefers-color-scheme: dark) {
    .back { fill: #161b22 } .padding { fill: #444c56 } .tokens { fill: #58a0e8 }
    text { fill: #e6edf3 }
  }
"""


def padding_of_padded(tokens: NDArray[np.int64], size: int) -> float:
    """Return the share of padding if batches of `size` sequences are padded to their longest."""
    batches = [tokens[start : start + size] for start in range(0, len(tokens), size)]
    return 1 - float(tokens.sum() / sum(len(batch) * batch.max() for batch in batches))


def bar(x: float, y: float, tokens: int, kind: str) -> str:
    """Return a row of tokens, with a gap after those of a sequence."""
    width = tokens * PER_TOKEN - (kind == "tokens")
    return f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}"/>'


def some_of(number: int) -> list[int]:
    """Return which of so many batches are drawn."""
    return [number * place // NUM_BATCHES for place in range(NUM_BATCHES)]


def draw_padded(tokens: NDArray[np.int64], size: int, top: int) -> tuple[list[str], int]:
    """Return batches of so many sequences in order of arrival, four side by side."""
    shapes = []
    for place, number in enumerate(some_of(len(tokens) // size)):
        batch = tokens[number * size : (number + 1) * size]
        x = MARGIN + place % 4 * (1024 * PER_TOKEN + GAP)
        y = top + place // 4 * (size * ROW + GAP)
        for row, length in enumerate(batch):
            shapes.append(bar(x, y + row * ROW, batch.max(), "padding"))
            shapes.append(bar(x, y + row * ROW, length, "tokens"))
    return shapes, top + NUM_BATCHES // 4 * (size * ROW + GAP)


def draw_packed(tokens: NDArray[np.int64], top: int) -> tuple[list[str], int]:
    """Return batches of a plan, each on a line."""
    plan = GreedyPacker(BUDGET).pack_lengths(tokens - 2)
    shapes = []
    for line, number in enumerate(some_of(len(plan))):
        x, y = float(MARGIN), top + line * (ROW + 2)
        shapes.append(bar(x, y, BUDGET, "padding"))
        for row in plan[number]:
            shapes.append(bar(x, y, tokens[row], "tokens"))
            x += tokens[row] * PER_TOKEN
    return shapes, top + NUM_BATCHES * (ROW + 2)


def draw(tokens: NDArray[np.int64], padded: float, packed: float) -> str:
    """Return the picture."""
    upper, end = draw_padded(tokens, 8, MARGIN + TITLE)
    second = end + GAP
    lower, end = draw_packed(tokens, second + TITLE)
    height = end + MARGIN
    texts = (f"{share * 100:.{digits}f} %" for share, digits in ((padded, 0), (packed, 1)))
    titles = [
        (MARGIN, "Padded, 8 proteins per batch", f"{next(texts)} of the tokens are padding"),
        (
            second,
            f"Packed, {BUDGET:,} tokens per batch",
            f"{next(texts)} of the tokens are padding",
        ),
    ]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height}" role="img">',
        f"<title>{'. '.join(f'{start}: {rest}' for _, start, rest in titles)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH:.0f}" height="{height}" rx="8"/>',
    ]
    for y, start, rest in titles:
        lines.append(f'<text x="{MARGIN}" y="{y + 20}"><tspan>{start}</tspan>: {rest}</text>')
    return "\n".join([*lines, *upper, *lower, "</svg>", ""])


def main() -> None:
    """Measure the padding, draw it, and print the shares."""
    lengths = data.real("ecoli_k12.faa.gz", "uniprot_viruses.faa.gz")
    tokens = np.minimum(lengths, 1022).astype(np.int64) + 2
    shares = {size: padding_of_padded(tokens, size) for size in (8, 16)}
    packed = 1 - GreedyPacker(BUDGET).pack_lengths(lengths).efficiency
    PICTURE.write_text(draw(tokens, shares[8], packed), encoding="utf-8")
    print(f"{len(tokens):,} proteins, truncated to 1,022 residues")
    for size, share in shares.items():
        print(
            f"padded, {size} in order of arrival per batch: {share:.1%} of the tokens are padding"
        )
    print(f"packed, {BUDGET:,} tokens per batch: {packed:.2%} of the tokens are padding")


if __name__ == "__main__":
    main()

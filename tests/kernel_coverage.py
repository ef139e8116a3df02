"""Tells which code and branches of the kernel its tests miss, from `llvm-cov export` on stdin.

A template counts as reached where one of the types it is compiled for reaches it. The exit status
is 1 where anything is missed.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

# Regions of code, as opposed to skipped ones and the gaps between statements.
CODE = 0


def main() -> int:
    """Print a line a file and what is missed, and return the exit status."""
    data = json.load(sys.stdin)["data"][0]
    # How often each place is run, and how often each branch goes either way.
    runs: dict[str, dict[tuple[int, int], int]] = defaultdict(lambda: defaultdict(int))
    ways: dict[str, dict[tuple[int, int, bool], int]] = defaultdict(lambda: defaultdict(int))
    for function in data["functions"]:
        for line, column, _, _, times, file, _, kind in function["regions"]:
            if kind == CODE:
                runs[function["filenames"][file]][line, column] += times
    for file in data["files"]:
        for line, column, _, _, taken, not_taken, *_ in file["branches"]:
            ways[file["filename"]][line, column, True] += taken
            ways[file["filename"]][line, column, False] += not_taken
    num_missed = 0
    for name in (file["filename"] for file in data["files"]):
        # Branches that are decided when compiling go neither way.
        decided = {way[:2] for way in ways[name]} - {way[:2] for way, n in ways[name].items() if n}
        open_ways = {way: n for way, n in ways[name].items() if way[:2] not in decided}
        missed = [f"{place} is never run" for place, n in runs[name].items() if n == 0]
        missed += [f"{way[:2]} is never {way[2]}" for way, n in open_ways.items() if n == 0]
        print(
            f"{Path(name).name}: {sum(map(bool, runs[name].values()))} of {len(runs[name])} "
            f"regions, {sum(map(bool, open_ways.values()))} of {len(open_ways)} branches"
        )
        for what in sorted(missed):
            print(f"  line and column {what}")
        num_missed += len(missed)
    return 1 if num_missed else 0


if __name__ == "__main__":
    sys.exit(main())

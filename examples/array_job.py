"""Pack tables of lengths as a whole with array jobs, in three steps that share a folder.

    count=$(sbatch --parsable --array=0-99 --wrap \
      'python array_job.py count work tables/*.parquet')
    layout=$(sbatch --parsable --dependency=afterok:$count --wrap \
      'python array_job.py lay-out work tables/*.parquet')
    sbatch --array=0-99 --dependency=afterok:$layout --wrap \
      'python array_job.py assign work tables/*.parquet'

Each job of an array processes one table, selected by number (SLURM_ARRAY_TASK_ID, or --task). The
tables are packed as one, in the order given; equally long sequences are in order of rows. The
result is work/NUMBER.parquet for each table, with columns batch, slot and tokens, in row order.
Jobs can be rerun and write the same files again. Pass the same options to all three steps.
"""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from virnucpro.data import GreedyPacker


def save(path: Path, value: Any) -> None:
    """Write a value to a file, which appears only when it is complete."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_bytes(pickle.dumps(value))
    unfinished.replace(path)


def load(path: Path) -> Any:
    """Read a value written by an earlier step."""
    return pickle.loads(path.read_bytes())


def main() -> None:
    """Read the options and run a step."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("step", choices=["count", "lay-out", "assign"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--task", type=int, default=os.environ.get("SLURM_ARRAY_TASK_ID"))
    parser.add_argument("--max-tokens", type=int, default=4096, help="tokens per batch")
    parser.add_argument("--length-column", default="length")
    options = parser.parse_args()
    folder, task = options.folder, options.task

    packer = GreedyPacker(options.max_tokens)
    if options.step == "lay-out":
        # For each table, save the counts of all tables before it, a few kilobytes.
        before = packer.count([])
        for number in range(len(options.tables)):
            save(folder / f"{number}.before", before)
            before += load(folder / f"{number}.counts")
        save(folder / "layout", packer.lay_out(before))
        return
    if task is None or not 0 <= task < len(options.tables):
        parser.error(f"the task must be from 0 to {len(options.tables) - 1} (got {task})")
    table = pq.read_table(options.tables[task], columns=[options.length_column])
    lengths = table[options.length_column].to_numpy()
    if options.step == "count":
        folder.mkdir(exist_ok=True)
        save(folder / f"{task}.counts", packer.count(lengths))
        return
    layout, before = load(folder / "layout"), load(folder / f"{task}.before")
    if packer.count(lengths) != load(folder / f"{task}.counts"):
        parser.error(f"{options.tables[task]} or --max-tokens changed after the count step")
    columns = {
        "batch": layout.assign(lengths, before=before),
        "slot": layout.slots(lengths, before=before),
        "tokens": layout.limits.tokens(lengths),
    }
    unfinished = folder / f".{task}.{os.getpid()}.tmp"
    pq.write_table(pa.table(columns), unfinished)
    unfinished.replace(folder / f"{task}.parquet")


if __name__ == "__main__":
    main()

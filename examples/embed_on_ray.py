"""Embed proteins on a Ray cluster: pack them as a whole, then send batches to models in actors.

    python examples/embed_on_ray.py proteins.fasta -o embeddings --model esm2_folder --actors 8

The inputs are FASTA files, or folders of them. --model names a checkpoint on the hub of Hugging
Face, or a folder that every machine has. The output is a folder of Parquet files with one vector
per protein. Requires virnucpro[esm,ray]. Each actor uses a GPU if the cluster has any. On a
cluster, run `ray job submit --working-dir examples -- python embed_on_ray.py ...`. Without Ray,
`virnucpro embed` embeds files on one machine or in array jobs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import ray

from virnucpro.data import Embedder, GreedyPacker, pack_dataset, read_dataset


class EmbedBatches:
    """An actor that holds a model."""

    def __init__(self, model: str, max_tokens: int, max_sequences: int) -> None:
        self.embedder = Embedder(model, max_tokens, max_sequences)

    def __call__(self, batches: pa.Table) -> pa.Table:
        """Embed the sequences of some batches, one batch per row."""
        tables = []
        for batch in batches.to_pylist():
            pairs = zip(batch["id"], batch["sequence"], strict=True)
            records = [{"id": name, "sequence": sequence} for name, sequence in pairs]
            vectors = pa.array(self.embedder.embed(records).ravel())
            columns = {
                "batch": pa.array([batch["batch"]] * len(records)),
                "id": pa.array(batch["id"]),
                "embedding": pa.FixedSizeListArray.from_arrays(vectors, self.embedder.width),
            }
            tables.append(pa.table(columns))
        return pa.concat_tables(tables)


def main() -> None:
    """Read the options, pack and embed the proteins, and write the vectors."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", required=True, help="name or folder of a checkpoint")
    parser.add_argument("--max-tokens", type=int, default=4096, help="tokens per batch")
    parser.add_argument("--actors", type=int, default=1)
    options = parser.parse_args()

    ray.init()
    proteins = read_dataset(options.inputs, sequences=True)
    # One row per batch, with lists of IDs and sequences.
    batches, layout = pack_dataset(
        proteins, GreedyPacker(options.max_tokens), order="id", result="batches"
    )
    print(layout)
    batches.map_batches(
        EmbedBatches,
        fn_constructor_args=(options.model, *layout.shape),
        batch_size=64,
        batch_format="pyarrow",
        concurrency=options.actors,
        num_gpus=1 if ray.cluster_resources().get("GPU") else 0,
    ).write_parquet(str(options.output.absolute()))


if __name__ == "__main__":
    main()

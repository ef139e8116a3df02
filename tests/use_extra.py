"""Uses an installed wheel with one extra, as `make release-test` does for each.

Usage: python tests/use_extra.py EXTRA[,EXTRA...]

With "none", the wheel has no extra. Every public name of the extras must be there, every other one
must be there too or name the extra that it needs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import virnucpro.data
from virnucpro.data import LAZY, GreedyPacker

ROOT = Path(__file__).parent.parent
FASTA = ROOT / "examples" / "proteins.fasta"
# What an extra installs of others.
CONTAINED = {"cli": {"fasta"}, "torch": {"fasta"}, "esm": {"fasta", "tight", "torch"}}


def check_names(extras: set[str]) -> None:
    """Import every public name."""
    for name, (_, needed) in LAZY.items():
        try:
            getattr(virnucpro.data, name)
            continue
        except ModuleNotFoundError as error:
            message = str(error)
        assert not extras.issuperset(needed.split(",")), f"{name} with {extras}: {message}"
        assert f"{name} needs " in message, message
        assert needed in message, message


def run(*arguments: object, status: int = 0) -> str:
    """Run the command, and return what it prints."""
    command = [sys.executable, "-m", "virnucpro", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == status, f"{command}: {result.returncode}\n{result.stderr}"
    return result.stdout + result.stderr


def use_numpy(_: Path) -> None:
    """Pack lengths."""
    plan = GreedyPacker(100).pack_lengths([50, 40, 30, 20])
    assert plan.indices.tolist() == [0, 1, 2, 3]


def refuse_commands(_: Path) -> None:
    """Have the command name the extra that it needs."""
    assert " needs " in run("--version", status=1)


def use_cli(folder: Path) -> None:
    """Pack a file, and read the plan with each command."""
    assert version("virnucpro") in run("--version")
    for suffix in ("parquet", "arrow"):
        plan = folder / f"plan.{suffix}"
        run("pack", FASTA, "-o", plan, "--max-tokens", 2000)
        assert "Batches" in run("stats", plan)
        assert "OK" in run("verify", plan, FASTA)
        run("report", plan, "-o", folder / "report.html")


def use_tight(_: Path) -> None:
    """Pack by column generation."""
    lengths = [50, 40, 30, 20] * 100
    assert GreedyPacker(100, method="tight").pack_lengths(lengths).num_batches > 0


def use_torch(_: Path) -> None:
    """Read a file, and draw its batches."""
    from virnucpro.data import PackedBatchSampler, SequenceDataset

    lengths = [len(record["sequence"]) for record in SequenceDataset(FASTA)]
    batches = list(PackedBatchSampler(GreedyPacker(2000).pack_lengths(lengths)))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))


def use_ray(_: Path) -> None:
    """Pack a data set."""
    import ray

    from virnucpro.data import pack_dataset

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    dataset = ray.data.from_items([{"length": length} for length in range(1, 200)])
    packed, layout = pack_dataset(dataset, GreedyPacker(400))
    assert (packed.count(), layout.num_sequences) == (199, 199)
    ray.shutdown()


def save_model(folder: Path) -> Path:
    """Save ESM-2 with one layer."""
    from transformers import EsmConfig, EsmModel, EsmTokenizer

    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<mask>"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(tokens))
    tokenizer = EsmTokenizer(str(folder / "vocab.txt"))
    config = EsmConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        pad_token_id=1,
        position_embedding_type="rotary",
        token_dropout=False,
    )
    EsmModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def use_esm(folder: Path) -> None:
    """Embed a file."""
    from virnucpro.data import embed_files

    output = folder / "embeddings"
    result = embed_files(FASTA, output, model=save_model(folder / "model"), device="cpu")
    assert result.complete == result.parts > 0


def use_cli_and_esm(folder: Path) -> None:
    """Embed a file by the command."""
    output = folder / "by command"
    run("embed", FASTA, "-o", output, "--model", save_model(folder / "other"), "--device", "cpu")
    assert "Residues" in run("stats", output)


USES: dict[str, Callable[[Path], None]] = {
    "none": refuse_commands,
    "fasta": refuse_commands,
    "cli": use_cli,
    "tight": use_tight,
    "torch": use_torch,
    "esm": use_esm,
    "ray": use_ray,
    "cli,esm": use_cli_and_esm,
}


def main(names: str) -> None:
    """Check that the wheel is installed by itself, and use it with its extras."""
    package = Path(virnucpro.__file__).resolve()
    assert ROOT.resolve() / "src" not in package.parents, package
    extras = set(names.split(","))
    for name in list(extras):
        extras |= CONTAINED.get(name, set())
    check_names(extras)
    with tempfile.TemporaryDirectory() as folder:
        for use in (use_numpy, USES[names]):
            use(Path(folder))
    print(f"Python {sys.version.split()[0]}, {names}: virnucpro {virnucpro.__version__} works")


if __name__ == "__main__":
    main(*sys.argv[1:])

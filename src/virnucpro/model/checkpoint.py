"""Checkpoints of Hugging Face transformers, loaded to run packed batches."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from virnucpro.model.vocabulary import Vocabulary, read_vocabulary
from virnucpro.text import first_line, quoted, shown

# The types that a model can run in, by name.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Parts of a configuration that do not change what a model computes.
INCIDENTAL = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


@dataclass(frozen=True)
class Checkpoint:
    """A model that was loaded with its tokenizer.

    Attributes:
        name: The folder or the name on the hub, as given.
        kind: The class of the model.
        sha256: The hash of its weights, its configuration and the tokens of all letters, whatever
            files they are stored in.
        model: The model, in evaluation mode, on the CPU, in the type of the checkpoint.
        tokenizer: Its tokenizer.
    """

    name: str
    kind: str
    sha256: str
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)


def load_checkpoint(name: str | os.PathLike[str]) -> Checkpoint:
    """Load a model and its tokenizer.

    Args:
        name: A folder with a checkpoint, or the name of a model on the hub of Hugging Face, such as
            ``facebook/esm2_t33_650M_UR50D``. What exists as a folder is one.

    Raises:
        FileNotFoundError: There is no such folder, and it is not the name of a model.
        ValueError: The checkpoint cannot be loaded, or lacks weights, which would be random.
        OSError: It cannot be read or downloaded.

    Cost: reading the weights once, and hashing them, a second per gigabyte or less.
    """
    from transformers import AutoModel, AutoTokenizer

    name = os.fspath(name)
    is_folder = Path(name).is_dir()
    if not is_folder and not is_hub_name(name):
        raise FileNotFoundError(f"{shown(name)}: no such folder of a model")
    try:
        with quiet():
            model, loaded = AutoModel.from_pretrained(
                name, output_loading_info=True, dtype="auto", ignore_mismatched_sizes=True
            )
            tokenizer = AutoTokenizer.from_pretrained(name)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        # Libraries raise what they like for files that are damaged.
        kind = OSError if isinstance(error, OSError) else ValueError
        what = "" if is_folder else "is not a folder, and as a name on the hub "
        elsewhere = f"hf download {shown(name)} --local-dir FOLDER"
        advice = "" if is_folder else f"; without internet, give a FOLDER made by `{elsewhere}`"
        raise kind(
            f"{shown(name)}: {what}cannot be loaded as a model with its tokenizer "
            f"({first_line(error)}){advice}"
        ) from error
    missing = set(loaded["missing_keys"])
    random = sorted(key for key in missing if "pooler" not in key.split("."))
    # Those have another shape.
    random += sorted(str(each[0]) for each in loaded["mismatched_keys"])
    if random:
        raise ValueError(
            f"{shown(name)}: the checkpoint does not have {len(random):,} of the weights of "
            f"{type(model).__name__}, which would be random (the first is {quoted(random[0])})"
        )
    model.eval()
    try:
        vocabulary = read_vocabulary(tokenizer)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{shown(name)}: {first_line(error)}") from error
    digest = hash_model(model, vocabulary, missing)
    return Checkpoint(name, type(model).__name__, digest, model, tokenizer)


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device with a name, or the default one; raise ValueError if there is none."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        # Raises if the device cannot be used.
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # Torch answers names that it does not know with all that some build of it knows.
        reason = first_line(error)
        reason = "not a device (try cpu or cuda)" if reason.startswith("Expected") else reason
        raise ValueError(f"device {quoted(str(device))}: {reason}") from error
    return found


def choose_dtype(dtype: str | None, device: torch.device) -> str:
    """Return the name of the type that a model runs in."""
    if dtype is None:
        return "bfloat16" if device.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)} (got {quoted(dtype)})")
    return dtype


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the report of transformers on weights, which is read, and its progress bar.

    Those of downloads are shown unless they are disabled.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    shows_downloads = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    # Also disables those of downloads.
    logging.disable_progress_bar()
    if shows_downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bar:
            logging.enable_progress_bar()


def is_hub_name(name: str) -> bool:
    """Return whether a text may be the name of a model on the hub: at most one slash, no path."""
    parts = name.split("/")
    return len(parts) <= 2 and all(part.strip(".") for part in parts) and "\\" not in name


def hash_model(model: Any, vocabulary: Vocabulary, left_out: set[str]) -> str:
    """Return the SHA-256 of what determines the output of a model, except weights left out."""
    digest = hashlib.sha256()
    config = {key: value for key, value in model.config.to_dict().items() if key not in INCIDENTAL}
    # What letters become, not the tokenizer's files, which may change it in many ways.
    letters = None if vocabulary.letter_ids is None else vocabulary.letter_ids.tolist()
    tokens = [vocabulary.before, vocabulary.after, vocabulary.unknown_id, letters]
    about = [type(model).__name__, config, tokens, sorted(vocabulary.word_ids.items())]
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name not in left_out:
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(data.numpy())
    return digest.hexdigest()

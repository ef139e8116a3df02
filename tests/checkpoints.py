"""Checkpoints of tiny models in folders, and embeddings of one sequence at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import huggingface_tokenizer, tiny_esm2
from numpy.typing import NDArray


def save_checkpoint(folder: Path, model: Any = None) -> Path:
    """Save a model, ESM-2 with three layers by default, and ESM-2's tokenizer."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    folder.mkdir(exist_ok=True)
    (tiny_esm2() if model is None else model).save_pretrained(folder)
    huggingface_tokenizer(folder).save_pretrained(folder)
    return folder


class OneByOne:
    """A checkpoint that runs one sequence at a time, with its own attention."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def states(self, sequence: str) -> NDArray[Any]:
        """Return the states of the residues, [residues, width]."""
        with torch.no_grad():
            inputs = self.tokenizer(sequence, return_tensors="pt")
            found: NDArray[Any] = self.model(**inputs).last_hidden_state[0, 1:-1].numpy()
        return found

    def windows(self, sequence: str, size: int, overlap: int) -> NDArray[Any]:
        """Return the states of the residues, each the mean over the windows that have it."""
        total: list[list[NDArray[Any]]] = [[] for _ in sequence]
        start = 0
        while True:
            for place, state in enumerate(self.states(sequence[start : start + size])):
                total[start + place].append(state)
            if start + size >= len(sequence):
                return np.array([np.mean(states, axis=0) for states in total])
            start += size - overlap

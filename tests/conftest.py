"""Profiles of property tests (HYPOTHESIS_PROFILE=long or few), Ray, and tiny models of ESM-2."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("short", deadline=None)
settings.register_profile("long", deadline=None, max_examples=40_000)
settings.register_profile("few", deadline=None, max_examples=20, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


# Not of the session, as Ray's idle processes take a fifth of a core.
@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Start Ray with two workers and no output."""
    import ray.data

    ray.init(
        # Not a cluster that happens to run on this machine.
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=2**29,
        ignore_reinit_error=True,
        # By default it ends workers that it has more of than cores, and starts them anew, which
        # takes seconds.
        _system_config={"num_workers_soft_limit": 8},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ESM-2's tokenizer of transformers."""
    from models import huggingface_tokenizer

    return huggingface_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=["huggingface", "fair-esm"])
def batch_converter(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    """ESM-2's tokenizer, of transformers and of fair-esm."""
    from models import fair_esm_converter

    return tokenizer if request.param == "huggingface" else fair_esm_converter()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny ESM-2."""
    from checkpoints import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> Any:
    """The same model, which runs one sequence at a time."""
    from checkpoints import OneByOne

    return OneByOne(checkpoint)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have few sequences in each part of embeddings."""
    from virnucpro.jobs import embed_work

    monkeypatch.setattr(embed_work, "MIN_PART_RESIDUES", 150)


@pytest.fixture(scope="module")
def whole_job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An embedding job that is complete, with small parts; see `embedding_job`."""
    from embedding_job import Job

    from virnucpro.jobs import embed_work

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embed_work, "MIN_PART_RESIDUES", 1000)
        yield Job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def job(whole_job: Any) -> Any:
    """The same job, restored to what it was."""
    whole_job.restore()
    return whole_job


@pytest.fixture(scope="session")
def stores() -> Iterator[Any]:
    """A server of objects as S3's; see `object_store`."""
    from object_store import run_store

    with run_store() as store:
        yield store


@pytest.fixture
def store(stores: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same server, empty, with its keys in the environment."""
    from object_store import KEYS

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    stores.clear()
    return stores

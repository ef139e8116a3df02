"""An embedding job that is complete, with small parts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from embedding_job import Job

from virnucpro.jobs import embed_work


@pytest.fixture(scope="module")
def _small_parts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(embed_work, "MIN_PART_RESIDUES", 1000)
        yield


@pytest.fixture(scope="module")
def whole_job(_small_parts: None, tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("job"))


@pytest.fixture
def job(whole_job: Job) -> Job:
    whole_job.restore()
    return whole_job

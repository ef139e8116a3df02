"""How many examples property tests try (HYPOTHESIS_PROFILE=long or few), and Ray for tests."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("short", deadline=None)
settings.register_profile("long", deadline=None, max_examples=40_000)
settings.register_profile("few", deadline=None, max_examples=20, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

# Ray ends workers beyond this number, by default that of cores, as soon as they are idle; to start
# one takes seconds.
os.environ.setdefault("RAY_num_workers_soft_limit", "8")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[str]:
    """Give the address of Ray with two workers and nothing on the terminal."""
    import ray.data

    context = ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=2**29,
        ignore_reinit_error=True,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    yield context.address_info["gcs_address"]
    ray.shutdown()

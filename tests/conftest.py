"""How many examples property tests try: HYPOTHESIS_PROFILE=long tries many more."""

import os

from hypothesis import settings

settings.register_profile("short", deadline=None)
settings.register_profile("long", deadline=None, max_examples=40_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))

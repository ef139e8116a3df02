"""Leaves out the tests of embeddings where no model can be run."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("transformers") else ["test_embed*.py"]

"""Configuration of Sphinx, which builds the pages in build/docs."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import numpy.typing
from sphinx.application import Sphinx

# Show NDArray[np.int64] as ndarray[int64], without the type of its shape.
numpy.typing.NDArray = np.ndarray

project = "virnucpro"
smartquotes = False
highlight_language = "none"
release = importlib.metadata.version("virnucpro")
html_theme = "furo"
html_show_copyright = False
html_title = f"virnucpro {release}"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["doors.css"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "Paths": "Paths"}
myst_heading_anchors = 3

# Single backticks mark Python: a name with a dot or a capital must be on these pages; any other is
# an argument or a key.
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", r"[a-z_0-9]+"),
    ("py:class", "ArrayLike|IterableDataset|MapDataset|PathLike|Paths"),
    # Other libraries.
    ("py:.*", r"(collections|numpy|os|pathlib|ray|torch|typing)\..*"),
]

# Classes that users do not construct themselves.
RESULTS = ["Layout", "PackingPlan", "TokenCounts", "BatchRows"]


def hide_constructor(_app: object, _what: str, name: str, *_: object) -> tuple[str, None] | None:
    """Hide the arguments of classes that users do not construct."""
    return ("", None) if name.rpartition(".")[2] in RESULTS else None


def setup(app: Sphinx) -> None:
    """Connect the hooks; Sphinx calls this function."""
    app.connect("autodoc-process-signature", hide_constructor)

"""Imports the package first, as the examples of a module otherwise run in a second copy of it."""

import virnucpro.data  # noqa: F401

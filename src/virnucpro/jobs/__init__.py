"""Whole jobs: from files to a plan, and from a plan to a report."""

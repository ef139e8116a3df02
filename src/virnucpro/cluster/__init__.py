"""Packing of data sets distributed over a cluster. Needs Ray."""

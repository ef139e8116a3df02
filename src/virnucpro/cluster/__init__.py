"""Packing of data sets that are spread over a cluster. Needs Ray."""

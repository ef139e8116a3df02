"""The mutations that `make mutate` plants fit the kernel's source."""

from __future__ import annotations

from mutate_kernel import MUTATIONS, misplaced


def test_each_mutation_replaces_a_text_that_occurs_once() -> None:
    assert len(MUTATIONS) > 100
    assert misplaced(MUTATIONS) == []

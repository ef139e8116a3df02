"""Some batches of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from virnucpro.kernel.arguments import check_index

if TYPE_CHECKING:
    from virnucpro.data.plan import PackingPlan


class BatchRows:
    """Some batches of a plan: a sequence of arrays of row numbers, as the plan itself is."""

    def __init__(self, plan: PackingPlan, batches: range) -> None:
        self._plan = plan
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> NDArray[Any]:
        """Return the rows of the batch at an index; see `PackingPlan`."""
        return self._plan[self._batches[check_index(index, "index")]]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self._plan[batch] for batch in self._batches)

    def __repr__(self) -> str:
        return f"BatchRows({len(self):,} of {len(self._plan):,} batches)"

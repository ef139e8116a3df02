"""A node that is lost changes nothing; `cluster_faults` loses more of them, and workers."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cluster_faults import make_inputs
from simulated_cluster import SimulatedCluster

from virnucpro.cluster import pack, ranges
from virnucpro.cluster.plan_parts import PlanFolder
from virnucpro.data import GreedyPacker, pack_files
from virnucpro.files.plan_reader import PlanFile

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_node_lost_while_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pickled whole, as workers cannot import this file.
    class SlowPlan(PlanFolder):
        def describe(self, table: Any) -> Any:
            time.sleep(0.3)
            return super().describe(table)

    make_inputs(tmp_path, {"a.parquet": 200_000})
    packer = GreedyPacker(4096)
    expected = pack_files(tmp_path / "a.parquet", tmp_path / "local.parquet", packer)
    monkeypatch.setattr(pack, "PlanFolder", SlowPlan)
    monkeypatch.setattr(ranges, "TASK_BYTES", 2**21)
    found: list[Any] = []
    arguments = tmp_path / "a.parquet", tmp_path / "plan", packer
    thread = threading.Thread(target=lambda: found.append(pack.pack_files_on_ray(*arguments)))
    cluster = SimulatedCluster(2)
    try:
        thread.start()
        while thread.is_alive() and not list(tmp_path.glob("**/part-*")):
            time.sleep(0.01)
        cluster.lose(cluster.nodes[0])
        written = len(list(tmp_path.glob("**/part-*")))
        thread.join()
    finally:
        cluster.shut_down()
    assert found == [expected]
    plan, whole = PlanFile(tmp_path / "plan"), PlanFile(tmp_path / "local.parquet")
    assert plan.read().equals(whole.read())
    assert 0 < written < len(list((tmp_path / "plan").glob("part-*")))

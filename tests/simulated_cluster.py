"""A cluster of several small nodes on this machine, which can be lost."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
CONFIG = {
    # So that a lost node is known soon.
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
    # By default workers beyond one per core are ended and started anew, which takes seconds.
    "num_workers_soft_limit": 4,
}


def children_of(process: int) -> list[int]:
    """Return the processes that a process started."""
    paths = Path(f"/proc/{process}/task").glob("*/children")
    with suppress(OSError):
        return [int(word) for path in paths for word in path.read_text().split()]
    return []


def title_of(process: int) -> str:
    """Return the title of a process; Ray's workers have that of their task."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text().rstrip("\0").replace("\0", " ")
    return ""


def end(process: int) -> None:
    """End a process, if it has not ended."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def tree(root: int) -> list[int]:
    """Return a process and all below it."""
    return [root, *(process for child in children_of(root) for process in tree(child))]


class SimulatedCluster:
    """A head without cores, which the driver uses, and some nodes of one core."""

    def __init__(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": CONFIG}
        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, **head})
        ray.init(self.cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        self.fill()

    @property
    def nodes(self) -> list[Any]:
        """The nodes but for the head."""
        return [*self.cluster.worker_nodes]

    def fill(self) -> None:
        """Replace the nodes that were lost."""
        while len(self.nodes) < self.num_nodes:
            self.cluster.add_node(**NODE)

    def workers(self, task: str = "") -> dict[int, Any]:
        """Return the processes that run a task, or all workers, with their nodes."""
        return {
            process: node
            for node in self.nodes
            for process in children_of(node.all_processes["raylet"][0].process.pid)
            if title_of(process).startswith(f"ray::{task}")
        }

    def lose(self, node: Any) -> None:
        """End a node and all of its processes."""
        lost = [process for process, place in self.workers().items() if place is node]
        self.cluster.remove_node(node, allow_graceful=False)
        for process in lost:
            end(process)

    def shut_down(self) -> None:
        """End all nodes."""
        ray.shutdown()
        self.cluster.shutdown()

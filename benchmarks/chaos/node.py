"""One node of a Ray cluster on loopback, which runs as long as this process.

`ray start` refuses a second node if the first is on 127.0.0.1, so this starts the same processes itself. It writes
`HOST:PORT` of the cluster into a file once the node is up, and ends on request or when its raylet has ended.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from types import FrameType

from ray._private.node import Node
from ray._private.parameter import RayParams

POLL_S = 0.2


def node(address: str, cluster: str | None, *, num_cpus: int, store_mib: int, folder: Path) -> Node:
    """Start a node at `address`, of a new cluster or of the one whose GCS is at `cluster`."""
    params = RayParams(
        node_ip_address=address,
        gcs_address=cluster,
        num_cpus=num_cpus,
        num_gpus=0,
        object_store_memory=store_mib << 20,
        min_worker_port=0,
        max_worker_port=0,
        include_dashboard=False,
        include_log_monitor=False,
        dashboard_agent_listen_port=0,
        temp_dir=str(folder),
    )
    return Node(params, head=cluster is None, shutdown_at_exit=True, spawn_reaper=True)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    """Run a node until requested to end (exit code 0) or until its raylet has died (exit code 1)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--cluster")
    parser.add_argument("--num-cpus", type=int, required=True)
    parser.add_argument("--store-mib", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    parent = os.getppid()
    started = node(
        given.address, given.cluster, num_cpus=given.num_cpus, store_mib=given.store_mib, folder=given.folder
    )
    given.ready.write_text(started.gcs_address)
    while os.getppid() == parent:  # a harness that is gone has no use for a cluster
        if started.dead_processes():
            raise SystemExit(1)  # the others of the node end with this one
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()

"""Open the cluster of a config given as JSON, and write what its workers see as one line of JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util import placement_group_table

from cluster.launch import on_loopback, open_cluster
from rlsys.config.run import parse


class Worker:
    def look(self) -> dict[str, Any]:
        import learner
        import rlsys

        assert Path(learner.__file__).parent.name == "learner"
        names = ("DS_ACCELERATOR", "RAY_USAGE_STATS_ENABLED")
        return {
            "gpus": ray.get_gpu_ids(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "code": str(Path(rlsys.__file__).parent.parent),
            "cwd": os.getcwd(),
            "env": {name: os.environ.get(name) for name in names},
        }


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    found: dict[str, Any] = {}
    if gpus := os.environ.get("PROBE_GPUS"):  # that are not there: Ray gives away any number
        settings = {"include_dashboard": False, "logging_level": "ERROR", "_node_ip_address": "127.0.0.1"}
        with on_loopback():
            ray.init(address="local", num_cpus=8, num_gpus=int(gpus), object_store_memory=100 << 20, **settings)
    try:
        with open_cluster(parse(json.loads(sys.argv[1]), source="probe")) as cluster:
            options = [*cluster.learner_options, *cluster.actor_options]
            workers = [ray.remote(Worker).options(**chosen).remote() for chosen in options]
            found["workers"] = ray.get([worker.look.remote() for worker in workers], timeout=600.0)
            found["is_local"] = cluster.is_local
            found["cpus"] = ray.cluster_resources()["CPU"]
            found["folder"] = str(Path(ray._private.worker.global_worker.node.get_session_dir_path()).parent)
            found["others_may_enter"] = bool(Path(found["folder"]).parent.stat().st_mode & 0o077)
            found["processes"] = [process.pid for process in psutil.Process().children(recursive=True)]
            if os.environ.get("PROBE_FAILS"):
                raise RuntimeError("as the test wants")
        if not found["is_local"] and not gpus:
            address = json.loads(sys.argv[1])["cluster"]["address"]
            ray.init(address=address, logging_level="ERROR")
            states = [group["state"] for group in placement_group_table().values()]
            found["left_reserved"] = sum(state != "REMOVED" for state in states)
    finally:
        if found:
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

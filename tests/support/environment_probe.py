"""Starts a run's processes and prints, by kind of process, which secrets are in its environment.

`python -m tests.support.environment_probe CONFIG SECRET…`: CONFIG is a run's config as JSON, SECRET a value to find.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import psutil
import ray

from actors.pool import RolloutPool
from actors.requests import EngineSpec
from cluster.launch import open_cluster
from learner.group import LearnerGroup
from rlsys.config.run import parse
from rlsys.data.video.decoders import Decoders
from rlsys.data.video.errors import ClipError
from tests.support.video_files import make_spec


def found_in(process: psutil.Process, secrets: list[str]) -> list[str]:
    """Names of the variables of a process whose value is one of the secrets."""
    try:
        return sorted(name for name, value in process.environ().items() if value in secrets)
    except psutil.Error:
        return []


def found_by_kind(secrets: list[str]) -> dict[str, list[str]]:
    """The same for all processes below this one, by kind of process."""
    seen: dict[str, list[str]] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            name = (process.cmdline() or ["?"])[0]
        except psutil.Error:  # it has just ended
            continue
        kind = next((kind for kind in ("LearnerWorker", "RolloutActor", "Decoder") if kind in name), "ray")
        seen[kind] = sorted({*seen.get(kind, []), *found_in(process, secrets)})
    return seen


async def decode_nothing() -> None:
    decoders = Decoders(1, timeout_s=60.0)
    try:
        await decoders.decode([make_spec("none.mp4")])
    except ClipError:
        return
    raise AssertionError("a missing file was decoded")


def main() -> None:
    config, secrets = parse(json.loads(sys.argv[1]), "probe"), sys.argv[2:]
    with open_cluster(config) as cluster:
        task = ray.get(ray.remote(lambda: found_in(psutil.Process(), secrets)).remote())
        learner = LearnerGroup.launch(
            num_ranks=1, device="cpu", threads=1, timeout_s=120.0, options=cluster.learner_options
        )
        ray.get([worker.where.remote() for worker in learner._workers])
        spec = EngineSpec(model=config.model, rollout=config.rollout, banned_token_ids=())
        pool = RolloutPool.launch(spec, num_actors=1, options=cluster.actor_options)  # its process is enough
        asyncio.run(decode_nothing())
        seen = {"task": task}
        deadline_s = time.monotonic() + 90.0
        while "RolloutActor" not in seen and time.monotonic() < deadline_s:  # its process starts in the background
            time.sleep(0.1)
            seen = {"task": task} | found_by_kind(secrets)
        pool.shutdown()  # before their cluster, or the pool would ask an ended one for another actor
        learner.shutdown()
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()

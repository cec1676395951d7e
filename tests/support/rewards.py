"""A local Ray cluster for tests of the reward servers on Ray Serve, and captions for the judge."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import ray

from cluster.access_token import require_token
from cluster.launch import on_loopback
from reward_servers.client.client import RewardClient
from reward_servers.server import app
from rlsys import env
from rlsys.config.run import RewardConfig
from rlsys.types import RolloutGroup, ScoredGroup
from tests.support.factories import make_group
from tests.support.pace import patience

NO_TOKEN = "RLSYS_TEST_NO_TOKEN"
REFERENCE = "A dog runs. It stops. A man waves."
"""A reference caption; for the fault server an event is recalled if the caption contains it word for word."""


@pytest.fixture(scope="module")
def serve_cluster() -> Iterator[Path]:
    """Run a local Ray cluster for one test module, with everything launched on it, and yield its log folder."""
    temp_dir = tempfile.mkdtemp(prefix="rw", dir="/tmp")  # short: Ray keeps sockets in it
    is_ours = not ray.is_initialized()
    env.be_quiet()  # the cluster's processes inherit it
    if is_ours:
        require_token()
        with on_loopback():
            ray.init(
                address="local",
                _node_ip_address="127.0.0.1",
                include_dashboard=False,
                num_cpus=4,
                _temp_dir=temp_dir,
                object_store_memory=100_000_000,
            )
    yield Path(ray._private.worker._global_node.get_session_dir_path())
    app.shutdown()
    if is_ours:
        ray.shutdown(wait_for_processes=True)
    shutil.rmtree(temp_dir, ignore_errors=True)


def captions(*texts: str, prompt_id: str = "captions:0", reference: str = REFERENCE) -> RolloutGroup:
    """Return a group of responses to a captioning prompt, one per text."""
    group = make_group(prompt_id, num_rollouts=len(texts))
    rollouts = tuple(
        dataclasses.replace(rollout, text=f"<think>I look.</think><answer>{text}</answer>")
        for rollout, text in zip(group.rollouts, texts, strict=True)
    )
    item = dataclasses.replace(group.item, task="captioning", truth={"caption": reference})
    return dataclasses.replace(group, rollouts=rollouts, item=item)


def score_groups(
    url: str, groups: Sequence[RolloutGroup], token: str | None = None, **reward: object
) -> list[ScoredGroup]:
    """Score all groups at once through the real client."""

    async def ask() -> list[ScoredGroup]:
        client = RewardClient(RewardConfig.model_validate({"timeout_s": patience(30.0), **reward}), url, token)
        try:
            return list(await asyncio.gather(*(client.score(group, {}) for group in groups)))
        finally:
            await client.close()

    return asyncio.run(ask())

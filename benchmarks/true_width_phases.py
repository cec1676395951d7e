"""The phases of `benchmarks.true_width`, each of which runs in a process of its own and notes when its steps ran."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.true_width_prompts import LEARNERS, LORA_RANK, Case, builder_of, group_of, prompt_and_clip, run_config
from rlsys import env
from rlsys.config.run import RunConfig
from rlsys.lean_imports import lean_imports
from rlsys.models.folder import content_digest
from rlsys.types import ClipRef, RolloutGroup, Sampling, TrainBatch
from rlsys.weights.manifest import WeightTransfer
from rlsys.weights.version import WeightVersion

SETTLE_S = 0.1


class Steps:
    """A record of a phase's steps: name, start and end by `time.monotonic`, and facts, one JSON line each."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @contextmanager
    def __call__(self, name: str) -> Iterator[dict[str, Any]]:
        """Time a step; the caller adds facts to what is yielded."""
        gc.collect()
        time.sleep(SETTLE_S)  # the watcher reads what is held before it
        facts: dict[str, Any] = {}
        start = time.monotonic()
        yield facts
        line = {"step": name, "start": start, "end": time.monotonic(), **facts}
        with self._file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")


def engine(folder: Path, case: Case, steps: Steps) -> None:
    """Load an engine and sample a group."""
    from actors.requests import environment
    from rlsys.runs.assemble import engine_spec

    config = run_config(folder, case)
    spec = engine_spec(config, builder_of(config))
    os.environ.update(environment(spec))
    with lean_imports():
        from actors.engine import RolloutEngine
    with steps("load"):
        loaded = RolloutEngine(spec)
    _accept_own(loaded, config)
    request, frames = _request(config, case, seed=0)
    with steps("generate") as facts:
        loaded.add("0", request, frames)
        ended: list[Any] = []
        while not ended:
            ended = loaded.step()
        rollouts = ended[0][1]
        facts["prompt_tokens"] = len(rollouts[0].prompt_ids)
        facts["response_tokens"] = sum(len(rollout.response_ids) for rollout in rollouts)
    lengths = {len(rollout.response_ids) for rollout in rollouts}
    if lengths == {case.response_tokens}:  # an end token is one of 151,936
        ids = np.stack([rollout.response_ids for rollout in rollouts])
        logprobs = np.stack([rollout.response_logprobs for rollout in rollouts])
        np.savez(folder / f"responses_{case.name}.npz", ids=ids, logprobs=logprobs)
    loaded.shutdown()


def _accept_own(loaded: Any, config: RunConfig) -> None:
    digest = content_digest(config.model.path)
    own = WeightVersion(version=0, transport="folder", num_tensors=0, num_bytes=0, digest=digest, kind="own")
    loaded.load_weights(WeightTransfer(buckets=(), timeout_s=1.0), own)


def _request(config: RunConfig, case: Case, seed: int) -> tuple[Any, tuple[np.ndarray]]:
    from actors.requests import GroupRequest

    item, prompt, clip = prompt_and_clip(config, case, seed)
    rollout = config.rollout
    request = GroupRequest(
        prompt_id=item.prompt_id,
        engine_ids=prompt.engine_ids,
        num_tokens=prompt.prompt_ids.size,
        clips=(clip.info,),
        sampling=Sampling(
            num_samples=rollout.group_size,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            max_tokens=rollout.max_tokens,
            seed=7,
        ),
    )
    return request, (clip.frames,)


def packed(folder: Path, case: Case, steps: Steps) -> None:
    """Pack a group, compute its log-probs, and the head's forward and backward pass by itself."""
    from learner.model.policy import PackedPolicy, load_model, read_layout
    from learner.packing.packing import pack
    from learner.packing.shards import group_row

    torch.set_num_threads(2)
    config = run_config(folder, case)
    with steps("load"):
        model = load_model(config.model.path, dtype="bfloat16", attention="sdpa")
        policy = PackedPolicy(model.requires_grad_(False)).eval()
    group = group_of(config, case, folder, seed=0)
    size = len(group.rollouts)
    row = group_row(group, np.ones(size, np.float32), np.ones(size, bool))
    layout = read_layout(model, config.model.path)
    with steps("pack") as facts:
        batch = pack([row], layout, dtype=torch.bfloat16)
        facts |= {"tokens": row.num_tokens, "patches": len(batch.patches), "targets": row.num_targets}
    if not case.has_pass:
        return
    with steps("log-probs") as facts, torch.no_grad():
        logprobs, _ = policy(batch)
        facts |= {"tokens": row.num_tokens, "patches": len(batch.patches), "targets": row.num_targets}
        difference = (logprobs - batch.sampler_logprobs).abs()
        facts["sampler_difference"] = [difference.mean().item(), difference.max().item()]
    hidden = torch.randn(row.num_targets, model.config.text_config.hidden_size, dtype=torch.bfloat16)
    hidden.requires_grad_()
    with steps("head") as facts:
        found, _ = model.lm_head(hidden, batch.targets)
        found.sum().backward()
        facts["targets"] = row.num_targets


@contextmanager
def _ray(config: RunConfig) -> Iterator[None]:
    import ray

    env.be_quiet()
    os.environ.update(env.CPU_WORKERS)
    scratch = tempfile.mkdtemp(prefix="tw-", dir="/tmp")  # short: Ray's sockets go below it
    os.environ["PYTHONPATH"] = str(Path.cwd())
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=config.cluster.object_store_mib << 20,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=scratch,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _learner(config: RunConfig, **changes: Any) -> tuple[Any, Any]:
    """Return two ranks without a model yet, and the spec of what they are to load."""
    from learner.group import LearnerGroup
    from learner.spec import LearnerSpec

    spec = LearnerSpec(
        model=config.model,
        rollout=config.rollout,
        train=config.train,
        algorithm=config.algorithm,
        learner=config.learner,
        weights=config.weights,
        **changes,
    )
    group = LearnerGroup.launch(num_ranks=2, device="cpu", threads=1, timeout_s=3600.0)
    group._call("prepare")
    return group, spec


def _batch(config: RunConfig, case: Case, folder: Path) -> TrainBatch:
    """Return a group for each rank, or for each sequence group, with frames in the object store."""
    import ray

    groups = []
    for seed in range(2 // case.sequence_parallel):
        group = group_of(config, case, folder, seed)
        clips = tuple(ClipRef(info=clip.info, frames=ray.put(clip.frames)) for clip in group.clips)
        groups.append(RolloutGroup(item=group.item, prompt=group.prompt, clips=clips, rollouts=group.rollouts))
    advantages = np.linspace(-1, 1, case.group_size, dtype=np.float32)
    return TrainBatch(
        objective="grpo",
        groups=tuple(groups),
        advantages=(advantages,) * len(groups),
        is_trained=(np.ones(case.group_size, bool),) * len(groups),
    )


def ranks(folder: Path, case: Case, steps: Steps, **learner: Any) -> None:
    """Load two ranks at ZeRO-3, make an update or two, save a checkpoint and export the model."""
    config = run_config(folder, case, **learner)
    with _ray(config):
        group, spec = _learner(config)
        with steps("load"):
            group.load(spec)
        batch = _batch(config, case, folder)
        for name in ("update", "second update")[: case.updates]:
            with steps(name) as facts:
                metrics = group.update(batch)
                facts["tokens"] = metrics["perf/learner_tokens"]
        with steps("save") as facts:
            group.save(folder / "checkpoint")
            facts["bytes"] = _bytes_of(folder / "checkpoint")
        with steps("export") as facts:
            group.export(folder / "exported")
            facts["bytes"] = sum(file.stat().st_size for file in (folder / "exported").glob("*.safetensors"))
        for made in ("checkpoint", "exported"):
            shutil.rmtree(folder / made)
        group.shutdown()


def _bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def full(folder: Path, case: Case, steps: Steps) -> None:
    """Train all weights."""
    ranks(folder, case, steps, **LEARNERS["full"](case))


def adapters(folder: Path, case: Case, steps: Steps) -> None:
    """Train adapters."""
    ranks(folder, case, steps, **LEARNERS["adapters"](case))


def sync(folder: Path, case: Case, steps: Steps) -> None:
    """Publish all weights from two ranks, adapters merged in, to an engine that samples before and after."""
    import ray

    from actors.requests import environment
    from actors.rollout_actor import RolloutActor
    from rlsys.runs.assemble import engine_spec

    config = run_config(folder, case, num_ranks=2, zero_stage=3, lora={"rank": LORA_RANK})
    spec = engine_spec(config, builder_of(config))
    with _ray(config):
        options = {"num_cpus": 0, "runtime_env": {"env_vars": environment(spec)}}
        actor = ray.remote(RolloutActor).options(**options).remote(spec)
        ray.get(actor.ping.remote())
        group, learner = _learner(config, sync="full")
        group.load(learner)
        request, frames = _request(config, case, seed=0)
        for version in range(2):
            with steps(f"publish {version}"):
                transfer, announced = group.publish(version)
            with steps(f"receive {version}") as facts:
                loaded = ray.get(actor.load_weights.remote(transfer, announced))
                facts |= {"bytes": announced.num_bytes, "tensors": announced.num_tensors, "parts_s": loaded.parts_s}
                facts["stored"] = sum(bucket.num_bytes for bucket in transfer.buckets)
            del transfer
            with steps(f"generate {version}") as facts:
                rollouts = ray.get(actor.generate.remote(request, *frames))
                facts["versions"] = sorted({rollout.weight_version for rollout in rollouts})
            if version == 0:
                group.update(_batch(config, case, folder))
        ray.get(actor.shutdown.remote())
        group.shutdown()


PHASES: dict[str, Callable[[Path, Case, Steps], None]] = {
    "baseline": engine,
    "engine": engine,
    "packed": packed,
    "adapters": adapters,
    "full": full,
    "sync": sync,
}

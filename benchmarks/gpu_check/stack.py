"""Engines and learner together: equal log-probs, also for long prompts, after an update and in mid-generation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import ray

import actors.requests
from actors.engine_settings import SETTINGS
from benchmarks.gpu_check.figures import Check, Figure, Skipped, at_least, at_most, found
from rlsys.config.run import RunConfig, parse
from rlsys.models.tiny import make_tiny
from rlsys.runs.assemble import Stack, open_stack
from rlsys.types import ClipInfo, ClipRef, PromptItem, RolloutGroup, Sampling, TrainBatch, VideoSpec

TASK = "temporal_grounding"
SIDE, MOST_FRAMES = 224, 80
CLIPS = ((2, 0.5), (14, 3.3), (74, 2.0))
"""Frames and frames per second; the longest has 2,368 visual tokens, more than a chunk of a prefill."""
LONG_PROMPT = 2049
LIMITS = {"cpu": 1e-4, "cuda": 1e-3}
"""Largest difference of float32 log-probs; kernels on a GPU may multiply in tf32."""
KEPT_TOKENS, NUM_KEPT = 256, 4
SWITCH_AT = 0.4
"""Part of the generation's time after which the new weights come."""


def parity(check: Check) -> Iterator[Figure]:
    """The one runner of vLLM's CPU build."""
    if not check.is_toy:
        raise Skipped("a GPU has two runners, see parity_v1 and parity_v2")
    yield from _parity(check)


def parity_v1(check: Check) -> Iterator[Figure]:
    """The older model runner."""
    yield from _on_runner(check, 1)


def parity_v2(check: Check) -> Iterator[Figure]:
    """The newer model runner."""
    yield from _on_runner(check, 2)


def _on_runner(check: Check, version: Literal[1, 2]) -> Iterator[Figure]:
    if check.is_toy:
        raise Skipped("vLLM's CPU build has one runner, see parity")
    # no config chooses the runner: the launch of an actor reads here what `actors.engine_settings` says
    settings = replace(SETTINGS["cuda"], model_runner=version)
    actors.requests.SETTINGS = {**SETTINGS, "cuda": settings}  # type: ignore[attr-defined]
    yield found("runner", float(version), f"runs use {SETTINGS['cuda'].model_runner}")
    yield from _parity(check)


def stack_config(check: Check, **sections: dict[str, Any]) -> RunConfig:
    """A config of a small model of random weights, in float32. sections: added to, section by section."""
    model = check.scratch / "model"
    if not model.exists():
        make_tiny(model, seed=0, size="bench")
    tree: dict[str, dict[str, Any]] = {
        "model": {
            "path": str(model),
            "dtype": "float32",
            "max_model_len": 4096,
            "attention": "sdpa" if check.is_toy else "flex_attention",
        },
        "data": {
            "prompt_style": "terse",
            "min_frames": 2,
            "max_frames": MOST_FRAMES,
            "min_pixels": 784,
            "max_pixels": SIDE * SIDE,
            "total_pixels": MOST_FRAMES * SIDE * SIDE,
            "cache_bytes": 256 << 20,
        },
        "rollout": {"num_actors": 1, "group_size": 4, "max_tokens": KEPT_TOKENS, "max_num_seqs": 64},
        "train": {"num_steps": 100, "prompts_per_step": 4, "learning_rate": 1e-3, "schedule": "constant"},
        "pipeline": {"max_lag": 1, "weight_update": "keep"},
        "cluster": {"device": check.device, "object_store_mib": 1024},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse({"output_dir": str(check.scratch / "out"), **tree}, source="benchmarks/gpu_check/stack.py")


def require_gpus(check: Check, config: RunConfig) -> None:
    """Raise Skipped where the config needs more GPUs than there are."""
    import torch

    needed = config.learner.num_ranks + config.rollout.num_actors * config.rollout.tensor_parallel_size
    if not check.is_toy and (here := torch.cuda.device_count()) < needed:
        raise Skipped(f"needs {needed} GPUs, {here} are here")


def _parity(check: Check) -> Iterator[Figure]:
    config, limit = stack_config(check), LIMITS[check.device]
    require_gpus(check, config)
    with open_stack(config, {TASK}) as stack:
        stack.load_learner(config)
        stack.publish(0)
        groups = [sample(stack, *clip, seed=seed) for seed, clip in enumerate(CLIPS)]
        longest = max(len(group.prompt.prompt_ids) for group in groups)
        yield at_least("longest prompt", float(longest), LONG_PROMPT, "tokens")
        yield at_most("log-probs of engine and learner, largest difference", difference(stack, groups), limit)
        stack.learner.update(batch_of(groups))
        stack.publish(1)
        groups = [sample(stack, *clip, seed=seed) for seed, clip in enumerate(CLIPS)]
        yield at_most("the same after an update", difference(stack, groups), limit)
        stack.learner.update(batch_of(groups))
        yield from _kept(stack, limit)


def _kept(stack: Stack, limit: float) -> Iterator[Figure]:
    """Groups in mid-generation continue under new weights; their later tokens have those weights' log-probs."""
    started = time.perf_counter()
    asyncio.run(_sample_kept(stack))
    seconds = time.perf_counter() - started
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(lambda: asyncio.run(_sample_kept(stack)))
        time.sleep(SWITCH_AT * seconds)
        stack.publish(2)
        groups = running.result()
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    mixed = [rollout for rollout in rollouts if len(set(rollout.token_versions.tolist())) == 2]
    yield at_least("kept rollouts with tokens of both versions", float(len(mixed)), 1, f"of {len(rollouts)}")
    yield at_most("their later tokens, largest difference", difference(stack, groups, version=2), limit)
    yield found("their earlier tokens under the new weights, largest difference", difference(stack, groups, version=1))


async def _sample_kept(stack: Stack) -> list[RolloutGroup]:
    frames, fps = CLIPS[-1]
    tasks = (_sample(stack, frames, fps, seed=100 + index, max_tokens=KEPT_TOKENS) for index in range(NUM_KEPT))
    return list(await asyncio.gather(*tasks))


def sample(stack: Stack, num_frames: int, fps: float, seed: int) -> RolloutGroup:
    """A group of responses of at most 16 tokens to a random clip."""
    return asyncio.run(_sample(stack, num_frames, fps, seed=seed, max_tokens=16))


async def _sample(stack: Stack, num_frames: int, fps: float, *, seed: int, max_tokens: int) -> RolloutGroup:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (num_frames, SIDE, SIDE, 3), dtype=np.uint8)
    info = ClipInfo(
        kind="video",
        digest=f"random/{seed}/{num_frames}",
        times_s=np.arange(num_frames) / fps,
        grid_thw=(num_frames // 2, SIDE // 14, SIDE // 14),
        second_per_grid_s=2 / fps,
        duration_s=num_frames / fps,
        num_bytes=frames.nbytes,
    )
    spec = VideoSpec(
        uri="random",
        fps=fps,
        min_frames=2,
        max_frames=MOST_FRAMES,
        min_pixels=784,
        max_pixels=SIDE * SIDE,
        total_pixels=MOST_FRAMES * SIDE * SIDE,
    )
    item = PromptItem(
        prompt_id=f"check:{seed}",
        task=TASK,
        question="When does the red square appear?",
        options=(),
        media=(spec,),
        truth=[0.0, 1.0],
        style="terse",
    )
    clip = ClipRef(info=info, frames=ray.put(frames))
    prompt = stack.prompts.build(item, [info])
    sampling = Sampling(num_samples=4, temperature=1.0, top_p=1.0, max_tokens=max_tokens, seed=seed)
    rollouts = await stack.pool.generate(item, prompt, (clip,), sampling)
    return RolloutGroup(item=item, prompt=prompt, clips=(clip,), rollouts=rollouts)


def batch_of(groups: Sequence[RolloutGroup]) -> TrainBatch:
    """A batch that trains on every rollout, with random advantages."""
    rng = np.random.default_rng(0)
    return TrainBatch(
        objective="grpo",
        groups=tuple(groups),
        advantages=tuple(rng.normal(size=len(group.rollouts)).astype(np.float32) for group in groups),
        is_trained=tuple(np.ones(len(group.rollouts), bool) for group in groups),
    )


def difference(stack: Stack, groups: Sequence[RolloutGroup], version: int | None = None) -> float:
    """Largest difference between the engine's log-probs and the learner's; of the tokens of one version, or of all."""
    worst = 0.0
    for group, by_rollout in zip(groups, stack.learner.logprobs(list(groups)), strict=True):
        for rollout, ours in zip(group.rollouts, by_rollout, strict=True):
            chosen = slice(None) if version is None else rollout.token_versions == version
            apart = np.abs(rollout.response_logprobs - ours)[chosen]
            worst = float(np.max(apart, initial=worst))  # NaN stays
    return worst

"""The settings of a GPU's engine, on a CPU: long clips are taken, and prompts that are read in parts give the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors import engine_settings
from actors.errors import PromptRefused
from actors.requests import EngineSpec, GroupRequest, environment
from rlsys.config.run import DataConfig
from rlsys.data.video.budgets import largest_clip_tokens
from rlsys.models.prompts import PromptBuilder
from rlsys.types import ClipInfo, PromptItem, Sampling, VideoSpec
from rlsys.weights.version import WeightVersion
from tests.support.actors import ProbeActor, engine_spec, ids_and_logprobs
from tests.support.transfers import version_of

SIDE, FRAMES = 280, 44
TOKENS = FRAMES // 2 * (SIDE // 28) ** 2  # 2,200
DATA = DataConfig(max_frames=FRAMES, max_pixels=SIDE**2, min_pixels=784, total_pixels=FRAMES * SIDE**2)
GREEDY = Sampling(num_samples=1, temperature=0.0, top_p=1.0, max_tokens=8, seed=0)


class GpuLikeActor(ProbeActor):
    """An engine on CPU with what a GPU's is given. floor: tokens that a step reads at least."""

    def __init__(self, spec: EngineSpec, floor: int) -> None:
        settings = replace(engine_settings.SETTINGS["cuda"], cuda_graphs=False, block_size=32)
        engine_settings.BATCH_TOKENS = floor
        import actors.engine_args

        actors.engine_args.SETTINGS = {"cpu": settings}
        super().__init__(spec)


def spec_of(model: Path, **changes: Any) -> EngineSpec:
    spec = engine_spec(model)
    return replace(
        spec,
        model=spec.model.model_copy(update={"max_model_len": 3072}),
        rollout=spec.rollout.model_copy(update={"kv_cache_mib": 64}),
        **changes,
    )


def start(kind: Any, spec: EngineSpec, *args: Any) -> Any:
    options = {"num_cpus": 0, "max_restarts": 0, "runtime_env": {"env_vars": environment(spec)}}
    return ray.remote(kind).options(**options).remote(spec, *args)


def request(model: Path, seed: int) -> tuple[GroupRequest, np.ndarray]:
    builder = PromptBuilder(model, max_model_len=3072, max_tokens=8, dtype="float32")
    video = VideoSpec(
        uri="", fps=2.0, min_frames=4, max_frames=FRAMES, min_pixels=784, max_pixels=SIDE**2, total_pixels=10**8
    )
    item = PromptItem(
        prompt_id=f"long:{seed}",
        task="temporal_grounding",
        question="red",
        options=(),
        media=(video,),
        truth=[0.0, 1.0],
        style="terse",
    )
    frames = np.random.default_rng(seed).integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    info = ClipInfo(
        kind="video",
        digest=f"long{seed}",
        times_s=np.arange(FRAMES) / 2,
        grid_thw=(FRAMES // 2, SIDE // 14, SIDE // 14),
        second_per_grid_s=1.0,
        duration_s=FRAMES / 2,
        num_bytes=frames.nbytes,
    )
    prompt = builder.build(item, [info])
    group = GroupRequest(
        prompt_id=item.prompt_id,
        engine_ids=prompt.engine_ids,
        num_tokens=prompt.prompt_ids.size,
        clips=(info,),
        sampling=GREEDY,
    )
    return group, frames


def version() -> WeightVersion:
    return version_of({}, 1)


def test_the_largest_clip_of_a_config_is_counted_in_visual_tokens() -> None:
    assert largest_clip_tokens(DATA) == TOKENS
    assert largest_clip_tokens(DataConfig()) == 115200 // 2
    images = DataConfig(min_frames=2, max_frames=2, max_pixels=784 * 500, total_pixels=784 * 2, min_pixels=784)
    assert largest_clip_tokens(images) == 500


def test_a_clip_above_a_steps_usual_tokens_is_taken_and_read_in_parts(
    actor_cluster: None, tiny_model_dir: Path
) -> None:
    asked = [request(tiny_model_dir, seed) for seed in range(3)]
    clips = {"largest_clip_tokens": largest_clip_tokens(DATA)}
    plain = start(ProbeActor, spec_of(tiny_model_dir, **clips))
    like_gpu = start(GpuLikeActor, spec_of(tiny_model_dir, **clips), 2048)
    wrong = start(GpuLikeActor, spec_of(tiny_model_dir, largest_clip_tokens=1024), 2048)
    for engine in (plain, like_gpu, wrong):
        ray.get(engine.assume.remote(version()))
    wanted, found = (
        ray.get([engine.generate.remote(group, frames) for group, frames in asked]) for engine in (plain, like_gpu)
    )
    for [one], [other] in zip(wanted, found, strict=True):
        assert one.response_ids.tolist() == other.response_ids.tolist()
        np.testing.assert_allclose(one.response_logprobs, other.response_logprobs, atol=1e-4)
    assert ids_and_logprobs(found[0]) != ids_and_logprobs(found[1])
    budget = ray.get(like_gpu.in_workers.remote(scheduler_budget))
    assert budget == [(True, TOKENS)]
    # what the config does not allow is refused with the engine unharmed
    with pytest.raises(PromptRefused, match=f"has {TOKENS} visual tokens, above the 2048 that"):
        ray.get(wrong.generate.remote(*asked[0]))


def scheduler_budget(worker: Any) -> tuple[bool, int]:
    config = worker.vllm_config.scheduler_config
    return config.enable_chunked_prefill, config.max_num_batched_tokens

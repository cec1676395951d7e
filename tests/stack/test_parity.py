"""Engine and learner compute the same log-probabilities, whatever the frame rate, and stop loudly where they cannot."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForImageTextToText

from cluster import launch
from cluster.access_token import require_token
from learner.packing.shards import group_row
from rlsys import env
from rlsys.config.run import ClusterConfig, RunConfig, load
from rlsys.demo.synthetic import draw_dataset
from rlsys.models.families.table import FAMILIES
from rlsys.models.model_config import patch_shape, read_model_config
from rlsys.models.prompts import PromptContractError
from rlsys.models.sizes import read_model_sizes
from rlsys.runs.assemble import Stack, open_stack
from rlsys.runs.records import ledger
from rlsys.runs.train import train
from rlsys.types import (
    DEFAULT_PATCH,
    ClipInfo,
    ClipRef,
    ImageSpec,
    PatchShape,
    PromptItem,
    RolloutGroup,
    Sampling,
    VideoSpec,
)
from rlsys.weights.check import compare
from tests.support.pace import patience
from tests.support.paths import CONFIGS
from tests.support.plain_policy import plain_logprobs
from tests.support.plain_reward_server import SCORERS, plain_reward_server

TOLERANCE = 1e-4  # fp32; 2e-6 is usual
LONG = ("internvl", "qwen3_5")
"""Families that `make test-all` tests: a stack for each takes minutes."""
UNEVEN = [0.0, 0.04, 0.05, 2.96, 2.97, 9.949, 9.951, 61.0, 3599.98, 3600.1]


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.long] * (name in LONG)) for name in FAMILIES]
)
def family_dir(request: pytest.FixtureRequest, tiny_dirs_by_family: Mapping[str, Path]) -> Path:
    """Run a test once for each family."""
    return tiny_dirs_by_family[request.param]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, family_dir: Path) -> Iterator[RunConfig]:
    out = tmp_path_factory.mktemp("parity")
    clips = draw_dataset(out / "clips", num_clips=4, seed=1)
    weights = {"temporal_grounding": {"checksum": 1.0}}  # it tells random answers apart
    with plain_reward_server() as url:
        yield load(
            CONFIGS / "demo.yaml",
            [
                f"output_dir={out / 'run'}",
                f"model.path={family_dir}",
                f"data.annotations={clips.annotations}",
                f"data.videos={clips.videos}",
                "data.decode_workers=1",
                "rollout={num_actors: 1, group_size: 4, max_tokens: 12}",
                "learner.num_ranks=1",
                "train={num_steps: 2, prompts_per_step: 2, learning_rate: 1.0e-2, schedule: constant}",
                "checkpoint.every_steps=2",
                f"reward.url={url}",
                f"reward.scorers={json.dumps(SCORERS)}",
                f"reward.weights={json.dumps(weights)}",
            ],
        )


@pytest.fixture(scope="module")
def machine() -> Iterator[None]:
    """Run one Ray cluster for the stacks of all families, one after another."""
    folder = Path(tempfile.mkdtemp(prefix="rp-", dir="/tmp"))  # short: Ray's sockets go below it
    env.be_quiet()
    require_token()
    with launch.on_loopback():
        launch._start(ClusterConfig(), 4, folder)
    yield
    ray.shutdown(wait_for_processes=True)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def stack(machine: None, config: RunConfig) -> Iterator[Stack]:
    with open_stack(config, {"temporal_grounding"}) as opened:
        opened.load_learner(config)
        opened.publish(0)
        yield opened


@pytest.fixture(scope="module")
def patch(family_dir: Path) -> PatchShape:
    """Return how the model cuts frames."""
    return patch_shape(family_dir)


def video(
    rng: np.random.Generator,
    num_frames: int,
    fps: float,
    patch: PatchShape = DEFAULT_PATCH,
    times_s: Sequence[float] | None = None,
) -> tuple[VideoSpec, ClipRef]:
    """Return a video of 4 x 4 patches a frame, at even times if none are given."""
    side = 4 * patch.px
    spec = VideoSpec(
        uri="drawn", fps=fps, min_frames=2, max_frames=64, min_pixels=784, max_pixels=7056, total_pixels=10**7
    )
    info = ClipInfo(
        kind="video",
        digest=f"{fps}/{num_frames}/{rng.integers(1 << 40)}",
        times_s=np.arange(num_frames) / fps if times_s is None else np.array(times_s),
        grid_thw=(num_frames // patch.frames, 4, 4),
        second_per_grid_s=patch.frames / fps,
        duration_s=num_frames / fps,
        num_bytes=num_frames * side * side * 3,
    )
    return spec, ClipRef(info=info, frames=ray.put(rng.integers(0, 256, (num_frames, side, side, 3), dtype=np.uint8)))


def image(rng: np.random.Generator, patch: PatchShape = DEFAULT_PATCH) -> tuple[ImageSpec, ClipRef]:
    columns = 4 if patch.side_px else 6
    shape = (1, 4 * patch.px, columns * patch.px, 3)
    info = ClipInfo(
        kind="image",
        digest=f"image/{rng.integers(1 << 40)}",
        times_s=np.zeros(1),
        grid_thw=(1, 4, columns),
        second_per_grid_s=0.0,
        duration_s=0.0,
        num_bytes=math.prod(shape),
    )
    frames = rng.integers(0, 256, shape, dtype=np.uint8)
    return ImageSpec(uri="drawn", min_pixels=784, max_pixels=7056), ClipRef(info=info, frames=ray.put(frames))


def sample(
    stack: Stack, media: list[tuple[VideoSpec | ImageSpec, ClipRef]], seed: int = 0, **told: Any
) -> RolloutGroup:
    item = PromptItem(
        prompt_id=f"parity:{seed}",
        task="temporal_grounding",
        question="When does the red square appear?",
        options=(),
        media=tuple(spec for spec, _ in media),
        truth=[0.0, 1.0],
        style="terse",
        **told,
    )
    clips = tuple(clip for _, clip in media)
    prompt = stack.prompts.build(item, [clip.info for clip in clips])
    sampling = Sampling(num_samples=3, temperature=1.0, top_p=1.0, max_tokens=12, seed=seed)
    rollouts = asyncio.run(stack.pool.generate(item, prompt, clips, sampling))
    return RolloutGroup(item=item, prompt=prompt, clips=clips, rollouts=rollouts)


def largest_difference(stack: Stack, groups: list[RolloutGroup]) -> float:
    learner = stack.learner.logprobs(groups)
    return max(
        float(np.abs(rollout.response_logprobs - ours).max())
        for group, by_rollout in zip(groups, learner, strict=True)
        for rollout, ours in zip(group.rollouts, by_rollout, strict=True)
    )


def counts_seconds(config: RunConfig) -> bool:
    return read_model_config(config.model.path).vision.tokens_per_second is not None


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 4.0, 3.3])
def test_logprobs_agree_at_any_frame_rate_and_frame_count(stack: Stack, patch: PatchShape, fps: float) -> None:
    rng = np.random.default_rng(int(fps * 10))
    groups = [sample(stack, [video(rng, frames, fps, patch)], seed=frames) for frames in (2, 8, 14)]
    assert largest_difference(stack, groups) <= TOLERANCE


def test_logprobs_agree_for_images_a_mixture_and_frames_at_uneven_times(stack: Stack, patch: PatchShape) -> None:
    rng = np.random.default_rng(0)
    media = (
        [image(rng, patch)],
        [image(rng, patch) for _ in range(3)],
        [image(rng, patch), video(rng, 6, 2.0, patch)],
        [video(rng, len(UNEVEN), 2.0, patch, UNEVEN)],
    )
    groups = [sample(stack, list(each), seed=seed) for seed, each in enumerate(media)]
    assert largest_difference(stack, groups) <= TOLERANCE


def test_logprobs_agree_on_a_clip_that_is_looked_at_again(stack: Stack, patch: PatchShape) -> None:
    """The second and third round of a clip: segments with rates of their own, told before them, and a part cut out."""
    rng = np.random.default_rng(3)
    segments = [video(rng, 2, 0.5, patch), video(rng, 8, 4.0, patch), video(rng, 6, 0.75, patch)]
    second = sample(
        stack, segments, seed=0, media_texts=("0.0 to 4.0:", "4.0 to 6.0:", "6.0 to 14.0:"), note="4.0 to 6.0"
    )
    part = [*segments[:2], video(rng, 8, 4.0, patch), segments[2]]
    texts = ("0.0 to 4.0:", "4.0 to 6.0:", "4.0 to 6.0 [0.10, 0.20, 0.50, 0.60]:", "6.0 to 14.0:")
    third = sample(stack, part, seed=1, media_texts=texts, note="4.0 to 6.0, (B)")
    image_and_part = sample(
        stack, [image(rng, patch), image(rng, patch)], seed=2, media_texts=("", "[0.10, 0.20, 0.50, 0.60]:")
    )
    assert largest_difference(stack, [second, third, image_and_part]) <= TOLERANCE


def test_positions_of_another_frame_rate_break_parity(stack: Stack, config: RunConfig, patch: PatchShape) -> None:
    """The control: were the gate blind to mRoPE, this would pass it."""
    rng = np.random.default_rng(1)
    spec, clip = video(rng, 12, 1.0, patch)
    group = sample(stack, [(spec, clip)])
    wrong = stack.prompts.build(group.item, [replace(clip.info, second_per_grid_s=clip.info.second_per_grid_s / 4)])
    if not counts_seconds(config):
        assert np.array_equal(wrong.position_ids, group.prompt.position_ids)
        wrong.position_ids[0, wrong.prompt_ids == read_model_config(config.model.path).video_token_id] //= 2
    assert largest_difference(stack, [replace(group, prompt=wrong)]) > 10 * TOLERANCE


def test_a_prompt_that_the_engine_saw_otherwise_stops_the_run_with_a_readable_diff(
    stack: Stack, config: RunConfig, patch: PatchShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, clip = video(np.random.default_rng(2), 8, 2.0, patch)
    pad = read_model_config(config.model.path).video_token_id
    item = PromptItem(
        prompt_id="file:7",
        task="temporal_grounding",
        question="When?",
        options=(),
        media=(spec,),
        truth=[0.0, 1.0],
        style="terse",
    )
    build = stack.prompts.build

    def with_one_pad_less(item: PromptItem, clips: list[ClipInfo], max_tokens: int | None) -> object:
        prompt = build(item, clips, max_tokens)
        first = int(np.argmax(prompt.prompt_ids == pad))
        kept = np.delete(prompt.prompt_ids, first)
        return replace(prompt, prompt_ids=kept, position_ids=np.delete(prompt.position_ids, first, axis=1))

    async def get(_: VideoSpec) -> ClipRef:
        return clip

    monkeypatch.setattr(stack.prompts, "build", with_one_pad_less)
    monkeypatch.setattr(stack.clips, "get", get)
    future = stack.producer.start(item, Sampling(num_samples=2, temperature=1.0, top_p=1.0, max_tokens=4, seed=0))
    with pytest.raises(PromptContractError, match="file:7") as error:
        future.result(timeout=patience(60.0))
    assert read_model_config(config.model.path).family.video_pad in str(error.value)


def test_two_steps_train_every_part_and_what_they_export_is_what_the_engine_has(
    stack: Stack, config: RunConfig, patch: int
) -> None:
    """Last in this file: the stack has trained weights after it."""
    summary = train(config, stack=stack)
    assert len({one.weights_digest for one in ledger.read(config.output_dir)}) == 2
    group = sample(stack, [video(np.random.default_rng(5), 8, 2.0, patch)])
    assert largest_difference(stack, [group]) <= TOLERANCE
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        for folder in (config.model.path, summary.model)
    )
    assert type(before) is type(after)
    still = [
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if torch.equal(old, new)
    ]
    assert not still
    assert sum(one.numel() for one in after.parameters()) == read_model_sizes(Path(summary.model)).parameters
    held = compare(stack.learner, stack.pool, 2, Path(summary.model))
    assert [(row.name, row.findings) for row in held if set(row.findings.values()) != {"equal"}] == []
    row = group_row(group, np.ones(3, np.float32), np.ones(3, bool))
    frames = tuple(ClipRef(info=clip.info, frames=ray.get(clip.frames)) for clip in group.clips)
    with torch.no_grad():
        exported = plain_logprobs(after, replace(row, clips=frames), Path(summary.model))
    for rollout, ours in zip(group.rollouts, exported, strict=True):
        np.testing.assert_allclose(ours.numpy(), rollout.response_logprobs, atol=TOLERANCE)

"""Groups and batches for the learner's tests, made by hand: no clip store, no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from learner.packing.cost import CostModel
from learner.packing.rows import Row
from learner.packing.shards import group_row, weighted
from rlsys.config.run import LearnerConfig, TrainConfig
from rlsys.models.model_config import read_model_config
from rlsys.types import (
    DEFAULT_PATCH,
    ClipInfo,
    ClipRef,
    PatchShape,
    Prompt,
    PromptItem,
    Rollout,
    RolloutGroup,
    TrainBatch,
)
from tests.support.pace import patience

TEXT_IDS = 256  # ids below are ordinary bytes in the tiny tokenizer
VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = 375, 376, 378, 379


@dataclass(frozen=True)
class Cut:
    """A model's patches and placeholders, and whether positions have one axis, for clips and prompts made by hand."""

    patch: PatchShape = DEFAULT_PATCH
    image_pad: int = IMAGE_PAD
    video_pad: int = VIDEO_PAD
    has_one_axis: bool = False


QWEN = Cut()


def cut_of(folder: Path) -> Cut:
    """Return that of the model in a folder."""
    config = read_model_config(folder)
    return Cut(config.vision.patch, config.image_token_id, config.video_token_id, config.family.has_one_axis)


def make_clip(
    rng: np.random.Generator, kind: str, num_frames: int = 12, side: int = 4, patch: PatchShape = DEFAULT_PATCH
) -> ClipRef:
    """Return a clip of noise. side: of a frame, in patches, unless all frames have one size."""
    side = patch.side_px // patch.px if patch.side_px else side
    shape = (num_frames if kind == "video" else 1, side * patch.px, side * patch.px, 3)
    frames = rng.integers(0, 256, shape, dtype=np.uint8)
    grid = (shape[0] // patch.frames if kind == "video" else 1, side, side)
    seconds = patch.frames / 2 if kind == "video" else 0.0
    info = ClipInfo(
        kind=kind,
        digest=str(rng.integers(1 << 60)),
        times_s=np.arange(shape[0]) / 2,
        grid_thw=grid,
        second_per_grid_s=seconds,
        duration_s=shape[0] / 2,
        num_bytes=frames.nbytes,
    )
    return ClipRef(info=info, frames=frames)


def make_prompt(rng: np.random.Generator, clips: Sequence[ClipRef], num_text: int = 15, cut: Cut = QWEN) -> Prompt:
    """Return a prompt of vision blocks, then text, with a temporal step of 2 per grid row for videos."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    here = 0

    def text(tokens: np.ndarray) -> None:
        nonlocal here
        ids.append(tokens)
        positions.append(np.tile(here + np.arange(len(tokens)), (3, 1)))
        here += len(tokens)

    for clip in clips:
        time, height, width = clip.info.grid_thw[0], clip.info.grid_thw[1] // 2, clip.info.grid_thw[2] // 2
        text(np.array([VISION_START]))
        ids.append(np.full(time * height * width, cut.video_pad if clip.info.kind == "video" else cut.image_pad))
        grid = np.stack(np.meshgrid(2 * np.arange(time), np.arange(height), np.arange(width), indexing="ij")).reshape(
            3, -1
        )
        positions.append(here + grid)
        here += int(grid.max()) + 1
        text(np.array([VISION_END]))
    text(rng.integers(0, TEXT_IDS, num_text))
    prompt_ids = np.concatenate(ids).astype(np.int32)
    position_ids = np.concatenate(positions, axis=1).astype(np.int32)
    if cut.has_one_axis:
        here = len(prompt_ids)
        position_ids = np.tile(np.arange(here, dtype=np.int32), (3, 1))
    return Prompt(engine_ids=prompt_ids[:1], prompt_ids=prompt_ids, position_ids=position_ids, next_position=here)


def make_group(
    rng: np.random.Generator,
    name: str,
    kinds: Sequence[str],
    response_lengths: Sequence[int],
    num_text: int = 15,
    cut: Cut = QWEN,
) -> RolloutGroup:
    """Return a group with media of these `kinds` ("video" or "image", () is text only) and random log-probs."""
    clips = tuple(make_clip(rng, kind, patch=cut.patch) for kind in kinds)
    prompt = make_prompt(rng, clips, num_text, cut)
    rollouts = tuple(
        Rollout(
            rollout_id=f"{name}/{index}",
            prompt_id=name,
            sample_index=index,
            prompt_ids=prompt.prompt_ids,
            response_ids=rng.integers(0, TEXT_IDS, length).astype(np.int32),
            response_logprobs=rng.uniform(-6.5, -5.5, length).astype(np.float32),
            text="",
            finish_reason="stop",
            token_versions=np.zeros(length, np.int32),
            generate_s=0.0,
        )
        for index, length in enumerate(response_lengths)
    )
    item = PromptItem(prompt_id=name, task="temporal_grounding", question="", options=(), media=(), truth=None)
    return RolloutGroup(item=item, prompt=prompt, clips=clips, rollouts=rollouts)


def make_batch(rng: np.random.Generator, groups: Sequence[RolloutGroup], objective: str = "grpo") -> TrainBatch:
    """Return a batch that trains on every rollout."""
    sizes = [len(group.rollouts) for group in groups]
    draw = rng.normal if objective == "grpo" else lambda size: np.ones(size)
    return TrainBatch(
        objective=objective,
        groups=tuple(groups),
        advantages=tuple(np.asarray(draw(size=size), np.float32) for size in sizes),
        is_trained=tuple(np.ones(size, bool) for size in sizes),
    )


def make_row(group: RolloutGroup) -> Row:
    """Return a row of all rollouts of the group, with advantages 1, 2, 3..."""
    size = len(group.rollouts)
    return group_row(group, np.arange(1, size + 1, dtype=np.float32), np.ones(size, bool))


def random_rows(seed: int, cut: Cut) -> list[Row]:
    """Return groups with a video, an image, several media, only text, and a second question on the first video."""
    rng = np.random.default_rng(seed)
    kinds = [("video",), ("image",), ("image", "video", "image"), (), ()]
    rows = []
    for number, media in enumerate(kinds):
        lengths = [1, *rng.integers(1, 14, rng.integers(1, 5))]
        # more than 8 patches a side: several windows of the tower's windowed attention, of unequal size
        sides = rng.choice([2, 6, 10], len(media)).tolist()
        clips = tuple(make_clip(rng, kind, 4, side, cut.patch) for kind, side in zip(media, sides, strict=True))
        clips = rows[0].clips if number == 4 else clips
        group = make_group(rng, str(number), (), rng.permutation(lengths).tolist())
        prompt = make_prompt(rng, clips, int(rng.integers(3, 20)), cut)
        rows.append(make_row(replace(group, clips=clips, prompt=prompt)))
    rows = [replace(row, responses=tuple(replace(r, advantage=rng.normal()) for r in row.responses)) for row in rows]
    return weighted(rows, "sequence", 16)


def train_config(**changes: object) -> TrainConfig:
    return TrainConfig(
        **{"num_steps": 10, "learning_rate": 1e-3, "schedule": "linear", "prompts_per_step": 4, **changes}
    )


def learner_config(**changes: object) -> LearnerConfig:
    return LearnerConfig(**{"num_ranks": 1, "timeout_s": patience(120.0), **changes})


def cost_model(**changes: object) -> CostModel:
    """Return a cost model with the sizes of the demo's model."""
    sizes = {
        "layers": 3,
        "hidden": 128,
        "mlp": 256,
        "query_size": 128,
        "kv_size": 64,
        "vocabulary": 384,
        "vision_depth": 1,
        "vision_hidden": 64,
        "vision_mlp": 128,
        "full_attention_blocks": 1,
        "window_patches": 8,
        "merge_size": 2,
        "patch_dim": 1176,
    }
    return CostModel(**{**sizes, **changes})

"""The prompts and configs of `benchmarks.true_width`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.config.run import RunConfig, parse
from rlsys.models.model_config import read_model_config
from rlsys.models.prompts import PromptBuilder
from rlsys.types import ClipInfo, ClipRef, Prompt, PromptItem, Rollout, RolloutGroup, VideoSpec

SIDE_PX, FPS = 280, 2.0
QUESTION = "the person in the red coat walks past the parked cars and opens the second door on the left"
LORA_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Case:
    """The sizes of one prompt.

    temporal_patches: of its video.  questions: how often the question is asked, of some 20 tokens each time, in the
    place of a long text.  has_pass: whether the phase "packed" also computes the pass.
    sequence_parallel: ranks that compute it together.  updates: optimiser updates.
    """

    name: str
    temporal_patches: int
    questions: int = 1
    has_pass: bool = True
    group_size: int = 8
    response_tokens: int = 128
    sequence_parallel: int = 1
    threads: int = 1
    updates: int = 2
    side_px: int = SIDE_PX

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt and a response at most."""
        visual = self.temporal_patches * (self.side_px // 28) ** 2
        return visual + 256 + 24 * self.questions + self.response_tokens


LEARNERS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "full": lambda case: {"num_ranks": 2, "zero_stage": 3},
    "adapters": lambda case: {
        "num_ranks": 2,
        "zero_stage": 3,
        "sequence_parallel": case.sequence_parallel,
        "lora": {"rank": LORA_RANK},
    },
}
"""The section `learner` of the phases that train."""


def run_config(folder: Path, case: Case, **learner: Any) -> RunConfig:
    """Return the config of a run with prompts of this size; `rlsys plan` is given the same."""
    pixels, num_frames = case.side_px**2, 2 * case.temporal_patches
    tree = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(folder / "model"), "dtype": "bfloat16", "max_model_len": case.max_tokens},
        "data": {
            "min_frames": num_frames,
            "max_frames": num_frames,
            "min_pixels": pixels,
            "max_pixels": pixels,
            "total_pixels": pixels * num_frames,
        },
        "rollout": {
            "group_size": case.group_size,
            "max_tokens": case.response_tokens,
            "max_num_seqs": case.group_size,
            "kv_cache_mib": 128,
            "threads": case.threads,
            "timeout_s": 3600.0,
        },
        "train": {"prompts_per_step": 2, "learning_rate": 1e-6, "schedule": "constant"},
        "learner": {"micro_batch_tokens": 1 << 20, "timeout_s": 3600.0, **learner},
        "cluster": {"device": "cpu", "object_store_mib": 3072},
    }
    return parse(tree, source="benchmarks.true_width")


def prompt_and_clip(config: RunConfig, case: Case, seed: int) -> tuple[PromptItem, Prompt, ClipRef]:
    """Return a question about a video of noise, and its prompt."""
    rng = np.random.default_rng(seed)
    num_frames, side = 2 * case.temporal_patches, case.side_px
    frames = rng.integers(0, 256, (num_frames, side, side, 3), dtype=np.uint8)
    info = ClipInfo(
        kind="video",
        digest=f"noise-{case.name}-{seed}",
        times_s=np.arange(num_frames) / FPS,
        grid_thw=(case.temporal_patches, side // 14, side // 14),
        second_per_grid_s=2 / FPS,
        duration_s=num_frames / FPS,
        num_bytes=frames.nbytes,
    )
    data = config.data
    media = VideoSpec(
        uri="noise",
        fps=FPS,
        min_frames=data.min_frames,
        max_frames=data.max_frames,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        total_pixels=data.total_pixels or 0,
    )
    item = PromptItem(
        prompt_id=f"noise:{seed}",
        task="temporal_grounding",
        question=", ".join([QUESTION] * case.questions),
        options=(),
        media=(media,),
        truth=[0.0, 1.0],
    )
    return item, builder_of(config).build(item, [info]), ClipRef(info=info, frames=frames)


def builder_of(config: RunConfig) -> PromptBuilder:
    """Return the builder of the run's prompts."""
    return PromptBuilder(
        config.model.path,
        max_model_len=config.model.max_model_len,
        max_tokens=config.rollout.max_tokens,
        dtype=config.model.dtype,
    )


def group_of(config: RunConfig, case: Case, folder: Path, seed: int) -> RolloutGroup:
    """Return the prompt with the responses that the engine sampled in its phase, or random ones if it has not run."""
    item, prompt, clip = prompt_and_clip(config, case, seed)
    ids, logprobs = sampled(folder, case, read_model_config(config.model.path).vocabulary)
    rollouts = tuple(
        Rollout(
            rollout_id=f"{item.prompt_id}/{index}",
            prompt_id=item.prompt_id,
            sample_index=index,
            prompt_ids=prompt.prompt_ids,
            response_ids=ids[index],
            response_logprobs=logprobs[index],
            text="",
            finish_reason="length",
            token_versions=np.zeros(len(ids[index]), np.int32),
            generate_s=0.0,
        )
        for index in range(case.group_size)
    )
    return RolloutGroup(item=item, prompt=prompt, clips=(clip,), rollouts=rollouts)


def sampled(folder: Path, case: Case, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids, i32 [G, R], and log-probs, f32 [G, R]."""
    file = folder / f"responses_{case.name}.npz"
    if file.exists():
        saved = np.load(file)
        return saved["ids"], saved["logprobs"]
    shape = (case.group_size, case.response_tokens)
    ids = np.random.default_rng(0).integers(0, vocabulary // 2, shape).astype(np.int32)
    return ids, np.full(shape, -np.log(vocabulary), np.float32)

"""The spec of an engine, its requests, and the checks of requests. Does not import torch, for the driver's sake.

Requests are checked before anything reaches vLLM, because vLLM fails a whole batch for one bad prompt and silently
accepts some bad prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from actors.engine_settings import SETTINGS
from actors.errors import PromptRefused
from rlsys import env
from rlsys.config.run import LoraConfig, ModelConfig, RolloutConfig, WeightsConfig
from rlsys.types import DEFAULT_PATCH, ClipInfo, PatchShape, Sampling

WeightUpdate = Literal["pause", "keep", "abort"]
MAX_SEED = 2**63 - 1  # vLLM stores seeds as signed 64-bit integers


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """The settings of an engine: sections of the config, and values from elsewhere.

    lora: of the adapters that the engine may be sent instead of full models; rank 0 means none.
    device, weight_update: as in sections `cluster` and `pipeline`.
    largest_clip_tokens: visual tokens of the largest clip or image that it will be sent; 0: as many as a prompt has.
    banned_token_ids: never sampled (the vision placeholders).  seed: of vLLM itself; responses have their own.
    sleeps: whether it frees its GPU while the learner works, see `actors.sleeping`.
    """

    model: ModelConfig
    rollout: RolloutConfig
    banned_token_ids: tuple[int, ...]
    weights: WeightsConfig = WeightsConfig()
    lora: LoraConfig = LoraConfig()
    device: Literal["cpu", "cuda"] = "cpu"
    weight_update: WeightUpdate = "pause"
    largest_clip_tokens: int = 0
    seed: int = 0
    sleeps: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupRequest:
    """One prompt and how to sample its responses; its frames are passed separately, one array per clip.

    engine_ids: int [U], one placeholder per clip, in the order of `clips`.  num_tokens: of the prompt as the engine
    expands it.
    """

    prompt_id: str
    engine_ids: np.ndarray
    num_tokens: int
    clips: tuple[ClipInfo, ...]
    sampling: Sampling


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """The limits of the requests that an engine can accept, from its settings and its model's config.

    patch: how the model cuts frames.  tells_seconds: whether its prompts have time stamps, which the engine writes.
    """

    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_clip_tokens: int
    image_pad_id: int
    video_pad_id: int
    merge_size: int
    patch: PatchShape = DEFAULT_PATCH
    tells_seconds: bool = False


def environment(spec: EngineSpec) -> dict[str, str]:
    """Return the environment variables that an engine's process needs before anything is imported."""
    runner = {"VLLM_USE_V2_MODEL_RUNNER": str(SETTINGS[spec.device].model_runner - 1)}
    if spec.device == "cuda":
        # vLLM would run the engine in another process, whose wire format turns tensors into lists
        return {**env.QUIET, **runner, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    threads = {"OMP_NUM_THREADS": str(spec.rollout.threads)}
    return {**env.QUIET, **env.CPU_WORKERS, **env.CPU_ENGINE, **runner, **threads}


def check_request(request: GroupRequest, frames: Sequence[np.ndarray], limits: EngineLimits) -> None:
    """Raise PromptRefused if this engine cannot generate exactly what is requested."""
    for problem in (
        _sampling_problem(request.sampling, limits),
        _ids_problem(request, limits),
        _clips_problem(request, frames, limits),
        _length_problem(request, limits),
    ):
        if problem:
            raise PromptRefused(f"{request.prompt_id}: {problem}")


def _sampling_problem(sampling: Sampling, limits: EngineLimits) -> str:
    if not 1 <= sampling.num_samples <= limits.max_num_seqs:
        return (
            f"num_samples={sampling.num_samples} is outside 1..{limits.max_num_seqs}, the responses that the engine "
            "generates at once; raise rollout.max_num_seqs or lower rollout.group_size."
        )
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        return f"temperature={sampling.temperature} is not a number of 0 or more."
    if sampling.temperature == 0 and sampling.num_samples > 1:
        return f"temperature 0 gives {sampling.num_samples} equal responses; use num_samples=1."
    if not 0 < sampling.top_p <= 1:
        return f"top_p={sampling.top_p} is outside (0, 1]."
    if sampling.max_tokens < 1:
        return f"max_tokens={sampling.max_tokens}: a response has at least 1 token."
    if not 0 <= sampling.seed <= MAX_SEED - sampling.num_samples:
        return f"seed={sampling.seed} is outside 0..2**63-1 less the number of samples."
    return ""


def _ids_problem(request: GroupRequest, limits: EngineLimits) -> str:
    ids = request.engine_ids
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        return f"engine_ids are {ids.dtype}{list(ids.shape)}; a prompt must be one row of integers."
    outside = ids[(ids < 0) | (ids >= limits.vocab_size)]
    if outside.size:
        return f"token ids {outside[:5].tolist()} are outside the model's vocabulary of {limits.vocab_size}."
    kinds = {limits.image_pad_id: "image", limits.video_pad_id: "video"}
    found = [kinds[token] for token in ids.tolist() if token in kinds]
    wanted = [clip.kind for clip in request.clips]
    if found != wanted:
        return f"the prompt has placeholders {found} for clips {wanted}; each clip needs one, unexpanded and in order."
    return ""


def _clips_problem(request: GroupRequest, frames: Sequence[np.ndarray], limits: EngineLimits) -> str:
    if len(frames) != len(request.clips):
        return f"{len(request.clips)} clips came with {len(frames)} arrays of frames."
    for clip, array in zip(request.clips, frames, strict=True):
        time, height, width = clip.grid_thw
        patch = limits.patch
        num_frames = time * patch.frames if clip.kind == "video" else 1
        wanted = (num_frames, height * patch.px, width * patch.px, 3)
        if array.dtype != np.uint8 or array.shape != wanted:
            return (
                f"the frames of {clip.kind} {clip.digest[:12]} are {array.dtype}{list(array.shape)}, "
                f"its grid {clip.grid_thw} needs uint8{list(wanted)}."
            )
        visual = math.prod(clip.grid_thw) // limits.merge_size**2
        if visual > limits.max_clip_tokens:
            return (
                f"{clip.kind} {clip.digest[:12]} has {visual} visual tokens, above the {limits.max_clip_tokens} that "
                "the engine's vision tower reads at once; lower data.max_frames, data.max_pixels or data.total_pixels."
            )
        if min(clip.grid_thw) < 1 or height % limits.merge_size or width % limits.merge_size:
            rule = f"height and width must be multiples of {limits.merge_size}"
            return f"grid {clip.grid_thw} of {clip.digest[:12]}: {rule}."
        if patch.side_px and {height * patch.px, width * patch.px} != {patch.side_px}:
            return (
                f"the frames of {clip.kind} {clip.digest[:12]} are {wanted[1]}x{wanted[2]}; the model reads only "
                f"{patch.side_px}x{patch.side_px}."
            )
        if clip.kind == "video" and not (math.isfinite(clip.second_per_grid_s) and clip.second_per_grid_s > 0):
            return f"second_per_grid_s={clip.second_per_grid_s} of video {clip.digest[:12]} is not above 0."
    return ""


def _length_problem(request: GroupRequest, limits: EngineLimits) -> str:
    visual = sum(math.prod(clip.grid_thw) for clip in request.clips) // limits.merge_size**2
    text = request.num_tokens - visual
    total = request.num_tokens + request.sampling.max_tokens
    if total > limits.max_model_len:
        return (
            f"{text} text + {visual} visual + {request.sampling.max_tokens} response = {total} tokens are more than "
            f"model.max_model_len={limits.max_model_len}; raise it, or shorten the prompt or the response."
        )
    return ""

"""Records that cross process boundaries: frozen, always complete, with numpy arrays inside.

Ray passes numpy arrays zero-copy and read-only, whereas torch tensors would be copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Json = Any  # what json.loads returns; task truths have a shape of their own per task

PATCH_PX = 14
"""Pixels of a side of the vision patches of Qwen2-VL and Qwen2.5-VL."""
PATCH_FRAMES = 2
"""Frames of a temporal patch of the Qwen-VL models."""


@dataclass(frozen=True, kw_only=True)
class PatchShape:
    """How a model's vision tower cuts frames.

    px: side of a patch in pixels.  frames: number of frames in a temporal patch.
    side_px: side in pixels of the square to which every frame is resized; 0 where frames keep their aspect ratio.
    """

    px: int = PATCH_PX
    frames: int = PATCH_FRAMES
    side_px: int = 0


DEFAULT_PATCH = PatchShape()


@dataclass(frozen=True, kw_only=True)
class VideoSpec:
    """The frames of a video that a prompt shows, before anything is decoded.

    uri: a video file, or a folder of frame images read in the order of the numbers in their names; of a list of images
    the first.
    files: the images of a list, in the order in which they are shown; () for anything else.
    fps: sampling rate in frames per second of video time.
    min_frames, max_frames: bounds on the number of frames; both even (Qwen2.5-VL merges two).
    min_pixels, max_pixels: bounds on height x width of one resized frame.
    total_pixels: bound on height x width x frames of the resized clip.
    window_s: (start, end) in seconds of the part to read; None reads all of it.
    origin_s: from where the model's times count, in seconds of the file; None: from the start of the window.
    folder_fps: images per second of a frame folder or a list; None assumes `fps`.
    patch_px, patch_frames, side_px: of the model's vision patches, see `PatchShape`; frames are a multiple of two
    patches high and wide.
    crop: (left, top, right, bottom) in fractions of width and height of the part of each frame to show, scaled up to
    the pixel budget; None shows whole frames.
    """

    uri: str
    fps: float
    min_frames: int
    max_frames: int
    min_pixels: int
    max_pixels: int
    total_pixels: int
    window_s: tuple[float, float] | None = None
    folder_fps: float | None = None
    files: tuple[str, ...] = ()
    patch_px: int = PATCH_PX
    crop: tuple[float, float, float, float] | None = None
    origin_s: float | None = None
    patch_frames: int = PATCH_FRAMES
    side_px: int = 0

    @property
    def start_s(self) -> float:
        """Return from where the model's times count, in seconds of the file."""
        return self.origin_s if self.origin_s is not None else self.window_s[0] if self.window_s else 0.0


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """A still image and the bounds on height x width after resizing, in pixels.

    patch_px, side_px, crop: as in `VideoSpec`.
    """

    uri: str
    min_pixels: int
    max_pixels: int
    patch_px: int = PATCH_PX
    crop: tuple[float, float, float, float] | None = None
    side_px: int = 0


MediaSpec = VideoSpec | ImageSpec

_ADDED_LATER: Mapping[str, Json] = {
    "patch_px": PATCH_PX,
    "crop": None,
    "origin_s": None,
    "patch_frames": PATCH_FRAMES,
    "side_px": 0,
}


def named_fields(spec: Mapping[str, Json]) -> dict[str, Json]:
    """Return the fields of a spec that a digest names: all but those whose value older digests took for granted."""
    return {name: value for name, value in spec.items() if name not in _ADDED_LATER or value != _ADDED_LATER[name]}


@dataclass(frozen=True, kw_only=True)
class ClipInfo:
    """The metadata of a decoded clip: all that is needed of it besides its frames.

    digest: SHA-256 of (file bytes, spec, processor version); equal digests mean equal frames.
    times_s: f64 [T], presentation time of each frame, seconds from the start of the file.
    start_s: from where the model's times count, seconds from the start of the file.
    grid_thw: patches in (time, height, width); time is the number of temporal patches for a video, 1 for an image.
    second_per_grid_s: seconds of video that one temporal patch covers; 0.0 for an image.
    duration_s: length of the file's video stream; 0.0 for an image.
    num_bytes: size of the frame array.
    source_fps: frames per second of the file, the mean over it; 0.0 for an image.
    """

    kind: Literal["video", "image"]
    digest: str
    times_s: np.ndarray
    grid_thw: tuple[int, int, int]
    second_per_grid_s: float
    duration_s: float
    num_bytes: int
    start_s: float = 0.0
    source_fps: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A decoded clip. frames: u8 [T, H, W, 3] RGB at the model's resolution."""

    info: ClipInfo
    frames: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipRef:
    """A clip by reference.

    frames: a Ray ObjectRef of u8 [T, H, W, 3] (or the array itself, within one process).
    decode_s: seconds that decoding took; clips that were decoded together share them equally.
    The frames stay in memory as long as any copy of this record exists.
    """

    info: ClipInfo
    frames: Any
    decode_s: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptItem:
    """One row of an annotation file, ready to be turned into a prompt.

    prompt_id: "<file stem>:<row>", unique in a run.  task: key of `rlsys.tasks.table.TASKS`.
    question: filled into the task's template.  options: answer options, () when it has none.
    truth: the JSON value that the task's scorers compare with.
    labels: what else the file says of the row, by which evaluation groups rows: "video" as the file names it,
    "duration_s", and the data set's own, such as "question_type" or "category".
    think, style: the wording of the prompt, see `rlsys.tasks.table.prompt_text`.
    source: name of the source that the row comes from, see `rlsys.config.data.sources`.
    thought: reasoning that leads to the truth, which supervised training imitates; "" if the file has none.
    media_texts: what the prompt says immediately before each medium, "" for nothing; () if nothing before any of them.
    note: what the prompt says between the media and the question; "" for nothing.
    """

    prompt_id: str
    task: str
    question: str
    options: tuple[str, ...]
    media: tuple[MediaSpec, ...]
    truth: Json
    labels: Mapping[str, str | float] = field(default_factory=dict)
    think: bool = True
    style: Literal["full", "terse"] = "full"
    source: str = ""
    thought: str = ""
    media_texts: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.media_texts and len(self.media_texts) != len(self.media):
            raise ValueError(
                f"{self.prompt_id}: {len(self.media_texts)} texts before {len(self.media)} media; give one for each."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """Token ids and positions of one prompt, built once and used by both engine and learner.

    engine_ids: i32 [U], one placeholder per medium, the input of the engine.
    prompt_ids: i32 [P], placeholders expanded, which the engine must report back.
    position_ids: i32 [3, P], mRoPE (time, height, width) positions.
    next_position: position of the first response token, on all three axes.
    """

    engine_ids: np.ndarray
    prompt_ids: np.ndarray
    position_ids: np.ndarray
    next_position: int


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters of a group. Response i uses seed + i. temperature 0 is greedy decoding."""

    num_samples: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """One sampled response.

    prompt_ids: i32 [P] as the engine saw them.  response_ids: i32 [R], the end token included.
    response_logprobs: f32 [R], natural log, of the sampling policy at temperature 1.
    token_versions: i32 [R], version of the weights that sampled each token, see `WeightVersion`; nondecreasing.
    finish_reason: "stop" or "length".
    """

    rollout_id: str
    prompt_id: str
    sample_index: int
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    response_logprobs: np.ndarray
    text: str
    finish_reason: str
    token_versions: np.ndarray
    generate_s: float

    @property
    def confidence(self) -> float:
        """Geometric mean of the probabilities of its tokens, in (0, 1]."""
        return float(np.exp(self.response_logprobs.mean(dtype=np.float64)))

    @property
    def weight_version(self) -> int:
        """Version of the oldest weights that sampled a token of it."""
        return int(self.token_versions[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutGroup:
    """The G responses to one prompt, in sample order."""

    item: PromptItem
    prompt: Prompt
    clips: tuple[ClipRef, ...]
    rollouts: tuple[Rollout, ...]

    def __post_init__(self) -> None:
        found = [rollout.sample_index for rollout in self.rollouts]
        if found != list(range(len(found))):
            raise ValueError(
                f"{self.item.prompt_id}: sample indices {found} must be 0..G-1 in order; the group was split."
            )


Status = Literal["ok", "abstain", "infra", "malformed"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """The result of scoring one response.

    status: "ok" (the scores are valid), or why there are none: "abstain" (the scorer cannot decide),
    "infra" (a failure of the scorer or the server), "malformed" (the scorer's output was unusable).
    A badly formatted *response* is not malformed: it is "ok" with format 0.
    scores: name -> number in [0, 1].  evidence: details for inspection, such as the judge's verdicts.
    """

    status: Status
    scores: Mapping[str, float]
    reason: str
    evidence: Json = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredGroup:
    """A group with its scores.

    score_names: K names.  scores: f32 [G, K], NaN where the response could not be scored.
    rewards: f32 [G], weighted sums; NaN where not valid.  is_valid: bool [G].
    reasons: G strings, "" or the scorer's explanation.  evidence: G values, the judge's verdicts or None.
    spans: phase ("decode", "prompt", "generate", "score") -> (start, end) in seconds of one
    process's monotonic clock.
    first: of responses that were asked again, the group with the scores of its own responses; None if none was. Scores,
    rewards and the rest are then those of each trajectory: of its last round.
    later: the rounds after the first one, those of each trajectory in order.
    """

    group: RolloutGroup
    score_names: tuple[str, ...]
    scores: np.ndarray
    rewards: np.ndarray
    is_valid: np.ndarray
    reasons: tuple[str, ...]
    evidence: tuple[Json, ...]
    spans: Mapping[str, tuple[float, float]]
    first: ScoredGroup | None = None
    later: tuple[LaterRound, ...] = ()

    def __post_init__(self) -> None:
        size = len(self.group.rollouts)
        shapes = (self.scores.shape, self.rewards.shape, self.is_valid.shape)
        if shapes != ((size, len(self.score_names)), (size,), (size,)):
            raise ValueError(
                f"{self.group.item.prompt_id}: scores, rewards, is_valid have the shapes {shapes}, which do not fit "
                f"{size} rollouts and {len(self.score_names)} scores."
            )

    @property
    def groups(self) -> tuple[RolloutGroup, ...]:
        """The group of the first round, and those of later rounds, of one response each."""
        return (self.group, *(one.scored.group for one in self.later))

    @property
    def rollouts(self) -> tuple[Rollout, ...]:
        """The responses of all rounds."""
        return tuple(rollout for group in self.groups for rollout in group.rollouts)


@dataclass(frozen=True, kw_only=True, eq=False)
class LaterRound:
    """A round after the first of one trajectory: a response to a prompt of its own.

    sample_index: of the trajectory, that of its response in the first round.  number: of the round, from 2 on.
    scored: a group of the one response, with the prompt and the clips that the round showed.
    clue: that it was shown around, see `rlsys.perception.clues.Clue.to_json`; None for an even look.
    reason: why it was shown as it was, where that is not what the response before asked for; "" otherwise.
    """

    sample_index: int
    number: int
    scored: ScoredGroup
    clue: Json = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainBatch:
    """The batch of one step, for one or several optimiser updates.

    objective: "grpo" (clipped policy gradient) or "nll" (supervised: every advantage is 1).
    advantages: per group f32 [G]; 0 for rollouts outside the loss.
    is_trained: per group bool [G], False where scoring failed.
    """

    objective: Literal["grpo", "nll"]
    groups: tuple[RolloutGroup, ...]
    advantages: tuple[np.ndarray, ...]
    is_trained: tuple[np.ndarray, ...]

    @property
    def num_trained_tokens(self) -> int:
        """Number of response tokens in the loss."""
        return sum(
            rollout.response_ids.size
            for group, mask in zip(self.groups, self.is_trained, strict=True)
            for rollout, trained in zip(group.rollouts, mask, strict=True)
            if trained
        )

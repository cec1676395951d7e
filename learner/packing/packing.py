"""Packing of all responses to a prompt into one row, `[prompt][response 1]...[response G]`, to compute the prompt once.

The rows of a pass follow one another in one sequence, without padding. A response sees the prompt and itself, never
another response, and its positions restart where the prompt ends, so every log-prob is what it would be if the response
followed the prompt alone. A supervised sample is a group with one response. The last token of a response is predicted
but never read, so it is not in the row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from learner.model.pixels import PixelFormat, cut_patches, frame_grid
from learner.packing.packed_mask import PackedMask, RowSpan
from learner.packing.rows import Response, Row
from rlsys.types import ClipInfo, ClipRef, Prompt

ClipKey = tuple[str, tuple[int, ...]]
ClipPart = Callable[[ClipRef, int], ClipRef | None]
"""A clip and its frames per temporal patch -> the part of it that a rank's vision tower computes, None for nothing."""


@dataclass(frozen=True, kw_only=True)
class ModelLayout:
    """The properties of the model that packing depends on."""

    image_token_id: int
    video_token_id: int
    pixels: PixelFormat


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch:
    """The model inputs of a pass: L tokens of all its rows, with T response tokens and V media tokens in total.

    input_ids: i64 [1, L].  position_ids: i64 [3, 1, L], mRoPE.  mask: the attention mask.
    distinct_clips: all distinct clips in order.  patches: [N, patch_dim], grid_thw: i64 [M, 3]: these clips, or this
    rank's parts of them.  clips: descriptions of what the patches are of; () if they are a blank image.
    media_index: i64 [V], which of the L tokens are replaced by features, in the order of `feature_index`, i64 [V];
    that is None for the features' own order, if no two rows show the same clip.
    hidden_index: i64 [T], which of the L states predicts each response token.
    targets: i64 [T].  response_index: i64 [T], the response of each token, 0..num_responses - 1.
    sampler_logprobs, advantages, weights: f32 [T].  old_logprobs: f32 [T], or None if no response has any.
    is_dummy: there are no rows; the tensors only let this rank make the same forward pass as its peers.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: PackedMask
    patches: torch.Tensor
    grid_thw: torch.Tensor
    clips: tuple[ClipInfo, ...]
    distinct_clips: tuple[ClipInfo, ...]
    media_index: torch.Tensor
    feature_index: torch.Tensor | None
    hidden_index: torch.Tensor
    targets: torch.Tensor
    response_index: torch.Tensor
    num_responses: int
    sampler_logprobs: torch.Tensor
    old_logprobs: torch.Tensor | None
    advantages: torch.Tensor
    weights: torch.Tensor
    is_dummy: bool


def pack(
    rows: Sequence[Row],
    layout: ModelLayout,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    part: ClipPart | None = None,
) -> PackedBatch:
    """Return the inputs of one forward pass over `rows`; without rows, of a dummy pass with one token.

    part: what of each clip this rank cuts into patches; None is everything.

    Every batch has vision input, a blank image if no row has media, because ranks must make the same calls: those that
    share gradients (or, at ZeRO-3, weights) would otherwise wait for each other indefinitely.
    Raises ValueError if a prompt's media tokens and its clips do not match.
    """
    is_dummy = not rows
    rows = rows or [_DUMMY_ROW]
    length = sum(row.num_tokens for row in rows)
    ids = np.zeros(length, np.int64)
    positions = np.zeros((3, length), np.int64)
    spans, media, hidden = [], [], []
    start = 0
    for row in rows:
        span = RowSpan(
            start=start,
            prompt=len(row.prompt.prompt_ids),
            responses=tuple(response.num_read for response in row.responses),
        )
        _fill_row(row, ids[start : span.stop], positions[:, start : span.stop])
        spans.append(span)
        media.append(start + _media_tokens(row, layout))
        hidden.append(start + _predictors(row))
        start = span.stop
    clips = {clip_key(clip.info): clip for row in rows for clip in row.clips}
    parts = _parts(tuple(clips.values()), layout.pixels, part)
    patches, grid_thw = _vision_input(parts, layout.pixels, device, dtype)
    responses = [response for row in rows for response in row.responses]
    return PackedBatch(
        input_ids=torch.from_numpy(ids[None]).to(device),
        position_ids=torch.from_numpy(positions[:, None]).to(device),
        mask=PackedMask(rows=tuple(spans), device=device),
        patches=patches,
        grid_thw=grid_thw,
        clips=tuple(clip.info for clip in parts),
        distinct_clips=tuple(clip.info for clip in clips.values()),
        media_index=torch.from_numpy(np.concatenate(media)).to(device),
        feature_index=_feature_index(rows, layout.pixels, device),
        hidden_index=torch.from_numpy(np.concatenate(hidden)).to(device),
        targets=_flat([response.ids for response in responses], np.int64, device),
        response_index=_flat([np.full(len(r.ids), index) for index, r in enumerate(responses)], np.int64, device),
        num_responses=len(responses),
        sampler_logprobs=_flat([response.sampler_logprobs for response in responses], np.float32, device),
        old_logprobs=_old_logprobs(responses, device),
        advantages=_flat([np.full(len(r.ids), r.advantage) for r in responses], np.float32, device),
        weights=_flat([np.full(len(r.ids), r.weight) for r in responses], np.float32, device),
        is_dummy=is_dummy,
    )


def _fill_row(row: Row, ids: np.ndarray, positions: np.ndarray) -> None:
    stop = len(row.prompt.prompt_ids)
    ids[:stop], positions[:, :stop] = row.prompt.prompt_ids, row.prompt.position_ids
    for response in row.responses:
        start, stop = stop, stop + response.num_read
        ids[start:stop] = response.ids[: stop - start]
        positions[:, start:stop] = row.prompt.next_position + np.arange(stop - start)


def _predictors(row: Row) -> np.ndarray:
    """Return the index in the row of the token before each response token; before the first it is the prompt's last."""
    last_of_prompt = len(row.prompt.prompt_ids) - 1
    parts, start = [], last_of_prompt + 1
    for response in row.responses:
        if len(response.ids):
            parts.append(np.concatenate([[last_of_prompt], np.arange(start, start + response.num_read)]))
        start += response.num_read
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _media_tokens(row: Row, layout: ModelLayout) -> np.ndarray:
    ids = row.prompt.prompt_ids
    found = np.flatnonzero((ids == layout.image_token_id) | (ids == layout.video_token_id))
    sizes = [math.prod(clip.info.grid_thw) // layout.pixels.merge_size**2 for clip in row.clips]
    if len(found) != sum(sizes):
        raise ValueError(
            f"{row.prompt_id}: the prompt has {len(found)} media tokens and its {len(sizes)} clips give {sizes}; "
            "build the prompt for these clips."
        )
    return found


def clip_key(clip: ClipInfo) -> ClipKey:
    """Return a key of a clip; equal keys mean equal patches."""
    return clip.digest, tuple(clip.grid_thw)


def _parts(clips: Sequence[ClipRef], form: PixelFormat, part: ClipPart | None) -> Sequence[ClipRef]:
    """Return what is cut into patches of the clips. Raises ValueError if frames are not those of a clip's grid."""
    for clip in clips:
        if frame_grid(clip.frames, form) != tuple(clip.info.grid_thw):
            raise ValueError(f"clip {clip.info.digest}: grid {clip.info.grid_thw} for frames {clip.frames.shape}.")
    if part is None:
        return clips
    return [own for clip in clips if (own := part(clip, form.temporal_patch_size)) is not None]


def _vision_input(
    clips: Sequence[ClipRef], form: PixelFormat, device: str | torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    if not clips:
        blank = torch.zeros((form.merge_size**2, form.patch_dim), dtype=dtype, device=device)
        return blank, torch.tensor([[1, form.merge_size, form.merge_size]], device=device)
    patches = cut_patches([clip.frames for clip in clips], form, device, dtype)
    return patches, torch.tensor([clip.info.grid_thw for clip in clips], device=device)


def _feature_index(rows: Sequence[Row], form: PixelFormat, device: str | torch.device) -> torch.Tensor | None:
    """Return the index of each media token's feature among the distinct clips'; None if it is 0, 1, 2..."""
    places: dict[ClipKey, np.ndarray] = {}
    shown = [clip_key(clip.info) for row in rows for clip in row.clips]
    start = 0
    for key in shown:
        if key not in places:
            size = math.prod(key[1]) // form.merge_size**2
            places[key] = np.arange(start, start + size)
            start += size
    if len(places) == len(shown):
        return None
    return torch.from_numpy(np.concatenate([places[key] for key in shown])).to(device)


def _flat(arrays: Sequence[np.ndarray], dtype: type, device: str | torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(dtype)).to(device)


def _old_logprobs(responses: Sequence[Response], device: str | torch.device) -> torch.Tensor | None:
    given = [response.old_logprobs for response in responses if response.old_logprobs is not None]
    if given and len(given) < len(responses):
        raise ValueError(
            f"{len(given)} of {len(responses)} responses of a pass have old_logprobs; give them for all or none."
        )
    return _flat(given, np.float32, device) if given else None


_DUMMY_ROW = Row(
    prompt_id="dummy",
    prompt=Prompt(
        engine_ids=np.zeros(1, np.int32),
        prompt_ids=np.zeros(1, np.int32),
        position_ids=np.zeros((3, 1), np.int32),
        next_position=1,
    ),
    clips=(),
    responses=(Response(ids=np.zeros(1, np.int32), sampler_logprobs=np.zeros(1, np.float32), advantage=0.0),),
)

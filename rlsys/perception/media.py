"""Segments and crops as media of a prompt, each a video or an image of its own with true times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlsys.config.perception import PerceptionConfig
from rlsys.data.video.frames import TEMPORAL_PATCH, count_frames
from rlsys.perception.selection import Segment
from rlsys.tasks.geometry import Box
from rlsys.types import ClipInfo, ImageSpec, Json, MediaSpec, VideoSpec


@dataclass(frozen=True, kw_only=True)
class WholeClip:
    """What the first look at a clip tells of it.

    start_s: from where times count, in seconds of the file.  length_s: in seconds.
    source_fps: frames per second of the file.  num_frames: that the first look showed.
    """

    start_s: float
    length_s: float
    source_fps: float
    num_frames: int

    def to_json(self) -> Json:
        """Return the four numbers as a list."""
        return [self.start_s, self.length_s, self.source_fps, self.num_frames]

    @staticmethod
    def from_json(tree: Json) -> WholeClip:
        """Return the clip that `to_json` wrote."""
        start_s, length_s, source_fps, num_frames = tree
        return WholeClip(start_s=start_s, length_s=length_s, source_fps=source_fps, num_frames=num_frames)


def whole_clip(spec: VideoSpec, info: ClipInfo) -> WholeClip:
    """Return what is known of a clip once `spec` has been decoded to `info`."""
    end_s = info.duration_s if spec.window_s is None else min(spec.window_s[1], info.duration_s)
    return WholeClip(
        start_s=info.start_s,
        length_s=round(end_s - info.start_s, 6),
        source_fps=info.source_fps,
        num_frames=int(info.times_s.size),
    )


def whole_of(media: Sequence[MediaSpec], infos: Sequence[ClipInfo]) -> WholeClip | None:
    """Return what is known of a row's clip from its first look; None for a row with an image or several media."""
    if len(media) != 1 or isinstance(media[0], ImageSpec):
        return None
    return whole_clip(media[0], infos[0])


def with_budgets(spec: VideoSpec, perception: PerceptionConfig) -> VideoSpec:
    """Return a row's clip with the budgets of a later round."""
    max_frames = perception.max_frames or spec.max_frames
    least = min(spec.min_frames, max_frames)
    total = max(perception.total_pixels or spec.total_pixels, spec.min_pixels * least)
    return replace(spec, max_frames=max_frames, min_frames=least, total_pixels=total)


def frame_budget(spec: VideoSpec, whole: WholeClip, perception: PerceptionConfig) -> int:
    """Return how many frames a later round shows: as many as an even look within its budgets, an even number."""
    budget = with_budgets(spec, perception)
    if budget == spec:
        return whole.num_frames
    available = math.floor(whole.length_s * whole.source_fps + 1e-6)
    return count_frames(math.floor(whole.length_s * spec.fps + 1e-6), available, budget)


def segment_spec(
    spec: VideoSpec, whole: WholeClip, segment: Segment, pixels: int, crop: Box | None = None
) -> VideoSpec:
    """Return the frames of one segment. pixels: height x width that each of its frames may have at most."""
    start_s, end_s = whole.start_s + segment.start_s, whole.start_s + segment.end_s
    return replace(
        spec,
        # every frame of the segment stands for the same time
        fps=segment.num_frames / (segment.end_s - segment.start_s),
        min_frames=segment.num_frames,
        max_frames=segment.num_frames,
        total_pixels=pixels * segment.num_frames,
        window_s=(round(start_s, 6), round(end_s, 6)),
        origin_s=whole.start_s,
        # without a rate of its own a folder has the row's, not the segment's
        folder_fps=spec.folder_fps or spec.fps,
        crop=crop,
    )


def with_crops(segments: Sequence[Segment]) -> list[tuple[Segment, bool]]:
    """Return (segment, whether it is cut out around the boxes), in time order.

    Each period of the clue is shown twice, whole and cut out, with half of its frames each; one with two frames is
    only shown cut out.
    """
    found: list[tuple[Segment, bool]] = []
    for segment in segments:
        if not segment.is_key:
            found.append((segment, False))
            continue
        cut = max(TEMPORAL_PATCH, segment.num_frames // 2 - segment.num_frames // 2 % TEMPORAL_PATCH)
        if segment.num_frames > cut:
            found.append((replace(segment, num_frames=segment.num_frames - cut), False))
        found.append((replace(segment, num_frames=cut), True))
    return found


def image_specs(spec: ImageSpec, crop: Box, perception: PerceptionConfig) -> tuple[ImageSpec, ImageSpec]:
    """Return the whole image, and the part in `crop` scaled up to the pixel budget."""
    most = spec.max_pixels
    if perception.total_pixels:
        most = min(most, max(perception.total_pixels // 2, spec.min_pixels))
    whole = replace(spec, max_pixels=most)
    return whole, replace(whole, crop=crop)

"""The division of a clip over the vision towers of a sequence group, by temporal patches.

In every supported family a tower attends within a temporal patch only, and its positions are those within a frame, so
that parts of a clip have the features that they have in the whole clip.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

from rlsys.types import ClipInfo, ClipRef


def patches_of(clip: ClipInfo, size: int, index: int) -> range:
    """Return the temporal patches of a clip that rank `index` of a group of `size` ranks computes.

    The parts of all ranks are consecutive and differ by at most one patch. Which ranks have the longer ones, or an
    image's only patch, follows from the clip's digest, so that images spread over the ranks. The division depends on
    nothing but the clip, because the features of a frozen tower are stored by part.
    """
    time = clip.grid_thw[0]
    place = (index + zlib.crc32(clip.digest.encode())) % size
    # the order of ranks is turned, not their parts' order in time
    bounds = [time * one // size for one in range(size + 1)]
    return range(bounds[place], bounds[place + 1])


def clip_part(clip: ClipRef, size: int, index: int, frames_per_patch: int) -> ClipRef | None:
    """Return the rank's part of a clip as a clip of its own, with frames u8 [T, H, W, 3] at hand; None if it has none.

    Its frames are a view of the whole clip's.
    """
    patches = patches_of(clip.info, size, index)
    if not patches:
        return None
    _, height, width = clip.info.grid_thw
    info = replace(
        clip.info,
        digest=f"{clip.info.digest}[{patches.start}:{patches.stop}]",
        grid_thw=(len(patches), height, width),
    )
    return replace(
        clip, info=info, frames=clip.frames[patches.start * frames_per_patch : patches.stop * frames_per_patch]
    )

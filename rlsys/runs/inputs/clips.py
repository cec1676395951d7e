"""The store of decoded clips that a config asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlsys.config.run import RunConfig

if TYPE_CHECKING:
    from rlsys.data.video.clips import ClipStore

KEPT_FRAME_BYTES = 64 << 20
"""Bytes of frames that each decoding process keeps, so that later rounds of a row need not decode them again."""


def clip_store(config: RunConfig) -> ClipStore:
    """Return the store of decoded clips; where rows are asked in rounds, with frames kept for the next round."""
    from rlsys.data.video.clips import ClipStore

    return ClipStore(config.data, KEPT_FRAME_BYTES if config.perception.rounds > 1 else 0)

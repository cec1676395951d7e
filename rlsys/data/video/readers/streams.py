"""What the headers and packets of a video stream say of it, as FFmpeg's libraries read them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from rlsys.data.video.readers.key_frames import KeyFrame, key_frame, length_bytes
from rlsys.data.video.readers.size_marks import HEAD_BYTES, size_mark

MICROSECONDS = 1_000_000
"""In which a container's start is counted."""
DECODERS = {"libvpx": "vp8", "libvpx-vp9": "vp9", "libdav1d": "av1"}


class Packet(NamedTuple):
    """What a packet says of its frame, without its data: an hour of video has gigabytes of it.

    pts, dts, duration: in the stream's units; None and 0 if the file does not say.  key: what decoding gives that
    starts at it.  mark: of the size of a key frame.
    """

    pts: Any
    dts: Any
    duration: int
    key: KeyFrame
    is_discard: bool
    mark: bytes


def codec_of(stream: Any) -> str:
    """Return the name of a stream's codec, whichever decoder reads it."""
    name: str = stream.codec_context.name
    return DECODERS.get(name, name)


def start_of(container: Any) -> Fraction:
    """Return when a container starts, in seconds."""
    return Fraction(container.start_time or 0, MICROSECONDS)


def aspect_of(stream: Any) -> float:
    """Return the width of a stored pixel divided by its height."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return float(ratio) if ratio else 1.0


def packets_of(container: Any, stream: Any) -> list[Packet]:
    """Return all packets of a stream, in the order of the file."""
    codec = codec_of(stream)
    extra = stream.codec_context.extradata or b""
    prefix = length_bytes(extra)
    every: list[Packet] = []
    for one in container.demux(stream):
        if one.size:
            key, mark = KeyFrame.NONE, b""
            if one.is_keyframe:
                key = key_frame(codec, bytes(one), prefix)
                mark = size_mark(codec, bytes(memoryview(one)[:HEAD_BYTES]), extra, prefix)
            every.append(Packet(one.pts, one.dts, one.duration or 0, key, one.is_discard, mark))
    return every

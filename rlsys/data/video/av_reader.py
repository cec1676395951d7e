"""Read video files through FFmpeg's libraries: presentation times and frames. The only file that imports av.

Times are those of a player: presentation time minus the container's start, with edit lists applied. Every returned
frame has the requested presentation time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError

from rlsys.data.video.errors import ClipError
from rlsys.data.video.images import row_bands

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,ivf,gif,apng,"
    "h264,hevc,m4v,av1,obu,wav,mp3,aac,flac"
)
"""Containers that may be opened. Playlists (hls, concat, dash) are excluded, because they open other files."""
OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
INDEXED = frozenset(("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv"))
"""Containers whose packets carry presentation times and that seek by them reliably."""
FAST_CODECS = frozenset(("h264", "vp8", "vp9", "mpeg4", "mjpeg"))
FAST_PIXELS = frozenset(("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"))
DECODERS = {"libvpx": "vp8", "libvpx-vp9": "vp9", "libdav1d": "av1"}
MAX_PIXELS = 8192 * 4320
"""Largest number of pixels of a frame: 8K in its widest form. Decoding it takes 1.4 GB: up to seventeen frames that
others refer to, and single frames as RGB."""
MAX_FRAME_BYTES = 3 * MAX_PIXELS
"""Largest number of bytes of a frame in its own pixel format: 8K of 10 bit with a quarter of the colours."""
MAX_FAST_PIXELS = 4096 * 2304
"""Frames above 4K are not read with decord, which takes 3.2 GB for 8K and is no faster there."""
MAX_SECONDS = 1e7


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """The presentation times of a file's frames, from its headers and packets alone.

    times_s: f64 [N], increasing, seconds.  end_s: when the last frame ends.  pts: i64 [N], the same in the stream's
    units.  keys: i64 [K], pts of the frames at which decoding can start; empty if that is unreliable.
    aspect: width of a pixel divided by its height.  why_not_fast: why decord would misread the file, or "".
    """

    times_s: np.ndarray
    end_s: float
    pts: np.ndarray
    keys: np.ndarray
    height: int
    width: int
    aspect: float
    why_not_fast: str


class _Packet(NamedTuple):
    """What a packet says of its frame, without its data: an hour of video has gigabytes of it.

    pts, duration: in the stream's units; None and 0 if the file does not say.
    """

    pts: Any
    duration: int
    is_keyframe: bool
    is_discard: bool


@contextmanager
def opened(path: Path, uri: str) -> Iterator[tuple[Any, Any]]:
    """Open a file as (container, video stream). Raises ClipError, also for what FFmpeg reports while it is open."""
    try:
        with av.open(str(path), options=OPTIONS, metadata_errors="ignore") as container:
            streams = [one for one in container.streams.video if not one.disposition & _attached()]
            if not streams:
                if container.streams.audio:
                    raise ClipError(uri, "audio_only", "the file has sound and no video stream")
                raise ClipError(uri, "zero_length", "the container is empty: no video stream, no sound")
            stream = streams[0]
            stream.codec_context.thread_count = 1  # decoders run in parallel, one core each
            _require_size(stream.codec_context, uri)
            yield container, stream
    except FFmpegError as error:
        raise ClipError(uri, "corrupt", f"decoding failed: {_message(error)}") from error


def _attached() -> Any:
    return av.stream.Disposition.attached_pic


def _require_size(context: Any, uri: str) -> None:
    pixels = context.height * context.width
    bits = context.format.padded_bits_per_pixel if context.format else 0
    if pixels > MAX_PIXELS or pixels * bits > 8 * MAX_FRAME_BYTES:
        what = f"{context.width} x {context.height} pixels" + (f" of {bits} bits" if bits else "")
        raise ClipError(uri, "too_large", f"{what}, above the limit of {MAX_PIXELS} pixels of 24 bits")


def probe(path: Path, uri: str) -> Probe:
    """Return the presentation times of a file's frames; frames are decoded only if the packets have no times."""
    with opened(path, uri) as (container, stream):
        every = [
            _Packet(one.pts, one.duration or 0, one.is_keyframe, one.is_discard)
            for one in container.demux(stream)
            if one.size
        ]
        packets = [one for one in every if not one.is_discard]
        is_indexed = container.format.name in INDEXED and all(one.pts is not None for one in packets)
        if is_indexed and packets:
            keys = [one.pts for one in packets if one.is_keyframe]
            shown = [(one.pts, one.duration) for one in packets]
            why = _why_not_fast(container, stream, packets, len(every) - len(packets))
        else:
            keys, why = [], f"{container.format.name} does not seek reliably"
            shown = _decoded_times(path, uri)
        return _probed(container, stream, uri, shown, keys, why)


def _why_not_fast(container: Any, stream: Any, packets: Sequence[Any], num_discarded: int) -> str:
    """Return why decord, which counts frames and seeks by keyframes, may return wrong frames, or ""."""
    codec = DECODERS.get(stream.codec_context.name, stream.codec_context.name)
    pts = [one.pts for one in packets]
    if codec not in FAST_CODECS:
        return f"codec {codec}"
    if stream.codec_context.pix_fmt not in FAST_PIXELS:
        return f"pixel format {stream.codec_context.pix_fmt}"
    if stream.codec_context.height * stream.codec_context.width > MAX_FAST_PIXELS:
        return "frames above 4K"
    if num_discarded:
        return "an edit list"
    if len(set(pts)) != len(pts):
        return "frames of one time"
    if abs(min(pts) * stream.time_base - _start_s(container)) > Fraction(1, 1000):
        return "pictures that start behind the sound"
    if codec == "mpeg4" and pts != sorted(pts):
        return "MPEG-4 with B-frames"
    if not packets[0].is_keyframe or not _are_groups_closed(packets):
        return "open groups of pictures"
    if _aspect(stream) != 1.0:
        return "pixels that are not square"
    return ""


def _are_groups_closed(packets: Sequence[Any]) -> bool:
    """Return whether no frame that is decoded after a keyframe is shown before it, so that decoding can start there."""
    earliest = None
    for one in reversed(packets):
        earliest = one.pts if earliest is None else min(earliest, one.pts)
        if one.is_keyframe and earliest < one.pts:
            return False
    return True


def _decoded_times(path: Path, uri: str) -> list[tuple[int, int]]:
    with opened(path, uri) as (container, stream):
        shown = [(frame.pts, frame.duration or 0) for frame in container.decode(stream)]
        if any(pts is None for pts, _ in shown):
            rate = stream.average_rate or stream.guessed_rate
            if not rate:
                raise ClipError(uri, "corrupt", "its frames have no times and the file has no frame rate")
            step = int(1 / (rate * stream.time_base))
            return [(index * step, step) for index in range(len(shown))]
        return shown


def _probed(
    container: Any, stream: Any, uri: str, shown: Sequence[tuple[int, int]], keys: Sequence[int], why: str
) -> Probe:
    if not shown:
        raise ClipError(uri, "zero_length", "the video stream has no frames")
    durations = dict(shown)
    pts = np.array(sorted(durations), dtype=np.int64)
    unit = stream.time_base
    # AVI counts frames: the first is shown at the start, whatever number the decoder's delay gave it
    start = pts[0] * unit if container.format.name == "avi" else _start_s(container)
    times_s = np.array([float(int(one) * unit - start) for one in pts])
    last_s = float((durations[int(pts[-1])] or _usual_step(pts)) * unit)
    end_s = float(times_s[-1]) + (last_s or (1 / float(stream.average_rate) if stream.average_rate else 0.0))
    if not (np.isfinite(times_s).all() and times_s[0] >= -0.001 and end_s < MAX_SECONDS):
        raise ClipError(uri, "corrupt", f"its frames have times from {times_s[0]:g} to {end_s:g} s")
    context = stream.codec_context
    return Probe(
        times_s=np.round(np.maximum(times_s, 0.0), 6),
        end_s=round(end_s, 6),
        pts=pts,
        keys=np.array(sorted(keys), dtype=np.int64),
        height=context.height,
        width=context.width,
        aspect=_aspect(stream),
        why_not_fast=why,
    )


def _usual_step(pts: np.ndarray) -> int:
    return int(np.median(np.diff(pts))) if pts.size > 1 else 0


def _start_s(container: Any) -> Fraction:
    return Fraction(container.start_time or 0, av.time_base)


def _aspect(stream: Any) -> float:
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return float(ratio) if ratio else 1.0


def read(path: Path, uri: str, found: Probe, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the frames at these ascending indices, u8 [H, W, 3], rotated upright.

    Raises ClipError if the file has no frame at a time that its headers list.
    """
    wanted = [int(found.pts[index]) for index in indices]
    with opened(path, uri) as (container, stream):
        frames: Iterator[Any] = container.decode(stream)
        at = -1 << 62
        for pts in wanted:
            key = bisect_right(found.keys, pts) - 1
            if key >= 0 and found.keys[key] > at:  # skip decoding the frames up to there
                container.seek(int(found.keys[key]), stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                at = frame.pts if frame.pts is not None else at + 1
                if at >= pts:
                    break
            if at != pts:
                raise ClipError(uri, "corrupt", f"no frame of {float(pts * stream.time_base):.3f} s can be decoded")
            yield upright(frame)


def upright(frame: Any) -> np.ndarray:
    """Return a decoded frame as u8 [H, W, 3] RGB, rotated by its display matrix; transparency becomes white."""
    if frame.format.name in ("rgba", "bgra", "argb", "abgr", "pal8", "ya8") or frame.format.name.startswith("yuva"):
        rgba = frame.to_ndarray(format="rgba")
        pixels = np.empty((*rgba.shape[:2], 3), np.uint8)
        for top, bottom in row_bands(*rgba.shape[:2]):
            band = rgba[top:bottom].astype(np.uint16)
            alpha = band[..., 3:]
            pixels[top:bottom] = (band[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    else:
        pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)) if frame.rotation else pixels


def _message(error: FFmpegError) -> str:
    return (error.strerror or type(error).__name__).strip()

"""Read video files through FFmpeg's libraries: presentation times and frames. The only file that imports av.

Times are those of a player: presentation time minus the container's start, with edit lists applied. Every returned
frame has the requested presentation time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from rlsys.data.video.errors import ClipError
from rlsys.data.video.readers.containers import head_of
from rlsys.data.video.readers.edits import Track, edited, movie_start_s, read_tracks
from rlsys.data.video.readers.fast_path import why_not_fast, why_not_fast_picture
from rlsys.data.video.readers.pictures import Turn, turn_of, upright
from rlsys.data.video.readers.shown import Shown, at_constant_rate, checked, filled, in_order, times_of
from rlsys.data.video.readers.streams import Packet, aspect_of, codec_of, packets_of, start_of

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,ivf,gif,apng,"
    "h264,hevc,m4v,av1,obu,vc1,vvc,mjpeg,yuv4mpegpipe,nut,rm,dv,gxf,wtv,swf,wav,mp3,aac,flac"
)
"""Containers that may be opened. Playlists (hls, concat, dash) are excluded, because they open other files."""
OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
INDEXED = frozenset((MP4, "matroska,webm", "flv"))
"""Containers whose packets carry presentation times and that seek by them reliably."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Codec -> the decoder that reads the transparency beside its pictures, which FFmpeg's own skips."""
MAX_PIXELS = 8192 * 4320
"""Largest number of pixels of a frame: 8K in its widest form. Decoding it takes 1.4 GB: up to seventeen frames that
others refer to, and single frames as RGB."""
MAX_FRAME_BYTES = 3 * MAX_PIXELS
"""Largest number of bytes of a frame in its own pixel format: 8K of 10 bit with a quarter of the colours."""
WRAP = 1 << 32
"""Half of the clock of MPEG streams, in ticks; a larger step is a jump back that was taken for the clock's overflow."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """The presentation times of a file's frames, from its headers and packets alone.

    times_s: f64 [N], increasing, seconds.  end_s: when the last frame ends.  pts: i64 [N], the same in the stream's
    units; if `is_counted`, the number of frames that are decoded before each.  keys: i64 [K], pts of the frames at
    which decoding can start; empty if that is unreliable.
    height, width: of a stored picture.  aspect: width of a stored pixel divided by its height.
    turn: from the stored picture to the shown one.  why_not_fast: why decord would misread the file, or "".
    is_edited: whether the times are of the file's edit list, which FFmpeg must not apply; pts may then go back.
    seeks: i64 [K], what FFmpeg is to seek for to get to each of `keys`; empty: the same.
    """

    times_s: np.ndarray
    end_s: float
    pts: np.ndarray
    keys: np.ndarray
    is_counted: bool
    height: int
    width: int
    aspect: float
    turn: Turn
    why_not_fast: str
    is_edited: bool = False
    seeks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def key_indices(self) -> list[int]:
        """The indices of the frames at which decoding can start."""
        return np.flatnonzero(np.isin(self.pts, self.keys)).tolist()

    @property
    def shown_size(self) -> tuple[float, float]:
        """The (width, height) of a shown picture in square pixels."""
        width, height = self.width * self.aspect, float(self.height)
        return (height, width) if self.turn.is_transposed else (width, height)


@contextmanager
def opened(path: Path, uri: str, *, is_edited: bool = False) -> Iterator[tuple[Any, Any]]:
    """Open a file as (container, video stream). Raises ClipError, also for what FFmpeg reports while it is open.

    is_edited: whether FFmpeg is to leave the edit list of an MP4 file alone.
    """
    options = OPTIONS | ({"ignore_editlist": "1"} if is_edited else {})
    try:
        container = av.open(str(path), options=options, metadata_errors="ignore")
    except FFmpegError as error:
        raise ClipError(
            uri, "corrupt", f"not a video that FFmpeg can open ({_message(error)}); {head_of(path)}"
        ) from error
    try:
        with container:
            stream = _video_stream(container, uri)
            stream.codec_context.thread_count = 1  # decoders run in parallel, one core each
            _require_size(stream.codec_context, uri)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # of the frames behind, too
            yield container, stream
    except FFmpegError as error:
        what = f"decoding failed: {_message(error)} (a damaged frame, or one of over {MAX_PIXELS} pixels)"
        raise ClipError(uri, "corrupt", what) from error


def _video_stream(container: Any, uri: str) -> Any:
    """Return the stream that a player shows. Raises ClipError if there is none."""
    streams = _video_streams(container)
    if not streams:
        if container.streams.audio:
            raise ClipError(uri, "audio_only", "the file has sound and no video stream")
        raise ClipError(uri, "zero_length", "the container is empty: no video stream, no sound")
    best = container.streams.best("video")
    chosen = best if best in streams else streams[0]
    if chosen.codec_context is None:
        raise ClipError(uri, "corrupt", "FFmpeg has no decoder for its video stream")
    return chosen


def _video_streams(container: Any) -> list[Any]:
    return [one for one in container.streams.video if not one.disposition & _attached()]


def _attached() -> Any:
    return av.stream.Disposition.attached_pic


def _require_size(context: Any, uri: str) -> None:
    pixels = context.height * context.width
    bits = context.format.padded_bits_per_pixel if context.format else 0
    if pixels > MAX_PIXELS or pixels * bits > 8 * MAX_FRAME_BYTES:
        what = f"{context.width} x {context.height} pixels" + (f" of {bits} bits" if bits else "")
        raise ClipError(uri, "too_large", f"{what}, above the limit of {MAX_PIXELS} pixels of 24 bits")


def probe(path: Path, uri: str) -> Probe:
    """Return the presentation times of a file's frames.

    Only the first frame is decoded, or all if the packets have no times. Raises ClipError.
    """
    with opened(path, uri) as (container, stream):
        if container.format.name == MP4:
            tracks = read_tracks(path)
            if (track := tracks.get(stream.id)) and not track.is_plain:
                return _probe_edited(path, uri, track, movie_start_s(tracks))
        every = packets_of(container, stream)
        packets = [one for one in every if not one.is_discard]
        is_indexed = container.format.name in INDEXED and all(one.pts is not None for one in packets)
        first = _first_frame(path, uri)
        turn = Turn() if first is None else turn_of(first)
        if is_indexed and packets and first is not None:
            # what precedes the first picture that can be decoded is not shown
            shown = [
                Shown(one.pts, one.duration, one.pts) for one in packets if first.pts is None or one.pts >= first.pts
            ]
            keys = [one.pts for one in packets if one.key.can_start]
            why = _why_not_fast(container, stream, packets, len(every) - len(packets), turn)
        else:
            keys, why = [], f"{container.format.name} does not seek reliably"
            shown = _decoded_times(path, uri)
        if not shown:
            raise ClipError(uri, "zero_length", "the video stream has no frames")
        start = _start(container, stream, shown, packets)
        times_s, end_s = times_of(stream, uri, shown, start)
        return Probe(
            times_s=times_s,
            end_s=end_s,
            pts=np.array([one.place for one in in_order(shown)], dtype=np.int64),
            keys=np.array(sorted(keys), dtype=np.int64),
            is_counted=not (is_indexed and packets),
            height=stream.codec_context.height,
            width=stream.codec_context.width,
            aspect=aspect_of(stream),
            turn=turn,
            why_not_fast=why,
        )


def _probe_edited(path: Path, uri: str, track: Track, start_s: Fraction) -> Probe:
    """Return the frames that an edit list of several parts shows. start_s: when the movie starts."""
    with opened(path, uri, is_edited=True) as (container, stream):
        packets = [one for one in packets_of(container, stream) if None not in (one.pts, one.dts)]
        first = _first_frame(path, uri, is_edited=True)
        earliest = min((one.pts for one in packets), default=0) if first is None or first.pts is None else first.pts
        frames = [(one.pts, one.duration) for one in packets if one.pts >= earliest]
        shown, end_s = edited(uri, track, frames)
        if not shown:
            raise ClipError(uri, "zero_length", "its edit list shows no frame")
        keys = sorted((one.pts, one.dts) for one in packets if one.key.can_start)
        times_s, last_s = checked(uri, np.array([float(one.time_s - start_s) for one in shown]), float(end_s - start_s))
        return Probe(
            times_s=times_s,
            end_s=last_s,
            pts=np.array([one.pts for one in shown], dtype=np.int64),
            keys=np.array([pts for pts, _ in keys], dtype=np.int64),
            is_counted=False,
            height=stream.codec_context.height,
            width=stream.codec_context.width,
            aspect=aspect_of(stream),
            turn=Turn() if first is None else turn_of(first),
            why_not_fast="an edit list of several parts",
            is_edited=True,
            seeks=np.array([dts for _, dts in keys], dtype=np.int64),  # which FFmpeg searches without its list
        )


def _first_frame(path: Path, uri: str, *, is_edited: bool = False) -> Any:
    with opened(path, uri, is_edited=is_edited) as (container, stream):
        return next(_decoded(container, stream), None)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the frames from where the container is, in the order in which they are shown."""
    name = _alpha_decoder(stream)
    if not name:
        yield from container.decode(stream)
        return
    context = av.CodecContext.create(name, "r")
    context.thread_count, context.options = 1, {"max_pixels": str(MAX_PIXELS)}
    for packet in container.demux(stream):
        yield from context.decode(packet if packet.size else None)


def _alpha_decoder(stream: Any) -> str:
    """Return the decoder that reads a stream's transparency, "" where FFmpeg's own does."""
    is_transparent = stream.metadata.get("alpha_mode") == "1"
    name = ALPHA_DECODERS.get(codec_of(stream), "")
    return name if is_transparent and name in av.codecs_available else ""


def _why_not_fast(container: Any, stream: Any, packets: Sequence[Packet], num_discarded: int, turn: Turn) -> str:
    if len(_video_streams(container)) > 1:
        return "several video streams"
    if _alpha_decoder(stream):
        return "transparency"
    return why_not_fast_picture(stream, turn) or why_not_fast(container, stream, packets, num_discarded)


def _decoded_times(path: Path, uri: str) -> list[Shown]:
    """Return the frames that decoding in order gives, without incomplete ones. Raises ClipError if times go back."""
    with opened(path, uri) as (container, stream):
        frames = [
            (one.pts, one.dts, one.duration or 0, place)
            for place, one in enumerate(_decoded(container, stream))
            if not one.is_corrupt
        ]
        pts, dts = (filled([one[at] for one in frames], [one[2] for one in frames]) for at in (0, 1))
        if None in pts and None in dts:
            rate = stream.average_rate or stream.guessed_rate
            if not rate:
                raise ClipError(uri, "corrupt", "its frames have no times and the file has no frame rate")
            step = int(1 / (rate * stream.time_base))
            return [Shown(place * step, step, place) for *_, place in frames]
        # some containers state only the order of decoding, which is that of the frames once they are decoded
        stamps = next((one for one in (pts, dts) if None not in one and one == sorted(one)), None)
        name = container.format.name
        if name == "mpeg":
            stamps = at_constant_rate(pts, stream) or stamps
        if stamps is None or (name in ("mpeg", "mpegts") and np.diff(stamps).max(initial=0) > WRAP):
            raise ClipError(uri, "corrupt", "the times of its frames go back: several recordings in one file")
        return [Shown(time, duration, place) for time, (*_, duration, place) in zip(stamps, frames, strict=True)]


def _start(container: Any, stream: Any, shown: Sequence[Shown], packets: Sequence[Packet]) -> Fraction:
    """Return the time of the stream, in seconds, at which a player starts."""
    first = min(one.time for one in shown) * stream.time_base
    if container.format.name == "avi":
        # AVI counts packets: its decoder's delay shifts all frames, and empty packets are pauses
        sent = sorted(one.dts for one in packets if one.dts is not None)
        times = sorted(one.time for one in shown)
        is_paired = len(sent) == len(times)
        return min(b - a for a, b in zip(sent, times, strict=True)) * stream.time_base if is_paired else first
    # FFmpeg leaves streams out of the container's start whose packets do not tell when the first picture is shown
    return first if container.start_time is None else min(first, start_of(container))


def read(path: Path, uri: str, found: Probe, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the frames at these ascending indices as they are shown, u8 [H, W, 3], but for the aspect of their pixels.

    Raises ClipError if the file has no frame at a time that its headers list.
    """
    num_read = 0
    try:
        for frame in _read(path, uri, found, indices):
            num_read += 1
            yield frame
    except _WrongStart:
        in_order = replace(found, keys=found.keys[:1], seeks=found.seeks[:1])
        yield from _read(path, uri, in_order, indices[num_read:])


class _WrongStart(Exception):
    """Decoding cannot start at a frame that the container calls a key frame."""


def _read(path: Path, uri: str, found: Probe, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield frames as `read` does. Raises _WrongStart where a key frame behind the first one is none."""
    wanted, seeks = [int(found.pts[index]) for index in indices], found.seeks if found.is_edited else found.keys
    with opened(path, uri, is_edited=found.is_edited) as (container, stream):
        frames = _placed(container, stream, found)
        at, frame = -1 << 62, None
        is_checked = stream.codec_context.name == "h264"  # of which `key_frame` has read the packets
        for pts in wanted:
            key = bisect_right(found.keys, pts) - 1
            # skip decoding the frames up to there; an edit list may go back, or hold a picture
            if pts < at or (key > 0 and found.keys[key] > at):
                _seek(container, stream, int(seeks[max(key, 0)]) if seeks.size else pts, is_start=key <= 0)
                frames, at, frame = _placed(container, stream, found), -1 << 62, None
            if at != pts:
                is_first = frame is None
                for at, frame in frames:
                    if is_first and key > 0 and not (is_checked or frame.key_frame):
                        raise _WrongStart
                    is_first = False
                    if at >= pts:
                        break
            if at != pts or frame is None:
                if key > 0:
                    raise _WrongStart
                raise ClipError(uri, "corrupt", f"no frame of {float(pts * stream.time_base):.3f} s can be decoded")
            yield upright(frame, found.turn)


def _seek(container: Any, stream: Any, pts: int, *, is_start: bool) -> None:
    """Go to a key frame. is_start: of the file. Raises _WrongStart for others that some files without an index have."""
    try:
        container.seek(pts, stream=stream)
    except FFmpegError:
        if is_start:
            raise
        raise _WrongStart from None


def _placed(container: Any, stream: Any, found: Probe) -> Iterator[tuple[int, Any]]:
    """Yield (place as in `Probe.pts`, frame) from where the container is."""
    for number, frame in enumerate(_decoded(container, stream)):
        if found.is_counted:
            yield number, frame
        elif frame.pts is not None:
            yield frame.pts, frame


def _message(error: FFmpegError) -> str:
    return (error.strerror or type(error).__name__).strip()

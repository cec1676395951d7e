"""Real video files of every container and codec, written by FFmpeg's encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from benchmarks.priority import keeps_priority


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The settings with which a video file is written.

    times: when each frame is shown, in frames of `fps`; None: one after the other.
    has_sound: whether a silent track starts at 0, however late the pictures start.
    rotation: degrees that a player turns the picture, counter-clockwise.  aspect: width of a pixel over its height.
    """

    codec: str = "libx264"
    fps: int = 10
    pixels: str = "yuv420p"
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    times: Sequence[int] | None = None
    has_sound: bool = False
    rotation: int = 0
    aspect: Fraction | None = None


def write_video(path: Path, frames: np.ndarray, how: Encoding) -> Path:
    """Write u8 [T, H, W, 3] frames (or [T, H, W, 4] with transparency)."""
    options = dict(how.options)
    if len(frames) == 1 and "x265-params" in options:
        options["x265-params"] += ":bframes=0"  # the time of a lone picture behind B-frames is not always set
    with keeps_priority(), av.open(str(path), "w", format=how.format) as container:
        stream = container.add_stream(how.codec, rate=how.fps, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], how.pixels
        stream.codec_context.time_base = Fraction(1, how.fps)
        stream.codec_context.thread_count = 1
        if how.aspect:
            stream.codec_context.sample_aspect_ratio = how.aspect
        sound = container.add_stream("aac", rate=48000) if how.has_sound else None
        if how.rotation:
            stream.set_display_rotation(how.rotation)
        if sound is not None:
            _write_silence(container, sound, seconds=len(frames) / how.fps + 2)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
            frame.pts = how.times[index] if how.times is not None else index
            frame.time_base = Fraction(1, how.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _write_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    size, rate = 1024, 48000
    for index in range(int(seconds * rate / size)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, size), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, index * size, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def cut_by_edit_list(source: Path, target: Path, first_s: float) -> Path:
    """Copy an MP4's packets so that an edit list hides those before `first_s`, as `ffmpeg -ss … -c copy` does."""
    with av.open(str(source)) as given, av.open(str(target), "w", format="mp4") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        shift = int(first_s / given.streams.video[0].time_base)
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                container.mux(packet)
    return target

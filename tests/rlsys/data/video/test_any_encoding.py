"""Files of numbered frames in forms that no other test thought of: every frame shown is that of its time."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.data.video.decode import decode
from rlsys.data.video.errors import ClipError
from tests.support.video_files import frames_shown, make_spec, numbered_frame

SUFFIXES = {
    "libx264": ("mp4", "mov", "mkv", "flv", "ts"),
    "libx265": ("mp4", "mkv"),
    "libvpx": ("webm", "mkv"),
    "libvpx-vp9": ("webm", "mp4"),
    "mpeg4": ("mp4", "mkv"),
    "mpeg2video": ("mpg", "ts", "mkv", "mp4"),
    "mpeg1video": ("mpg", "ts"),
    "mjpeg": ("mov", "mkv"),
    "ffv1": ("mkv", "nut"),
}
WITH_B_FRAMES = ("libx264", "mpeg4", "mpeg2video", "mpeg1video")
OPTIONS = {
    "libx264": {"forced-idr": "1", "x264-params": "scenecut=0"},
    "libx265": {"x265-params": "log-level=none:pools=none:frame-threads=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
RATES = (Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(50))


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a file is written. keys: frames that are key frames besides those of every `group` frames.

    all_flagged: whether the container calls every frame a key frame.  fragmented: whether an MP4 file is.
    """

    codec: str
    suffix: str
    rate: Fraction
    num_frames: int
    group: int
    b_frames: int
    keys: frozenset[int]
    all_flagged: bool
    fragmented: bool


@st.composite
def forms(draw: st.DrawFn) -> Form:
    codec = draw(st.sampled_from(sorted(SUFFIXES)))
    num_frames = draw(st.integers(20, 150))
    return Form(
        codec=codec,
        suffix=draw(st.sampled_from(SUFFIXES[codec])),
        rate=draw(st.sampled_from(RATES)),
        num_frames=num_frames,
        group=draw(st.integers(1, 60)),
        b_frames=draw(st.integers(0, 3)) if codec in WITH_B_FRAMES else 0,
        keys=draw(st.frozensets(st.integers(0, num_frames - 1), max_size=6)),
        all_flagged=draw(st.booleans()),
        fragmented=draw(st.booleans()),
    )


def written(path: Path, form: Form) -> None:
    with av.open(
        str(path),
        "w",
        options={"movflags": "frag_keyframe"} if form.fragmented and form.suffix in ("mp4", "mov") else {},
    ) as container:
        options = {"g": str(form.group), "bf": str(form.b_frames), **OPTIONS.get(form.codec, {})}
        stream = container.add_stream(form.codec, rate=form.rate, options=options)
        stream.height, stream.width = 48, 64
        stream.pix_fmt = "yuvj420p" if form.codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base, stream.codec_context.thread_count = 1 / form.rate, 1
        for number in range(form.num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = number, 1 / form.rate
            if number in form.keys:
                frame.pict_type = av.video.frame.PictureType.I
            for packet in stream.encode(frame):
                packet.is_keyframe |= form.all_flagged
                container.mux(packet)
        for packet in stream.encode():
            packet.is_keyframe |= form.all_flagged
            container.mux(packet)


@settings(max_examples=120)
@given(form=forms(), fps=st.sampled_from((1.0, 4.0, 10.0)), part=st.tuples(st.floats(0, 0.9), st.floats(0.05, 1)))
def test_every_frame_shown_is_that_of_its_time(form: Form, fps: float, part: tuple[float, float]) -> None:
    end_s = float(form.num_frames / form.rate)
    start_s = part[0] * end_s
    windows = (None, (start_s, start_s + part[1] * (end_s - start_s)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"numbered.{form.suffix}"
        written(path, form)
        for window_s in windows:
            try:
                clip = decode(make_spec(path, fps=fps, min_frames=2, max_frames=60, window_s=window_s))
            except ClipError as error:  # a part of less than two frames
                assert window_s is not None and error.kind in ("window", "zero_length"), error
                continue
            numbers = np.round(clip.info.times_s * float(form.rate)).astype(int)
            assert frames_shown(clip.frames) == numbers.tolist()
            assert np.allclose(clip.info.times_s, numbers / float(form.rate), atol=2e-3)

"""The cost of decoding a clip by kind of file, compared with decord alone: `python -m benchmarks.decode`.

Workload: the same moving pictures, 30 s of 480 x 272 at 30 frames a second, written by FFmpeg's encoders in several
containers and codecs; 60 frames of each are read (2 a second) and resized to about 100,000 pixels in one process with
one thread. Seconds are CPU seconds, medians of interleaved repetitions. Decord alone reads the frames that it counts
at these times, without checks or hashes; each picture shows its number, which tells whether it is the right one.
With `--folder`, the files of a folder are measured instead, and which of them take the fast path.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av
import decord
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.priority import keeps_priority
from rlsys.data.video.decode import decode, reads_fast
from rlsys.data.video.errors import ClipError
from rlsys.types import VideoSpec

FPS, SECONDS, SIZE = 30, 30, (272, 480)
BITS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file: a container and a codec. name: of the file, whose suffix selects the container."""

    name: str
    codec: str
    pixels: str = "yuv420p"
    options: Mapping[str, str] = field(default_factory=dict)


KINDS = (
    Kind(name="h264.mp4", codec="libx264", options={"bf": "0"}),
    Kind(name="h264_b_frames.mp4", codec="libx264"),
    Kind(name="h264.mkv", codec="libx264"),
    Kind(name="vp9.webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}),
    Kind(name="h264_10_bit.mp4", codec="libx264", pixels="yuv420p10le"),
    Kind(name="h264.ts", codec="libx264"),
    Kind(name="hevc.mp4", codec="libx265", options={"x265-params": "log-level=none"}),
    Kind(name="mpeg4_b_frames.avi", codec="mpeg4", options={"bf": "2"}),
    Kind(name="mpeg2.mpg", codec="mpeg2video"),
    Kind(name="av1.mp4", codec="libsvtav1", options={"preset": "9", "crf": "20"}),
)


def numbered(number: int) -> np.ndarray:
    """Return a picture, u8 [H, W, 3]: a moving gradient under its number as a row of dark and bright blocks."""
    height, width = SIZE
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    picture = np.stack([across + 2 * number, down + number, across + down], axis=2).astype(np.uint8) // 2 + 60
    for bit in range(BITS):
        left = bit * width // BITS
        picture[: height // 4, left : left + width // BITS] = 230 if number >> bit & 1 else 20
    return picture


def number_of(frame: np.ndarray) -> int:
    """Return the number that a frame of any size shows."""
    height, width, _ = frame.shape
    row = frame[height // 16 : height // 6].mean(axis=(0, 2))
    return sum(int(row[int((bit + 0.5) * width / BITS)] > 125) << bit for bit in range(BITS))


def write(path: Path, kind: Kind, pictures: Iterable[np.ndarray] | None = None, fps: int = FPS) -> None:
    """Write a video of these pictures, u8 [H, W, 3] of one size each; None writes `SECONDS` of numbered ones."""
    if pictures is None:
        pictures = map(numbered, range(FPS * SECONDS))
    with keeps_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(kind.codec, rate=fps, options=dict(kind.options))
        stream.codec_context.time_base = Fraction(1, fps)
        for index, picture in enumerate(pictures):
            if index == 0:
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], kind.pixels
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def spec_of(path: Path) -> VideoSpec:
    return VideoSpec(
        uri=str(path),
        fps=2.0,
        min_frames=4,
        max_frames=60,
        min_pixels=28 * 28,
        max_pixels=128 * 28 * 28,
        total_pixels=10**9,
    )


def with_decord_alone(path: Path, size: tuple[int, int], num_frames: int) -> np.ndarray:
    """Return frames u8 [T, H, W, 3], evenly spaced by decord's count, as most training code reads videos."""
    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    indices = np.linspace(0, len(reader), num_frames, endpoint=False).astype(int)
    frames = reader.get_batch(list(indices)).asnumpy()
    return np.stack([np.asarray(Image.fromarray(one).resize(size[::-1], Image.Resampling.BICUBIC)) for one in frames])


def timed(call: Callable[[], Any]) -> float:
    """Return the CPU seconds of a call in all threads of this process, which other processes hardly affect."""
    started = time.process_time()
    call()
    return time.process_time() - started


def measure(path: Path, repetitions: int) -> dict[str, Any]:
    """Return the CPU seconds per clip of both decoders, and the number of frames that decord gets wrong."""
    spec = spec_of(path)
    clip = decode(spec)
    _, height, width, _ = clip.frames.shape
    alone: np.ndarray | None
    try:
        alone = with_decord_alone(path, (height, width), len(clip.frames))
    except (decord.DECORDError, RuntimeError):
        alone = None
    seconds: dict[str, list[float]] = {"rlsys": [], "decord": []}
    for _ in range(repetitions):
        seconds["rlsys"].append(timed(lambda: decode(spec)))
        if alone is not None:
            seconds["decord"].append(timed(lambda: with_decord_alone(path, (height, width), len(clip.frames))))
    return {
        "file": path.name,
        "why_not_fast": reads_fast(path),
        "frames": len(clip.frames),
        "rlsys_s": median(seconds["rlsys"]),
        "decord_s": median(seconds["decord"]) if alone is not None else None,
        "shown": [number_of(frame) for frame in clip.frames],
        "decord_shown": None if alone is None else [number_of(frame) for frame in alone],
    }


def of_kinds(folder: Path, repetitions: int) -> Iterator[dict[str, Any]]:
    for kind in KINDS:
        path = folder / kind.name
        write(path, kind)
        found = measure(path, repetitions)
        wanted = [index * FPS // 2 for index in range(2 * SECONDS)]
        found["wrong"] = wrong(found.pop("shown"), wanted)
        shown = found.pop("decord_shown")
        found["decord_wrong"] = None if shown is None else wrong(shown, wanted)
        yield found


def wrong(shown: Sequence[int], wanted: Sequence[int]) -> int:
    """Return the number of frames that differ by more than one from those at the requested times."""
    return sum(abs(one - other) > 1 for one, other in zip(shown, wanted, strict=True))


def of_folder(folder: Path, repetitions: int) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.iterdir()):
        try:
            found = measure(path, repetitions)
        except ClipError as error:
            log.warning("skipped: %s", error)
            continue
        del found["shown"], found["decord_shown"]
        yield found


def show(results: Sequence[Mapping[str, Any]]) -> None:
    table = Table("file", "path", "rlsys, ms", "decord alone, ms", "ratio", "wrong frames of decord alone")
    for one in results:
        decord_s = one["decord_s"]
        table.add_row(
            one["file"],
            f"PyAV: {one['why_not_fast']}" if one["why_not_fast"] else "decord",
            f"{1000 * one['rlsys_s']:.0f}",
            "cannot read it" if decord_s is None else f"{1000 * decord_s:.0f}",
            "" if decord_s is None else f"{one['rlsys_s'] / decord_s:.2f}",
            "" if one.get("decord_wrong") is None else f"{one['decord_wrong']} of {one['frames']}",
        )
    Console().print(table)
    fast = sum(not one["why_not_fast"] for one in results)
    log.info("%d of %d files take the fast path", fast, len(results))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="measure the videos in this folder instead")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = (
            of_folder(given.folder, given.repetitions) if given.folder else of_kinds(Path(folder), given.repetitions)
        )
        results = list(source)
    show(results)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

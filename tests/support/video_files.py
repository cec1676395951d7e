"""Small video files for tests, written by opencv or byte by byte, and access to the shared real ones."""

from __future__ import annotations

import os
import struct
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from rlsys.demo.synthetic import encode
from rlsys.types import VideoSpec
from tests.support.encoding import Encoding, write_video
from tests.support.paths import REPO

SHARED_DATA = Path(os.environ.get("RLSYS_SHARED_DATA", REPO.parent / "shared" / "data"))
"""The folder of real data, which are not in the repository and may be absent."""


def shared_data(*parts: str) -> Path:
    """Return a file or folder of the shared real data; skip the test if it is absent."""
    path = SHARED_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there; RLSYS_SHARED_DATA names the folder of real data")
    return path


def make_spec(uri: Path | str, **changes: object) -> VideoSpec:
    values: dict = dict(
        uri=str(uri), fps=2.0, min_frames=4, max_frames=12, min_pixels=28 * 28, max_pixels=112 * 112, total_pixels=10**8
    )
    return VideoSpec(**(values | changes))


def make_video(
    path: Path, *, num_frames: int = 60, fps: float = 10.0, size: tuple[int, int] = (48, 64), codec: str = "mp4v"
) -> Path:
    """Write a video whose frame i is `numbered_frame(i)`. size: (height, width)."""
    frames = np.array([numbered_frame(index, size) for index in range(num_frames)], np.uint8).reshape(-1, *size, 3)
    if codec == "VP80":  # opencv cannot write it beside decord, whose libvpx takes the place of its own
        write_video(path, frames, Encoding(codec="libvpx", fps=int(fps), format="webm"))
    else:
        encode(path, frames, fps, codec)
    return path


def numbered_frame(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Return a frame, u8 [H, W, 3], with a number's eight bits as columns, legible after any codec and resizing."""
    bits = np.array([(number >> bit) & 1 for bit in range(8)])
    row = np.repeat(np.where(bits, 220, 30), size[1] // 8)
    return np.broadcast_to(row[None, :, None], (*size, 3)).astype(np.uint8)


def frames_shown(frames: np.ndarray) -> list[int]:
    """Return the numbers that these frames of `make_video` show."""
    columns = frames.mean(axis=(1, 3)).reshape(len(frames), 8, -1).mean(axis=2)
    return [int(((row > 125) << np.arange(8)).sum()) for row in columns]


def make_wave(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.random.default_rng(0).bytes(16000))
    return path


def cut(source: Path, target: Path, share: float) -> Path:
    """Write the first `share` of a file's bytes to another file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def set_frame_durations(path: Path, durations_s: Sequence[float]) -> None:
    """Turn an MP4 of opencv into one of variable frame rate, by rewriting its table of sample durations."""
    data = bytearray(path.read_bytes())
    boxes = {name: (start, size) for name, start, size in _boxes(data, 0, len(data))}
    timescale = struct.unpack_from(">I", data, boxes[b"mdhd"][0] + 20)[0]
    table = struct.pack(">4xI", len(durations_s))
    table += b"".join(struct.pack(">II", 1, round(duration * timescale)) for duration in durations_s)
    start, size = boxes[b"stts"]
    growth = 8 + len(table) - size
    assert boxes[b"mdat"][0] < start, "the index lies behind the data, so growing it moves nothing"
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        struct.pack_into(">I", data, boxes[name][0], boxes[name][1] + growth)
    struct.pack_into(">I", data, boxes[b"mdhd"][0] + 24, round(sum(durations_s) * timescale))
    if b"edts" in boxes:  # an edit list would cut the longer track
        data[boxes[b"edts"][0] + 4 : boxes[b"edts"][0] + 8] = b"free"
    data[start : start + size] = struct.pack(">I4s", 8 + len(table), b"stts") + table
    path.write_bytes(data)


def move_index_to_front(source: Path, target: Path) -> Path:
    """Copy an MP4 with moov before mdat and adjusted chunk offsets, as `-movflags faststart` does."""
    data = source.read_bytes()
    top = [(name, data[start : start + size]) for name, start, size in _boxes(data, 0, len(data), nested=False)]
    moov = bytearray(next(body for name, body in top if name == b"moov"))
    table = moov.index(b"stco")
    for index in range(struct.unpack_from(">I", moov, table + 8)[0]):
        at = table + 12 + 4 * index
        struct.pack_into(">I", moov, at, struct.unpack_from(">I", moov, at)[0] + len(moov))
    first, *rest = [body for name, body in top if name != b"moov"]
    target.write_bytes(b"".join((first, bytes(moov), *rest)))
    return target


def _boxes(data: bytes, start: int, end: int, nested: bool = True) -> Iterator[tuple[bytes, int, int]]:
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        yield name, start, size
        if nested and name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            yield from _boxes(data, start + 8, start + size)
        start += size

"""What a small file can unpack to is bounded before it is unpacked, and large pictures are scaled one at a time."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from rlsys.data.annotations.media import picture_size
from rlsys.data.video import images, pixels
from rlsys.data.video.decode import decode, plan_grid, reads_fast, shape_of
from rlsys.data.video.errors import ClipError
from rlsys.data.video.readers.av_reader import MAX_PIXELS
from rlsys.types import ImageSpec
from tests.support.encoding import Encoding, write_video
from tests.support.pace import patience
from tests.support.paths import REPO
from tests.support.video_files import frames_shown, make_spec, numbered_frame

DECODE = """
import sys
from pathlib import Path
from rlsys.data.video.decode import decode
from rlsys.data.video.errors import ClipError
from tests.support.video_files import frames_shown, make_spec, numbered_frame
try:
    print(decode(make_spec(sys.argv[1], min_frames=2, max_frames=4)).frames.shape)
except ClipError as error:
    print(error)
status = Path("/proc/self/status").read_text()
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""
LIBRARIES_MIB = 400
"""Memory of a process that has imported FFmpeg, decord, Pillow and numpy, generously."""


def decoded_with_peak(path: Path) -> tuple[str, int]:
    """What decoding in a process of its own gives, and the most memory that the process ever had, in MiB."""
    command = [sys.executable, "-c", DECODE, str(path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=patience(200.0), check=True)
    *said, peak = done.stdout.splitlines()
    return "\n".join(said), int(peak)


def plain_video(path: Path, *, height: int, width: int, num_frames: int, pixels: str = "yuv420p") -> Path:
    frames = np.broadcast_to(np.uint8(90), (num_frames, height, width, 3))
    options = {"preset": "ultrafast", "crf": "45"}
    return write_video(path, frames, Encoding(options=options, pixels=pixels, fps=4))


@pytest.mark.stack
def test_a_small_file_of_huge_frames_is_refused_before_one_is_decoded(tmp_path: Path) -> None:
    path = plain_video(tmp_path / "a.mp4", height=8192, width=8192, num_frames=2)
    assert path.stat().st_size < 200_000
    said, peak_mib = decoded_with_peak(path)
    assert f"too_large: 8192 x 8192 pixels of 12 bits, above the limit of {MAX_PIXELS} pixels of 24 bits" in said
    assert peak_mib < LIBRARIES_MIB


@pytest.mark.stack
@pytest.mark.slow
def test_decoding_8k_takes_its_reference_frames_and_a_few_of_rgb(tmp_path: Path) -> None:
    path = plain_video(tmp_path / "a.mp4", height=4320, width=7680, num_frames=8)
    assert reads_fast(path) == "frames above 4K"
    said, peak_mib = decoded_with_peak(path)
    assert said == "(4, 84, 140, 3)"
    # seventeen frames of 1.5 bytes a pixel, and four of RGB: decoded, converted, and their copies
    assert peak_mib < LIBRARIES_MIB + (17 * 1.5 + 4 * 3) * 4320 * 7680 / 2**20


def test_deep_pixels_count_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlsys.data.video.readers.av_reader.MAX_FRAME_BYTES", 48 * 64 * 3)
    plain = plain_video(tmp_path / "a.mp4", height=48, width=64, num_frames=8)
    assert decode(make_spec(plain)).frames.shape[0] == 4
    deep = plain_video(tmp_path / "b.mkv", height=48, width=64, num_frames=8, pixels="yuv444p10le")
    with pytest.raises(ClipError, match="too_large: 64 x 48 pixels of 48 bits") as raised:
        decode(make_spec(deep))
    assert raised.value.kind == "too_large"
    with pytest.raises(ClipError, match="too_large"):
        plan_grid(make_spec(deep))


@pytest.mark.stack
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_a_folder_of_large_pictures_is_scaled_one_picture_at_a_time(mode: str, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    side = 8000
    Image.new(mode, (side, side), {"RGB": (9, 9, 9), "RGBA": (9, 9, 9, 100), "I;16": 3000}[mode]).save(
        folder / "0.png", compress_level=1
    )
    for index in range(1, 20):
        (folder / f"{index}.png").hardlink_to(folder / "0.png")
    said, peak_mib = decoded_with_peak(folder)
    assert said == "(4, 112, 112, 3)"
    # one picture as stored (4 bytes a pixel at most), as RGB twice, and bands
    assert peak_mib < LIBRARIES_MIB + (4 + 3 + 3) * side * side / 2**20


@pytest.mark.parametrize("side", [9_000, 16_384])
def test_pictures_above_the_limit_are_refused_by_their_header(side: int, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("1", (side, side)).save(folder / "0.png")
    (folder / "1.png").hardlink_to(folder / "0.png")
    for spec in (ImageSpec(uri=str(folder / "0.png"), min_pixels=784, max_pixels=7840), make_spec(folder)):
        with pytest.raises(ClipError) as raised:
            decode(spec)
        assert raised.value.kind == "too_large"
        assert raised.value.uri == str(folder / "0.png")


def test_a_folder_has_a_bounded_number_of_pictures_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(4):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{index}.bmp")
    assert decode(make_spec(tmp_path)).frames.shape[0] == 4
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ClipError, match=r"0\.bmp: too_large: \d+ bytes, above the limit of 1000"):
        decode(make_spec(tmp_path))
    monkeypatch.setattr(images, "MAX_FILES", 3)
    with pytest.raises(ClipError, match="too_large: more than 3 images in one folder"):
        decode(make_spec(tmp_path))


def test_an_animation_has_a_bounded_number_of_pixels_in_all_its_frames(tmp_path: Path) -> None:
    # frames of one pixel each, drawn on a canvas of 63 million
    frame = b"\x21\xf9\x04\x00\x04\x00\x00\x00\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    head = b"GIF89a" + struct.pack("<HHBBB", 8000, 7900, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    path = tmp_path / "a.mp4"
    path.write_bytes(head + 3000 * frame + b"\x3b")
    for read in (lambda: decode(make_spec(path)), lambda: plan_grid(make_spec(path)), lambda: shape_of(path)):
        with pytest.raises(ClipError, match="too_large: 3000 frames of 8000 x 7900 pixels, together above the limit"):
            read()


def test_a_header_that_says_more_frames_than_there_are_ends_no_process(tmp_path: Path) -> None:
    path = plain_video(tmp_path / "a.mp4", height=48, width=64, num_frames=8)
    whole = decode(make_spec(path)).frames
    data = bytearray(path.read_bytes())
    table = data.index(b"stts")
    data[table + 12 : table + 16] = struct.pack(">I", 2**31 - 1)  # decord takes memory for as many, and aborts
    path.write_bytes(data)
    assert reads_fast(path) == "fewer frames than its header says"
    assert np.abs(decode(make_spec(path)).frames.astype(int) - whole).max() < 10
    assert plan_grid(make_spec(path))[0] == 2


CHANGING = {
    "h264 in mkv": ("libx264", "matroska", {"bf": "0", "preset": "ultrafast", "x264-params": "repeat-headers=1"}),
    "h264 in mp4": ("libx264", "mp4", {"bf": "0", "preset": "ultrafast", "x264-params": "repeat-headers=1"}),
    "h264 in ts": ("libx264", "mpegts", {"bf": "0", "preset": "ultrafast"}),
    "vp8": ("libvpx", "webm", {"deadline": "realtime", "cpu-used": "8"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8"}),
    "mjpeg in mov": ("mjpeg", "mov", {}),
    "mjpeg in avi": ("mjpeg", "avi", {}),
}


def changing_video(path: Path, codec: str, format: str, options: dict[str, str], middle: tuple[int, int]) -> Path:
    """Write 40 numbered frames of 64 x 48, of which the one in the middle has another (width, height)."""
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for first, last, (width, height) in ((0, 20, (64, 48)), (20, 21, middle), (21, 40, (64, 48))):
            encoder = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, pixels
            encoder.time_base, encoder.framerate, encoder.options = Fraction(1, 10), Fraction(10), options
            frames = [
                av.VideoFrame.from_ndarray(numbered_frame(number, (height, width)), format="rgb24")
                for number in range(first, last)
            ]
            for number, frame in enumerate(frames, start=first):
                frame = frame.reformat(format=pixels)
                frame.pts, frame.time_base = number, Fraction(1, 10)
                frames[number - first] = frame
            for packet in [*(one for frame in frames for one in encoder.encode(frame)), *encoder.encode(None)]:
                packet.stream = stream
                container.mux(packet)
    return path


@pytest.mark.parametrize("kind", CHANGING)
def test_pictures_that_become_too_large_amid_a_stream_are_refused_before_they_are_decoded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = changing_video(tmp_path / "a.mkv", *CHANGING[kind], middle=(640, 480))
    whole = decode(make_spec(path, fps=10.0, max_frames=40))
    assert [abs(a - b) for a, b in zip(frames_shown(whole.frames), range(40), strict=False)] == [0] * 40
    assert reads_fast(path), "decord scales pictures, of any size, to the first one"
    monkeypatch.setattr("rlsys.data.video.readers.av_reader.MAX_PIXELS", 320 * 240)
    with pytest.raises(ClipError, match="decoding failed: .* or one of over 76800 pixels"):
        decode(make_spec(path, fps=10.0, max_frames=40))


def test_a_folder_with_links_in_a_circle_or_to_nothing_is_a_bad_clip(tmp_path: Path) -> None:
    for name, target in (("circle", "1.png"), ("nothing", "there is none")):
        folder = tmp_path / name
        folder.mkdir()
        Image.new("RGB", (64, 48)).save(folder / "0.png")
        (folder / "1.png").symlink_to(target)
        for read in (decode, plan_grid):
            with pytest.raises(ClipError) as raised:
                read(make_spec(folder))
            assert raised.value.kind == "unreadable"
    (tmp_path / "circle.mp4").symlink_to("circle.mp4")
    with pytest.raises(ClipError, match="unreadable"):
        shape_of(tmp_path / "circle.mp4")


def test_the_size_of_a_picture_is_looked_up_in_any_file_and_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.png")
    text = b"Comment\0\0" + zlib.compress(bytes(80 << 20))
    bomb = io.BytesIO()
    Image.new("L", (64, 48)).save(bomb, "PNG")
    head, tail = bomb.getvalue()[:33], bomb.getvalue()[33:]  # behind the header
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    (tmp_path / "1.png").write_bytes(head + chunk + tail)
    (tmp_path / "2.ppm").write_bytes(b"P5 " + b"9" * 1000 + b" 1 255\n")
    assert [picture_size(tmp_path / name) for name in ("0.png", "1.png", "2.ppm")] == [None, None, None]
    Image.new("RGB", (64, 48)).save(tmp_path / "3.png")
    assert picture_size(tmp_path) == (64.0, 48.0)


def noise(mode: str) -> Image.Image:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (31, 40), np.uint16))
    if mode == "I":
        return Image.fromarray(rng.integers(0, 1 << 20, (31, 40), np.int32))
    if mode == "F":
        return Image.fromarray(rng.normal(size=(31, 40)).astype(np.float32))
    if mode == "P":
        return Image.fromarray(rng.integers(0, 256, (31, 40, 3), np.uint8)).quantize(16)
    depth = len(Image.new(mode, (1, 1)).getbands())
    values = rng.integers(0, 256, (31, 40, depth), np.uint8)
    return Image.fromarray(values[..., 0] if depth == 1 else values, mode)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "P", "I;16", "I", "F"])
def test_bands_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.asarray(pixels.flattened(noise(mode)))
    monkeypatch.setattr(pixels, "PIXELS_AT_ONCE", 120)
    assert list(pixels.row_bands(31, 40)) == [(top, min(top + 3, 31)) for top in range(0, 31, 3)]
    assert np.array_equal(np.asarray(pixels.flattened(noise(mode))), whole)
    assert whole.std() > 10

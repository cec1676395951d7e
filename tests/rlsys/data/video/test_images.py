"""Images as a person sees them: transparency on white, deep greys and palettes with their content, upright."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlsys.data.video.decode import decode
from rlsys.data.video.errors import ClipError
from rlsys.data.video.images import files_of_folder
from rlsys.types import ImageSpec
from tests.support.video_files import frames_shown, make_spec, numbered_frame, shared_data

SIDE = 112
INNER = (slice(30, 82), slice(30, 82))
"""Where the drawing is, one patch inside."""


def shown(path: Path) -> np.ndarray:
    """The decoded picture, u8 [H, W, 3]."""
    return decode(ImageSpec(uri=str(path), min_pixels=784, max_pixels=SIDE * SIDE)).frames[0]


def drawing(ground: tuple[int, ...], pen: tuple[int, ...]) -> np.ndarray:
    """A square drawn on an empty ground, u8 [H, W, channels]."""
    picture = np.tile(np.array(ground, np.uint8), (SIDE, SIDE, 1))
    picture[28:84, 28:84] = pen
    return picture


def assert_black_on_white(picture: np.ndarray) -> None:
    assert picture[INNER].max() < 10
    assert picture[:20].min() > 245


def save_transparent(kind: str, folder: Path) -> Path:
    path = folder / ("a.webp" if kind == "webp" else "a.gif" if kind == "gif" else "a.png")
    rgba = Image.fromarray(drawing((0, 0, 0, 0), (0, 0, 0, 255)))
    if kind == "LA":
        rgba = rgba.convert("LA")
    if kind in ("palette", "gif"):
        indices = Image.fromarray(drawing((0,), (1,))[:, :, 0], mode="P")
        indices.putpalette([0, 0, 0, 0, 0, 0])
        indices.save(path, transparency=0)
    elif kind == "palette with alpha":
        indices = Image.fromarray(drawing((0,), (1,))[:, :, 0], mode="P")
        indices.putpalette([0, 0, 0, 0, 0, 0])
        indices.save(path, transparency=bytes([0, 255]))
    elif kind == "colour key":
        Image.fromarray(drawing((255, 0, 255), (0, 0, 0))).save(path, transparency=(255, 0, 255))
    elif kind == "webp":
        rgba.save(path, lossless=True)
    else:
        rgba.save(path)
    return path


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "palette with alpha", "colour key", "gif", "webp"])
def test_transparency_is_laid_on_white(tmp_path: Path, kind: str) -> None:
    assert_black_on_white(shown(save_transparent(kind, tmp_path)))


def test_half_transparent_red_on_white_is_pink(tmp_path: Path) -> None:
    Image.fromarray(drawing((0, 0, 0, 0), (255, 0, 0, 128))).save(tmp_path / "a.png")
    assert np.abs(shown(tmp_path / "a.png")[INNER].astype(int) - [255, 127, 127]).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
def test_deep_greys_keep_their_content(tmp_path: Path, suffix: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, SIDE).astype(np.uint16), (SIDE, 1))
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    picture = shown(tmp_path / f"a.{suffix}")
    assert np.abs(picture[:, :, 0].astype(float) - ramp / 257).max() <= 1.5
    assert np.array_equal(picture[:, :, 0], picture[:, :, 2])


def test_floating_point_greys_fill_the_range(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.linspace(-3.0, 5.0, SIDE, dtype=np.float32), (SIDE, 1))).save(tmp_path / "a.tif")
    picture = shown(tmp_path / "a.tif")
    assert picture[:, 0].max() <= 1 and picture[:, -1].min() >= 254
    assert 125 <= picture[:, SIDE // 2].mean() <= 131


def test_palettes_keep_their_colours(tmp_path: Path) -> None:
    indices = Image.fromarray(drawing((3,), (1,))[:, :, 0], mode="P")
    indices.putpalette([0, 0, 0, 10, 200, 30, 9, 9, 9, 240, 5, 60])
    indices.save(tmp_path / "a.png")
    picture = shown(tmp_path / "a.png")
    assert picture[56, 56].tolist() == [10, 200, 30] and picture[4, 4].tolist() == [240, 5, 60]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The corner that a viewer shows at the upper left is bright, whatever way the camera was held."""
    upright = np.zeros((56, SIDE), np.uint8)
    upright[:28, :28] = 255
    # the stored array is the one that the orientation's turn makes upright
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(tmp_path / f"a.{suffix}", exif=exif)
    picture = shown(tmp_path / f"a.{suffix}")
    assert picture.shape[:2] == (56, SIDE)
    assert picture[4:24, 4:24].min() > 230 and picture[4:24, 34:].max() < 25 and picture[34:].max() < 25


def test_one_bit_and_cmyk_images_are_read(tmp_path: Path) -> None:
    black = Image.fromarray(drawing((255,), (0,))[:, :, 0])
    black.convert("1").save(tmp_path / "a.png")
    black.convert("CMYK").save(tmp_path / "b.jpg", quality=95)
    for name in ("a.png", "b.jpg"):
        picture = shown(tmp_path / name)
        assert picture[INNER].max() < 25 and picture[:20].min() > 230


@pytest.mark.parametrize("pattern", ["{}.png", "frame_{}.png", "{:02d}.png", "v2_f{}_end.png"])
def test_numbers_in_names_are_ordered_as_numbers(tmp_path: Path, pattern: str) -> None:
    for index in range(12):
        Image.fromarray(np.full((56, 56, 3), 20 * index, np.uint8)).save(tmp_path / pattern.format(index))
    assert [path.name for path in files_of_folder(tmp_path)] == [pattern.format(index) for index in range(12)]
    clip = decode(make_spec(tmp_path, fps=10.0, min_frames=12, max_frames=12))
    assert clip.frames.mean(axis=(1, 2, 3)).tolist() == [20 * index for index in range(12)]


@pytest.mark.parametrize(
    "names",
    [
        ["0.0.png", "0.25.png", "0.5.png", "1.0.png", "2.75.png", "10.0.png"],
        ["0.png", "0.25.png", "0.5.png", "1.png", "10.png"],
        ["t_0.5s.png", "t_1.25s.png", "t_1.5s.png"],
        ["1.1.png", "1.2.png", "1.9.png", "1.10.png", "2.1.png"],  # scene and frame
        ["v1.5_1.png", "v1.5_2.png", "v1.5_10.png"],
        [f"{10**20 + index}.png" for index in range(9)],
    ],
)
def test_times_in_names_are_ordered_as_decimals_and_counters_as_integers(tmp_path: Path, names: list[str]) -> None:
    for name in sorted(names):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in files_of_folder(tmp_path)] == names


def test_hidden_files_and_folders_among_frames_are_no_frames(tmp_path: Path) -> None:
    for index in range(4):
        Image.fromarray(np.full((56, 56, 3), 20 * index, np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "._1.png").write_bytes(b"\0\5\x16\7what macOS puts beside a file")
    (tmp_path / ".thumbnail.jpg").write_bytes(b"")
    (tmp_path / "more.png").mkdir()
    assert [path.name for path in files_of_folder(tmp_path)] == ["0.png", "1.png", "2.png", "3.png"]
    assert decode(make_spec(tmp_path)).frames.shape[0] == 4


def test_the_transparent_value_of_a_deep_grey_is_white(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, SIDE).astype(np.uint16), (SIDE, 1))
    ramp[:28] = 12345
    png = io.BytesIO()
    Image.fromarray(ramp).save(png, "PNG")
    # Pillow does not write the chunk that names the value: it follows the header's chunk
    key = struct.pack(">4sH", b"tRNS", 12345)
    chunk = struct.pack(">I", 2) + key + struct.pack(">I", zlib.crc32(key))
    data = png.getvalue()
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    picture = shown(tmp_path / "a.png")
    assert picture[:20].min() > 245 and picture[60, 2].max() < 10 and 120 < picture[60, 56].mean() < 135


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_leave_the_others_their_range(tmp_path: Path, value: float) -> None:
    grey = np.tile(np.linspace(-1.0, 3.0, SIDE, dtype=np.float32), (SIDE, 1))
    grey[:28] = value
    Image.fromarray(grey).save(tmp_path / "a.tif")
    picture = shown(tmp_path / "a.tif")
    assert picture[:20].max() < 10 and picture[60, 2].max() < 10 and picture[60, -2].min() > 245


DURATIONS_MS = (100, 50, 300, 20, 1000, 70, 100, 250)
ANIMATIONS = {"a.gif": {}, "a.webp": {"lossless": True}, "a.png": {}, "gif.mp4": {}, "webp.avi": {}, "png": {}}


@pytest.mark.parametrize("name", ANIMATIONS)
def test_an_animation_shows_its_frames_for_their_own_durations_whatever_its_name_is(tmp_path: Path, name: str) -> None:
    kind = next(kind for kind in ("gif", "webp", "png") if kind in name)
    first, *others = (Image.fromarray(numbered_frame(index)) for index in range(len(DURATIONS_MS)))
    more = {"save_all": True, "append_images": others, "duration": list(DURATIONS_MS), **ANIMATIONS[name]}
    first.save(tmp_path / name, kind, **more)
    clip = decode(make_spec(tmp_path / name, fps=1000.0))
    starts_s = np.cumsum([0, *DURATIONS_MS[:-1]]) / 1000
    numbers = frames_shown(clip.frames)
    assert clip.info.times_s.tolist() == pytest.approx(starts_s[numbers])
    assert clip.info.duration_s == pytest.approx(sum(DURATIONS_MS) / 1000)


@pytest.mark.parametrize("duration_ms", [0, 10])
def test_a_frame_of_a_hundredth_of_a_second_is_shown_for_a_tenth_as_browsers_do(
    tmp_path: Path, duration_ms: int
) -> None:
    first, *others = (Image.fromarray(numbered_frame(index)) for index in range(8))
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=duration_ms)
    assert decode(make_spec(tmp_path / "a.gif")).info.duration_s == pytest.approx(0.8)


def test_the_picture_for_viewers_of_still_images_is_no_frame_of_an_animation(tmp_path: Path) -> None:
    first, *others = (Image.fromarray(numbered_frame(index)) for index in (200, *range(8)))
    first.save(tmp_path / "a.png", save_all=True, append_images=others, duration=100, default_image=True)
    clip = decode(make_spec(tmp_path / "a.png", fps=10.0))
    assert frames_shown(clip.frames) == list(range(8))
    assert clip.info.times_s.tolist() == pytest.approx(np.arange(8) / 10)


@pytest.mark.parametrize("name", ["rgba.png", "la.png", "p.png"])
def test_the_reported_drawings_are_black_on_white(name: str) -> None:
    path = shared_data("cases", "images", name)
    with Image.open(path) as image:
        is_drawn = np.asarray(image.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.NEAREST))[:, :, 3] > 0
    picture = shown(path)
    assert picture[0, 0].min() == 255  # transparent in all three
    assert picture[is_drawn].mean() < 40 and picture[~is_drawn].mean() > 215  # resizing blurs the edges


def test_the_reported_deep_grey_is_a_ramp() -> None:
    picture = shown(shared_data("cases", "images", "g16.png"))
    assert picture.min() <= 3 and picture.max() >= 252
    assert 125 <= picture.mean() <= 130


def test_the_reported_folder_is_in_the_order_of_its_numbers() -> None:
    folder = shared_data("cases", "images", "unpadded")
    assert [path.name for path in files_of_folder(folder)] == [f"{index}.jpg" for index in range(24)]
    clip = decode(make_spec(folder, fps=10.0, min_frames=24, max_frames=24))
    brightness = clip.frames.mean(axis=(1, 2, 3))
    assert len(brightness) == 24 and brightness[0] == pytest.approx(20, abs=2)
    assert brightness[23] == pytest.approx(73.75, abs=2)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "JPEG", "BMP", "PPM"])
def test_a_damaged_header_is_a_bad_clip_and_no_other_error(format: str, tmp_path: Path) -> None:
    file, rng = io.BytesIO(), np.random.default_rng(5)
    first, *others = (Image.fromarray(numbered_frame(index)) for index in range(5))
    more = {"save_all": True, "append_images": others, "duration": 100} if format in ("GIF", "PNG", "WEBP") else {}
    first.save(file, format, **more)
    path = tmp_path / "a.mp4"
    for _ in range(150):
        data = bytearray(file.getvalue())
        for at in rng.integers(0, min(len(data), 400), int(rng.integers(1, 5))):
            data[at] = rng.integers(0, 256)
        path.write_bytes(data)
        for spec in (make_spec(path), ImageSpec(uri=str(path), min_pixels=784, max_pixels=7840)):
            with contextlib.suppress(ClipError):
                decode(spec)


def test_a_part_beyond_all_numbers_is_a_bad_clip(tmp_path: Path) -> None:
    file = io.BytesIO()
    first, *others = (Image.fromarray(numbered_frame(index)) for index in range(3))
    first.save(file, "PNG", save_all=True, append_images=others, duration=100)
    data = bytearray(file.getvalue())
    second = data.index(b"fcTL", data.index(b"IDAT")) + 4
    data[second + 12 : second + 16] = b"\xff\xff\xff\xf0"  # its left edge
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ClipError) as raised:
        decode(make_spec(tmp_path / "a.png"))
    assert raised.value.kind == "corrupt"

"""Animations against a composition in numpy of the formats' own rules, with files written byte by byte."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlsys.data.video import images
from rlsys.data.video.decode import decode
from rlsys.data.video.errors import ClipError
from tests.support.image_files import Picture, apng, gif, on_white
from tests.support.video_files import make_spec, numbered_frame

SIZE = HEIGHT, WIDTH = 32, 40
PALETTE = np.random.default_rng(0).integers(0, 256, (32, 3), np.uint8)
KEPT, CLEARED, RESTORED = "kept", "cleared", "restored"
DISPOSALS = {"gif": {0: KEPT, 1: KEPT, 2: CLEARED, 3: RESTORED}, "png": {0: KEPT, 1: CLEARED, 2: RESTORED}}


def seen(kind: str, pictures: Sequence[Picture]) -> list[np.ndarray]:
    """What a viewer shows with each picture before white, f64 [H, W, 3] each."""
    canvas, shown = np.zeros((*SIZE, 4)), []
    for one in pictures:
        before = canvas.copy()
        height, width = one.values.shape[:2]
        place = canvas[one.top : one.top + height, one.left : one.left + width]
        place[:] = over(place, layer_of(one)) if one.is_blended else layer_of(one)
        shown.append(on_white(canvas[..., :3], canvas[..., 3]))
        match DISPOSALS[kind][one.disposal]:
            case "cleared":
                place[:] = 0
            case "restored":
                canvas = before
    return shown


def layer_of(picture: Picture) -> np.ndarray:
    values = picture.values
    if values.ndim == 2:
        colours = (PALETTE if picture.palette is None else picture.palette)[values]
        alpha = np.where(values == picture.transparent, 0, 255) if picture.transparent is not None else values * 0 + 255
        return np.concatenate([colours, alpha[..., None]], -1).astype(float)
    opaque = np.full((*values.shape[:2], 1), 255)
    return np.concatenate([values, opaque], -1).astype(float) if values.shape[2] == 3 else values.astype(float)


def over(under: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Porter and Duff's operator "over", for colours that are not multiplied by their alpha."""
    a, b = top[..., 3:] / 255, under[..., 3:] / 255
    alpha = a + b * (1 - a)
    colours = (top[..., :3] * a + under[..., :3] * b * (1 - a)) / np.maximum(alpha, 1e-9)
    return np.concatenate([colours, alpha * 255], -1)


def pictures_of(kind: str, seed: int) -> list[Picture]:
    rng = np.random.default_rng(seed)
    channels = int(rng.integers(3, 5))
    found = []
    for index in range(6):
        height, width = SIZE if index == 0 else (int(rng.integers(1, HEIGHT + 1)), int(rng.integers(1, WIDTH + 1)))
        place = {"left": int(rng.integers(0, WIDTH - width + 1)), "top": int(rng.integers(0, HEIGHT - height + 1))}
        if kind == "gif":
            values = rng.integers(0, 32, (height, width))
            own = rng.integers(0, 256, (32, 3), np.uint8) if rng.random() < 0.3 else None
            transparent = 5 if rng.random() < 0.8 else None
            values[rng.random(values.shape) < 0.3] = 5
            found.append(
                Picture(**place, values=values, disposal=int(rng.integers(0, 4)), transparent=transparent, palette=own)
            )
        else:
            values = rng.integers(0, 256, (height, width, channels), np.uint8)
            if channels == 4:
                values[..., 3] = rng.choice([0, 128, 255], (height, width))
            # restoring what was there before the first picture means clearing: the format says so
            disposal = int(rng.integers(0, 3 if index else 2))
            found.append(Picture(**place, values=values, disposal=disposal, is_blended=bool(rng.integers(0, 2))))
    return found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["gif", "png"])
def test_pictures_are_laid_over_each_other_as_the_format_says(kind: str, seed: int, tmp_path: Path) -> None:
    pictures = pictures_of(kind, seed)
    path = tmp_path / "a.mp4"
    path.write_bytes(gif(SIZE, pictures, PALETTE, background=seed) if kind == "gif" else apng(SIZE, pictures))
    truth = seen(kind, pictures)
    times_s, end_s = images.animation_times(path)
    assert times_s.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]) and end_s == pytest.approx(0.6)
    for indices in (range(6), range(1, 6, 2), (4, 4, 5)):
        frames = list(images.animation_frames(path, list(indices)))
        assert len(frames) == len(indices)
        for index, frame in zip(indices, frames, strict=True):
            # up to three half-transparent layers, each rounded, whose colours are divided by their alpha
            assert np.abs(frame - truth[index]).max() <= 2


def test_a_first_picture_that_is_restored_leaves_nothing(tmp_path: Path) -> None:
    first = Picture(0, 0, np.full((*SIZE, 4), 255, np.uint8) * [1, 0, 0, 1], disposal=2)
    second = Picture(8, 8, np.full((4, 4, 4), (0, 0, 255, 255), np.uint8), disposal=0)
    first = first._replace(values=first.values.astype(np.uint8))
    (tmp_path / "a.png").write_bytes(apng(SIZE, [first, second]))
    red, blue = images.animation_frames(tmp_path / "a.png", [0, 1])
    assert red[20, 20].tolist() == [255, 0, 0]
    assert blue[20, 20].tolist() == [255, 255, 255] and blue[9, 9].tolist() == [0, 0, 255]


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animations_are_shown_upright(format: str, orientation: int, tmp_path: Path) -> None:
    upright = [numbered_frame(number) for number in (3, 200, 17)]
    stored = [np.ascontiguousarray(np.rot90(frame, {6: 1, 3: 2}[orientation])) for frame in upright]
    exif = Image.Exif()
    exif[0x0112] = orientation
    first, *others = map(Image.fromarray, stored)
    options = {"lossless": True} if format == "WEBP" else {}
    first.save(tmp_path / "a.png", format, save_all=True, append_images=others, exif=exif, duration=100, **options)
    frames = list(images.animation_frames(tmp_path / "a.png", [0, 1, 2]))
    assert all(np.array_equal(found, frame) for found, frame in zip(frames, upright, strict=True))


@pytest.mark.parametrize("format", ["GIF", "PNG"])
def test_an_animation_that_breaks_off_is_refused_or_shows_what_is_there(format: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    first, *others = (Image.fromarray(numbered_frame(number)) for number in range(12))
    first.save(file, format, save_all=True, append_images=others, duration=100)
    data, whole = file.getvalue(), decode_bytes(tmp_path, file.getvalue())
    for tenth in range(1, 10):
        try:
            shown = decode_bytes(tmp_path, data[: len(data) * tenth // 10])
        except ClipError as error:
            assert error.kind in ("truncated", "corrupt", "zero_length")
        else:
            assert np.array_equal(shown, whole[: len(shown)])


def decode_bytes(folder: Path, data: bytes) -> np.ndarray:
    (folder / "a.mp4").write_bytes(data)
    return decode(make_spec(folder / "a.mp4", fps=10.0)).frames

"""Pixels against values worked out from the formats' own definitions, with files written byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from rlsys.data.annotations.media import picture_size
from rlsys.data.video.decode import decode
from rlsys.data.video.errors import ClipError
from rlsys.data.video.images import open_image
from rlsys.types import ImageSpec
from tests.support.image_files import FLOAT, HEIGHT, SIGNED, WIDTH, chunk, on_white, png, ramps, tiff

GREY, DEEP = ramps(1)[..., 0], ramps(1, 65535, np.uint16)[..., 0]
RGB, RGBA = ramps(3), ramps(4)
DEEP_RGB, DEEP_RGBA = ramps(3, 65535, np.uint16), ramps(4, 65535, np.uint16)
STEPS = (np.arange(WIDTH)[None] + np.arange(HEIGHT)[:, None]) % 16


def pixels(folder: Path, data: bytes) -> np.ndarray:
    """The picture of a file, whose name says nothing of its kind, f64 [H, W, 3]."""
    (folder / "a.jpg").write_bytes(data)
    return np.asarray(open_image(folder / "a.jpg"), np.float64)


def refusal(folder: Path, data: bytes) -> ClipError:
    (folder / "a.jpg").write_bytes(data)
    with pytest.raises(ClipError) as raised:
        decode(ImageSpec(uri=str(folder / "a.jpg"), min_pixels=784, max_pixels=7840))
    return raised.value


def assert_shows(found: np.ndarray, truth: np.ndarray, within: float) -> None:
    expected = truth if truth.ndim == 3 else np.repeat(truth[..., None], 3, axis=2)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= within


def keyed(values: np.ndarray, key: int, top: int) -> np.ndarray:
    return np.where(values == key, 255.0, values * 255.0 / top)


def key(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


PNGS = {
    "16-bit grey": (png(DEEP, 0, 16), DEEP / 257),
    "16-bit RGB": (png(DEEP_RGB, 2, 16), DEEP_RGB / 257),
    "16-bit RGBA": (png(DEEP_RGBA, 6, 16), on_white(DEEP_RGBA[..., :3], DEEP_RGBA[..., 3], 65535)),
    "8-bit RGB with a transparent colour": (
        png(np.where(STEPS[..., None] == 3, [1, 2, 3], RGB), 2, 8, key(1, 2, 3)),
        np.where(STEPS[..., None] == 3, 255, RGB),
    ),
    **{
        f"{depth}-bit grey whose value {value} is transparent": (
            png(STEPS % 2**depth, 0, depth, key(value)),
            keyed(STEPS % 2**depth, value, 2**depth - 1),
        )
        for depth, value in ((1, 0), (1, 1), (2, 0), (2, 1), (2, 3), (4, 0), (4, 7), (4, 15))
    },
    **{
        f"palette of {depth} bits of which the first colour is half transparent": (
            png(
                STEPS % 2**depth,
                3,
                depth,
                chunk(b"PLTE", RGB[:16, 9].tobytes()[: 3 << depth]) + chunk(b"tRNS", b"\x80"),
            ),
            on_white(RGB[:16, 9][STEPS % 2**depth], np.where(STEPS % 2**depth == 0, 128, 255)),
        )
        for depth in (1, 2, 4)
    },
}


@pytest.mark.parametrize("kind", PNGS)
def test_png_of_every_depth_keeps_its_content(kind: str, tmp_path: Path) -> None:
    data, truth = PNGS[kind]
    assert_shows(pixels(tmp_path, data), truth, within=2)  # both roundings, of the values and of the blending


def test_a_transparent_colour_that_eight_bits_cannot_tell_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, png(DEEP_RGB, 2, 16, key(0x1234, 0x5678, 0x9ABC)))
    assert error.kind == "corrupt" and "a PNG of 16 bits with one transparent colour" in str(error)


SHARE = ramps(1, 1000, np.int32)[..., 0] / 1000
INK = RGBA.astype(float)
TIFFS = {
    "white is zero, 8 bits": (lambda order: tiff(GREY, 0, order=order), 255.0 - GREY),
    "RGB of 16 bits": (lambda order: tiff(DEEP_RGB, 2, order=order), DEEP_RGB / 257),
    "RGB of 8 bits in planes": (lambda order: tiff(RGB, 2, order=order, is_planar=True), RGB),
    "float": (lambda order: tiff(SHARE.astype(np.float32), 1, FLOAT, order), SHARE * 255),
    "float, white is zero": (lambda order: tiff(SHARE.astype(np.float32), 0, FLOAT, order), 255 - SHARE * 255),
    "signed, 32 bits": (lambda order: tiff((SHARE * 2e6).astype(np.int32) - 10**6, 1, SIGNED, order), SHARE * 255),
    "signed, 16 bits": (lambda order: tiff((SHARE * 6e4 - 3e4).astype(np.int16), 1, SIGNED, order), SHARE * 255),
    "signed, 8 bits": (lambda order: tiff((SHARE * 254 - 127).round().astype(np.int8), 1, SIGNED, order), SHARE * 255),
    "alpha of 16 bits": (
        lambda order: tiff(DEEP_RGBA, 2, order=order, more=[(338, 2)]),
        on_white(DEEP_RGBA[..., :3], DEEP_RGBA[..., 3], 65535),
    ),
    "CMYK": (lambda order: tiff(RGBA, 5, order=order), (255 - INK[..., :3]) * (255 - INK[..., 3:]) / 255),
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_of_every_kind_keeps_its_content(kind: str, order: str, tmp_path: Path) -> None:
    write, truth = TIFFS[kind]
    assert_shows(pixels(tmp_path, write(order)), truth, within=2)


def test_tiff_values_that_little_endian_files_alone_may_have(tmp_path: Path) -> None:
    assert_shows(pixels(tmp_path, tiff(DEEP, 0)), 255 - DEEP / 257, within=1)
    whole = (SHARE * 4294967295).astype(np.uint32)
    assert_shows(pixels(tmp_path, tiff(whole, 1)), SHARE * 255, within=1)
    for data in (tiff(DEEP, 0, order=">"), tiff(whole, 1, order=">"), tiff(SHARE, 1, FLOAT)):
        assert "it is a TIFF whose kind of pixels Pillow does not read" in str(refusal(tmp_path, data))


def test_deep_planes_of_a_tiff_are_refused(tmp_path: Path) -> None:
    for order in "<>":
        error = refusal(tmp_path, tiff(DEEP_RGB, 2, order=order, is_planar=True))
        assert "a TIFF with a plane of more than 8 bits for each colour" in str(error)


@pytest.mark.parametrize(("most", "value"), [(65535, 200), (4095, 10), (1023, 3), (65535, 60000), (300, 299)])
def test_dark_pnm_pictures_stay_dark(most: int, value: int, tmp_path: Path) -> None:
    values = np.where(STEPS < 8, 0, value).astype(np.uint16)
    data = f"P5 {WIDTH} {HEIGHT} {most}\n".encode() + values.astype(">u2").tobytes()
    assert_shows(pixels(tmp_path, data), values.astype(float) * 255 / most, within=1)


def bmp(values: np.ndarray) -> bytes:
    """A BMP with a mask for alpha, of values in the order blue, green, red, alpha."""
    body = np.flipud(values).tobytes()
    header = struct.pack("<IiiHHIIiiII", 108, WIDTH, HEIGHT, 1, 32, 3, len(body), 0, 0, 0, 0)
    header += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    return b"BM" + struct.pack("<IHHI", 122 + len(body), 0, 0, 122) + header + body


def test_a_bmp_whose_fourth_bytes_are_all_empty_is_opaque(tmp_path: Path) -> None:
    blue_first = RGB[..., ::-1]
    empty = np.concatenate([blue_first, np.zeros_like(GREY)[..., None]], -1)
    assert_shows(pixels(tmp_path, bmp(empty)), RGB, within=0)
    seen = np.concatenate([blue_first, GREY[..., None]], -1)
    assert_shows(pixels(tmp_path, bmp(seen)), on_white(RGB, GREY), within=1)


UPRIGHT = np.zeros((56, 84, 3), np.uint8)
UPRIGHT[:28, :28], UPRIGHT[:28, 56:], UPRIGHT[28:, :28] = 255, (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_a_tiff_turn_the_picture_and_its_size(orientation: int, tmp_path: Path) -> None:
    # the rows that are stored become, in TIFF 6.0's words, these sides of the picture
    stored = {
        1: UPRIGHT,
        2: UPRIGHT[:, ::-1],
        3: UPRIGHT[::-1, ::-1],
        4: UPRIGHT[::-1],
        5: UPRIGHT.transpose(1, 0, 2),
        6: np.rot90(UPRIGHT),
        7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(UPRIGHT, -1),
    }[orientation]
    assert_shows(pixels(tmp_path, tiff(stored, 2, more=[(274, orientation)])), UPRIGHT, within=0)
    assert picture_size(tmp_path / "a.jpg") == (84.0, 56.0)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [b"no TIFF at all", b"II*\0\xff\xff\xff\xff", b""])
def test_broken_metadata_do_not_spoil_a_picture(format: str, exif: bytes, tmp_path: Path) -> None:
    file = io.BytesIO()
    lead = b"Exif\0\0" if format == "JPEG" else b""
    Image.fromarray(RGB).save(file, format, exif=lead + exif, lossless=True, quality=98, subsampling=0)
    assert_shows(pixels(tmp_path, file.getvalue()), RGB, within=8 if format == "JPEG" else 0)
    assert picture_size(tmp_path / "a.jpg") == (float(WIDTH), float(HEIGHT))


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RED_IS_GREEN = SRGB.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")
"""A profile in which the first two primaries are exchanged: who applies it sees red as green."""


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("profile", [RED_IS_GREEN, b"no profile"])
def test_a_colour_profile_changes_nothing(format: str, profile: bytes, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, format, icc_profile=profile, **({"lossless": True} if format == "WEBP" else {}))
    assert_shows(pixels(tmp_path, file.getvalue()), RGB, within=0)


def test_cmyk_jpeg_is_read_as_adobe_writes_it(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.merge("CMYK", [Image.fromarray(RGBA[..., index]) for index in range(4)]).save(file, "JPEG", quality=97)
    assert b"Adobe" in file.getvalue()
    truth = (255 - INK[..., :3]) * (255 - INK[..., 3:]) / 255
    assert_shows(pixels(tmp_path, file.getvalue()), truth, within=12)  # of the compression


BOX = b"\0\0\0\x18ftyp"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (BOX + b"heic\0\0\0\0mif1heic" + bytes(99), "it is an HEIC image"),
        (BOX + b"avif\0\0\0\0mif1avif" + bytes(99), "it is an AVIF image"),
        (b"\xff\x0a" + bytes(99), "it is a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "it is a JPEG 2000 image"),
        (b"<!DOCTYPE html><html>404</html>", "it begins with b'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it begins with b'version https://git-lfs"),
        *(
            (png(RGB, 2, 8, chunk(name, start + zlib.compress(bytes(2 << 20)))), "unpack to more than 1 MiB")
            for name, start in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0"))
        ),
    ],
)
def test_what_is_no_image_of_ours_is_named(data: bytes, says: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, data)
    assert says in str(error) and "MAX_TEXT" not in str(error) and str(error).count("\n") == 0


@pytest.mark.parametrize("is_progressive", [False, True])
def test_a_jpeg_that_breaks_off_is_truncated_wherever(is_progressive: bool, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "JPEG", progressive=is_progressive)
    data = file.getvalue()
    assert_shows(pixels(tmp_path, data + b"what an editor adds behind the end"), pixels(tmp_path, data), within=0)
    for tenth in range(1, 10):  # without its header it is no image at all
        assert refusal(tmp_path, data[: len(data) * tenth // 10]).kind in ("corrupt", "truncated")
    assert refusal(tmp_path, data[:-1]).kind == "truncated"

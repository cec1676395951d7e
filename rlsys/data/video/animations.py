"""The frames of animated GIF and PNG files, composed by the rules of the formats.

Pillow composes some of them otherwise: what is restored behind a frame that was cleared, and half-transparent pixels.
Sources: GIF89a specification, 23; PNG specification (third edition), 11.3.4.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from rlsys.data.video.pixels import flattened, with_alpha

_GIF_DISPOSALS: dict[int, Disposal] = {2: "cleared", 3: "restored"}
_PNG_DISPOSALS: dict[int, Disposal] = {1: "cleared", 2: "restored"}
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
_EXTENSION, _CONTROL, _PICTURE = 0x21, 0xF9, 0x2C

Disposal = Literal["kept", "cleared", "restored"]
"""What becomes of the part's rectangle before the next part is drawn."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One picture of an animation, which changes a rectangle of what is shown.

    corner: (left, top) of the rectangle.  duration_s: as the file says.  is_blended: whether what is transparent leaves
    what was there.  file: the picture alone, as a file of the same format.
    """

    corner: tuple[int, int]
    duration_s: float
    disposal: Disposal
    is_blended: bool
    file: bytes


def parts_of(data: bytes) -> list[Part]:
    """Return the parts of a GIF or PNG file. Raises ValueError or struct.error for one that breaks off."""
    return list(_gif_parts(data) if data.startswith(b"GIF8") else _png_parts(data))


def composed(parts: Sequence[Part], size: tuple[int, int], indices: Sequence[int]) -> Iterator[Image.Image]:
    """Yield what is shown with these ascending parts, as RGB on white. size: (width, height)."""
    canvas = Image.new("RGBA", size)
    wanted = iter(indices)
    next_wanted = next(wanted, None)
    for index, part in enumerate(parts):
        if next_wanted is None:
            return
        with Image.open(io.BytesIO(part.file), formats=("GIF", "PNG")) as image:
            picture = with_alpha(image)
        left, top = part.corner
        box = (left, top, left + picture.width, top + picture.height)
        before = canvas.crop(box) if part.disposal == "restored" else None
        if part.is_blended:
            picture = Image.alpha_composite(canvas.crop(box), picture)
        canvas.paste(picture, part.corner)
        while next_wanted == index:
            yield flattened(canvas)
            next_wanted = next(wanted, None)
        if before is not None:
            canvas.paste(before, part.corner)
        elif part.disposal == "cleared":
            canvas.paste((0, 0, 0, 0), box)


def _gif_parts(data: bytes) -> Iterator[Part]:
    flags = data[10:11] or b"\0"
    at = 13 + _table_bytes(flags[0])
    tail_of_head = data[10:at]  # flags, background, aspect and colours
    control = b""
    while at < len(data) and data[at] in (_EXTENSION, _PICTURE):
        if data[at] == _EXTENSION:
            end = _end_of_blocks(data, at + 2)
            if data[at + 1 : at + 2] == bytes((_CONTROL,)):
                control = data[at:end]
        else:
            left, top, width, height, own_flags = struct.unpack_from("<HHHHB", data, at + 1)
            end = _end_of_blocks(data, at + 10 + _table_bytes(own_flags) + 1)
            bits, hundredths = struct.unpack_from("<BH", control, 3) if control else (0, 0)
            picture = struct.pack("<BHHHH", _PICTURE, 0, 0, width, height) + data[at + 9 : end]
            yield Part(
                corner=(left, top),
                duration_s=hundredths / 100,
                disposal=_GIF_DISPOSALS.get(bits >> 2 & 7, "kept"),
                is_blended=True,
                file=b"GIF89a" + struct.pack("<HH", width, height) + tail_of_head + control + picture + b";",
            )
            control = b""
        at = end


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _end_of_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1


def _png_parts(data: bytes) -> Iterator[Part]:
    size_and_kind, shared, control, pixels = b"", b"", b"", b""
    for name, body in _chunks(data):
        if name == b"IHDR":
            size_and_kind = body
        elif name == b"fcTL" or name == b"IEND":
            if control and pixels:
                yield _png_part(size_and_kind, shared, control, pixels)
            control, pixels = body, b""
        elif name in (b"IDAT", b"fdAT"):
            pixels += body if name == b"IDAT" else body[4:]
        elif name != b"acTL" and not pixels:
            shared += _chunk(name, body)


def _png_part(size_and_kind: bytes, shared: bytes, control: bytes, pixels: bytes) -> Part:
    _, _, _, left, top, seconds, of, disposal, blending = struct.unpack(">IIIIIHHBB", control[:26])
    head = _chunk(b"IHDR", control[4:12] + size_and_kind[8:])
    return Part(
        corner=(left, top),
        duration_s=seconds / (of or 100),
        disposal=_PNG_DISPOSALS.get(disposal, "kept"),
        is_blended=blending == 1,
        file=_PNG_HEAD + head + shared + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b""),
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (name, content) of the chunks of a PNG up to the one that ends it. Raises ValueError if there is none."""
    at = len(_PNG_HEAD)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            break
        yield name, data[at + 8 : at + 8 + length]
        if name == b"IEND":
            return
        at += length + 12
    raise ValueError("the PNG is truncated: no chunk says that it ends")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

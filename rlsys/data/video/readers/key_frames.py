"""Tell what decoding from a packet that is flagged as a key frame gives, from the packet's own bits.

Containers flag pictures as key frames that are none (an MP4 file without a table of them flags all), and encoders those
behind which a decoder needs several further ones before its pictures are whole (periodic intra refresh). Source: ITU-T
H.264, 7.3 and annexes B and D; ISO/IEC 14496-15, 5.3; ISO/IEC 14496-2, 6.2.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

_IDR, _SEI, _RECOVERY_POINT = 5, 6, 6
_START = re.compile(rb"\x00\x00\x01")
_MPEG4_PICTURE = re.compile(rb"\x00\x00\x01\xb6([\x40-\xff])?", re.DOTALL)
"""The start of an MPEG-4 picture, and its next byte unless that says that it refers to no other."""


class KeyFrame(Enum):
    """NONE: no key frame.  PARTIAL: flagged as one, but pictures are whole only further behind.  RECOVERY: this picture
    is whole, and frames behind it may refer to earlier ones.  WHOLE: nothing behind it refers to anything before it."""

    NONE = "none"
    PARTIAL = "partial"
    RECOVERY = "recovery"
    WHOLE = "whole"

    @property
    def can_start(self) -> bool:
        """Whether decoding can start here and gives whole pictures at once."""
        return self in (KeyFrame.RECOVERY, KeyFrame.WHOLE)


def length_bytes(extradata: bytes | None) -> int:
    """Return the bytes of the length in front of each unit; 0 if units are divided by start codes."""
    return (extradata[4] & 3) + 1 if extradata and len(extradata) > 4 and extradata[0] == 1 else 0


def key_frame(codec: str, packet: bytes, num_length_bytes: int) -> KeyFrame:
    """Return what a packet is that its container flags as a key frame; of most codecs, what that says."""
    if codec == "mpeg4":
        picture = _MPEG4_PICTURE.search(packet)
        return KeyFrame.NONE if picture and picture[1] else KeyFrame.WHOLE
    if codec != "h264":
        return KeyFrame.WHOLE
    found = KeyFrame.PARTIAL
    for unit in units(packet, num_length_bytes):
        kind = unit[0] & 31 if unit else 0
        if kind == _IDR:
            return KeyFrame.WHOLE
        if kind == _SEI and _recovers_at_once(unit[1:]):
            found = KeyFrame.RECOVERY
    return found


def units(packet: bytes, num_length_bytes: int) -> Iterator[bytes]:
    """Yield the units of a packet; the last one may be incomplete."""
    if not num_length_bytes:
        starts = [match.end() for match in _START.finditer(packet)]
        yield from (packet[a:b] for a, b in zip(starts, [*starts[1:], len(packet)], strict=True))
        return
    at = 0
    while at + num_length_bytes <= len(packet):
        length = int.from_bytes(packet[at : at + num_length_bytes], "big")
        at += num_length_bytes
        yield packet[at : at + length]
        at += length


def _recovers_at_once(messages: bytes) -> bool:
    """Return whether supplemental messages hold a recovery point after which no further frame is needed."""
    at = 0
    while at + 2 < len(messages):
        kind, at = _number(messages, at)
        size, at = _number(messages, at)
        if kind == _RECOVERY_POINT and at < len(messages):
            return bool(messages[at] & 0x80)  # the frame count 0 is written as the bit 1
        at += size
    return False


def _number(messages: bytes, at: int) -> tuple[int, int]:
    """Return a number written as bytes of 255 and one smaller one, and the index behind it."""
    value = 0
    while at < len(messages) and messages[at] == 255:
        value, at = value + 255, at + 1
    return value + (messages[at] if at < len(messages) else 0), at + 1

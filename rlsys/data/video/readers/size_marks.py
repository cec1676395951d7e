"""Notice that a stream changes the size of its pictures, from the beginnings of its key frames and without decoding.

Source: ITU-T H.264, 7.3.2.1; RFC 6386, 9.1; VP9 bitstream specification, 6.2; ITU-T T.81, B.2.
"""

from __future__ import annotations

import re

from rlsys.data.video.readers.key_frames import units

HEAD_BYTES = 4096
"""Bytes of a key frame in which its size is looked for."""
_SEQUENCE = 7
_FRAME_HEADER = re.compile(rb"\xff[\xc0-\xc3]..\x08(....)", re.DOTALL)


def size_mark(codec: str, head: bytes, extradata: bytes, num_length_bytes: int) -> bytes:
    """Return bytes of a key frame that differ where its pictures have another size, b"" if none are found.

    head: its first bytes.  extradata: of the stream, whose own parameters are no change.  num_length_bytes: of H.264.
    """
    if codec == "h264":
        found = (unit for unit in units(head, num_length_bytes) if unit and unit[0] & 31 == _SEQUENCE)
        return next((unit for unit in found if unit.rstrip(b"\0") not in extradata), b"")
    if codec == "vp8":
        return head[3:10]
    if codec == "vp9":
        return head[1:8]
    match = _FRAME_HEADER.search(head) if codec == "mjpeg" else None
    return match[1] if match else b""

"""Video files that were opened lately, with the frames that were read of them, so that rounds of a row share them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from rlsys.data.video.content import Signature, signature
from rlsys.data.video.frames import Crop

Read = Callable[[Sequence[int]], Iterable[np.ndarray]]
"""Frames of ascending indices, u8 [H, W, 3]."""
Variant = tuple[int, int, Crop | None]
"""(height, width) after resizing, and the part that is shown."""
MAX_FILES = 8


@dataclass(eq=False)
class OpenedFile:
    """A video file that was opened.

    times_s: f64 [N], presentation times.  end_s: when the last frame ends.  digest: of its bytes.
    shape: (height, width) of a frame, None before one was read.  frames: resized ones by index in the file and variant.
    """

    times_s: np.ndarray
    end_s: float
    read: Read
    digest: str
    shape: tuple[int, int] | None = None
    frames: dict[tuple[int, Variant], np.ndarray] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of the frames."""
        return sum(frame.nbytes for frame in self.frames.values())


class OpenedFiles:
    """The files opened last, at most `MAX_FILES`, with frames of at most `max_bytes`. A changed file is opened anew."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._files: OrderedDict[tuple[str, Signature | None], OpenedFile] = OrderedDict()

    @contextmanager
    def open(self, uri: str, make: Callable[[], OpenedFile]) -> Iterator[OpenedFile]:
        """Return the file, which `make` opens if it is not open. Frames read inside the block are kept behind it."""
        key = uri, signature(uri)
        file = self._files.get(key) or make()
        yield file
        self._files[key] = file
        self._files.move_to_end(key)
        while len(self._files) > MAX_FILES or sum(one.num_bytes for one in self._files.values()) > self._max_bytes:
            self._files.popitem(last=False)

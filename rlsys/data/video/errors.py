"""The errors of clips and annotations, by kind; importable without any decoder."""

from __future__ import annotations

from typing import Literal

from rlsys.errors import RowUnusable, UserError

ClipFault = Literal[
    "missing",
    "unreadable",
    "empty",
    "truncated",
    "corrupt",
    "too_large",
    "zero_length",
    "audio_only",
    "window",
    "timeout",
    "crashed",
]

REMEDIES: dict[ClipFault, str] = {
    "missing": "check `data.videos` and that this node sees the same files as the others",
    "unreadable": "check the permissions of the file and its folder",
    "empty": "download or copy it again",
    "truncated": "download or copy it again",
    "corrupt": "replace it, or encode it again",
    "too_large": "scale it down; no model uses that many pixels",
    "zero_length": "remove its rows; a prompt needs frames",
    "audio_only": "remove its rows, or find the file that has the video stream",
    "window": "use a period inside the clip",
    "timeout": "raise `data.decode_timeout_s`, or encode it smaller",
    "crashed": "replace it; if other clips crash too, give decoding more memory",
}


class ClipError(RowUnusable):
    """A clip that cannot be used.

    uri: the file or folder.  kind: a key of `REMEDIES`.  detail: what was found there.
    It can be pickled, so it can be returned from a Ray task.
    """

    def __init__(self, uri: str, kind: ClipFault, detail: str) -> None:
        super().__init__(uri, kind, detail)
        self.uri, self.kind, self.detail = uri, kind, detail

    def __str__(self) -> str:
        return f"{self.uri}: {self.kind}: {self.detail}; {REMEDIES[self.kind]}."


class AnnotationError(UserError, ValueError):
    """An annotation file that cannot be used; the message names file, row, field, value and remedy."""

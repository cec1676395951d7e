"""What can be wrong with a clip. Apart from the decoder, so that the loop can name it without loading one."""

from __future__ import annotations

from typing import Literal

ClipFault = Literal["missing", "empty", "corrupt", "truncated", "zero_length", "audio_only", "window", "timeout", "crashed"]


class ClipError(Exception):
    """A clip that cannot be used: `uri` names the file, `kind` the fault, `detail` what was seen."""

    def __init__(self, uri: str, kind: ClipFault, detail: str) -> None:
        super().__init__(uri, kind, detail)  # all three, so that it survives pickling
        self.uri, self.kind, self.detail = uri, kind, detail

    def __str__(self) -> str:
        return f"{self.uri}: {self.kind}: {self.detail}"

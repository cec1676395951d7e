"""What a video, a folder of frames or an image is like, from its headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlsys.data.annotations.clues import Size
from rlsys.data.annotations.media import num_images, picture_size
from rlsys.data.video.errors import ClipError


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """length_s: of a video.  size: in pixels, as it is shown.  num_images: of a folder.  None where there is none."""

    length_s: float | None = None
    size: Size | None = None
    num_images: int | None = None


def facts_of(path: Path) -> FileFacts:
    """Return the length and the size of a file or folder. Raises ClipError for one that cannot be opened."""
    from rlsys.data.video import images
    from rlsys.data.video.decode import shape_of

    try:
        if path.is_dir():
            if not (count := num_images(path)):
                raise ClipError(str(path), "zero_length", "the folder has no images")
            return FileFacts(size=picture_size(path), num_images=count)
        if path.suffix.lower() in images.SUFFIXES and not images.is_animation(path):
            size = picture_size(path)
            if size is None:
                raise ClipError(str(path), "unreadable", "not an image")
            return FileFacts(size=size)
        length_s, size = shape_of(path)
    except OSError as error:
        raise ClipError(str(path), "unreadable", str(error)) from error
    return FileFacts(length_s=length_s, size=size or picture_size(path))

"""GOT-10k as published: a folder a sequence, with images, `groundtruth.txt`, `cover.label` and `absence.label`."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rlsys.data.annotations.clues import Size
from rlsys.data.annotations.rows import AnnotationRow, Problem
from rlsys.data.annotations.sets.published import text_of
from rlsys.data.annotations.vtts import with_size
from rlsys.tasks.truths import NUM_TRACKED_FRAMES

TRUTH_FILE = "groundtruth.txt"
_SIZE = re.compile(r"(\d+)\s*[,x]\s*(\d+)")


def read_sequences(path: Path) -> Iterator[AnnotationRow]:
    """Yield a row of tracking for each sequence: `path` is one, a folder of them, or the `list.txt` of such a folder.

    A folder without any is one of parts, such as `train` and `val`, and its sequences are named with their part.
    A row has eight evenly spaced boxes, the first and the last among them, as fractions of the picture, whose size is
    that of `meta_info.ini` or of the images. The label `cover` has the values of `cover.label` at these boxes, 0 where
    the target is not seen. Without that file a target is not seen where `absence.label` says so, or where its box is
    NaN or without an area. The box of an unseen target without an area is that of the frame before, and the
    toolkit's metrics do not read it.
    Raises TypeError when there is no sequence.
    """
    if path.is_file():
        names = text_of(path).split()
        folders = [path.parent / name for name in names]
    elif (path / TRUTH_FILE).is_file():
        folders = [path]
    else:
        folders = sorted(folder.parent for folder in path.glob(f"*/{TRUTH_FILE}"))
        folders = folders or sorted(folder.parent for folder in path.glob(f"*/*/{TRUTH_FILE}"))
    if not folders:
        raise TypeError(f"no sequence is in it: a folder with {TRUTH_FILE}, or several of them, is expected")
    is_of_parts = path.is_dir() and any(folder.parent not in (path, path.parent) for folder in folders)
    for folder in folders:
        yield _row(folder, folder.relative_to(path).as_posix() if is_of_parts else folder.name)


def _row(folder: Path, name: str) -> AnnotationRow:
    meta = _meta(folder)
    start = AnnotationRow(
        label=name,
        video=name,
        medium="frames",
        task="tracking",
        question=meta.get("object_class") or "the object in the box",
    )
    try:
        lines = [line for line in text_of(folder / TRUTH_FILE).split("\n") if line.strip()]
        boxes = np.array([[float(one) for one in re.split(r"[,;\s]+", line.strip(" \t\r,;"))] for line in lines])
        covers = _covers(folder, boxes)
    except (OSError, ValueError) as error:
        return _with(start, Problem(field=TRUTH_FILE, text=f"cannot be read: {error}"))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) < NUM_TRACKED_FRAMES:
        text = f"{len(lines)} lines; at least {NUM_TRACKED_FRAMES} of x, y, width, height are expected"
        return _with(start, Problem(field=TRUTH_FILE, text=text))
    chosen = np.round(np.linspace(0, len(boxes) - 1, NUM_TRACKED_FRAMES)).astype(int)
    labels: dict[str, str | float] = {
        "cover": ",".join(str(covers[index]) for index in chosen),
        "num_frames": float(len(boxes)),
        **{name: meta[name] for name in ("object_class", "motion_class") if name in meta},
    }
    row = AnnotationRow(
        label=start.label,
        video=start.video,
        medium="frames",
        task="tracking",
        question=start.question,
        truth=_corners(boxes, chosen, covers),
        needs_size=True,
        labels=labels,
    )
    size = _size(folder, meta)
    return row if size is None else with_size(row, size)


def _with(row: AnnotationRow, problem: Problem) -> AnnotationRow:
    return AnnotationRow(
        label=row.label,
        video=row.video,
        medium="frames",
        task="tracking",
        question=row.question,
        problems=(problem,),
    )


def _corners(boxes: np.ndarray, chosen: np.ndarray, covers: np.ndarray) -> list[list[float]]:
    """Return the chosen boxes as [x0, y0, x1, y1] in pixels; f64 [N, 4] of x, y, width, height comes in."""
    has_area = _have_area(boxes)
    found = []
    for index in chosen:
        if not has_area[index] and covers[index] <= 0:
            before = np.flatnonzero(has_area[:index])
            index = before[-1] if before.size else index
        x, y, width, height = (float(one) for one in boxes[index])
        found.append([x, y, x + width, y + height])
    return found


def _have_area(boxes: np.ndarray) -> np.ndarray:
    """Return bool [N], whether a box of f64 [N, 4] has an area; [] if they are no boxes."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        return np.empty(0, dtype=bool)
    return np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)


def _covers(folder: Path, boxes: np.ndarray) -> np.ndarray:
    """Return how much of the target is seen in each frame, 0 (nothing) to 8 (all); without any file by its boxes."""
    for name in ("cover.label", "absence.label"):
        if not (folder / name).is_file():
            continue
        values = np.array([int(float(one)) for one in re.split(r"[,;\s]+", text_of(folder / name)) if one])
        if len(values) != len(boxes):
            raise ValueError(f"{name} has {len(values)} lines for {len(boxes)} boxes")
        return values if name == "cover.label" else np.where(values > 0, 0, 8)
    return np.where(_have_area(boxes), 8, 0)


def _meta(folder: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text_of(folder / "meta_info.ini"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}
    return {name: value for section in parser.values() for name, value in section.items()}


def _size(folder: Path, meta: dict[str, str]) -> Size | None:
    match = _SIZE.search(meta.get("resolution", ""))
    return (float(match.group(1)), float(match.group(2))) if match else None

"""Rows of any format as our own JSON lines, and back to files of Charades-STA, NExT-GQA and GoT-10k."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlsys.data.annotations.rows import AnnotationRow
from rlsys.data.annotations.vtts import VttsEntry
from rlsys.data.video.errors import AnnotationError
from rlsys.files import write_output
from rlsys.tasks.truths import NUM_TRACKED_FRAMES
from rlsys.types import Json


def own_row(row: AnnotationRow) -> dict[str, Json]:
    """Return a row that can be read as an object of our own JSON lines, from which the same row is read.

    Its labels, and images beside a video, are fields too, which the format `table` reads and `vtts` does not.
    """
    fields: dict[str, Json] = {
        **_media(row),
        "task": row.task,
        "question": row.question,
        "options": list(row.options),
        **_annotation(row),
        "think": row.thought,
        "duration": row.duration_s,
        "fps": row.fps,
        **row.labels,
    }
    if row.window_s is not None:
        fields["video_start"], fields["video_end"] = row.window_s
    return {name: value for name, value in fields.items() if value not in (None, [], "")}


def _media(row: AnnotationRow) -> dict[str, Json]:
    """Return the fields that name the media of a row."""
    if row.medium == "image":
        return {"image": [row.video, *row.images] if row.images else row.video}
    if row.medium == "list":
        return {"image_list": list(row.frames), "images": list(row.images)}
    return {"video": [row.video, *row.videos] if row.videos else row.video, "images": list(row.images)}


def _annotation(row: AnnotationRow) -> dict[str, Json]:
    """Return the fields that hold the truth of a row."""
    truth, task = row.truth, row.task
    if task == "captioning":
        return dict(truth)
    if task in ("temporal_grounding", "tracking"):
        return {"clue": truth}
    if task in ("multiple_choice", "numeric_qa", "video_quality"):
        return {"answer": truth}
    times = truth.get("glue") or truth.get("period")
    clue = {"temporal": times, "spatial": truth["box"]} if times and "box" in truth else times or truth["box"]
    return {"answer": truth.get("answer"), "clue": clue, "width": truth.get("width"), "height": truth.get("height")}


def write_rows(rows: Sequence[AnnotationRow], format: str, path: Path) -> int:
    """Write the rows that can be read to `path` in `format`, each as its file states it, and return their number.

    format: a key of `WRITERS`; "charades_sta" writes lines of text to a `.txt` file, which need no durations.
    Raises AnnotationError for a row that the format cannot hold, and for another format.
    """
    if format not in WRITERS:
        raise AnnotationError(f"--to {format} is not known; rows are written as {', '.join(WRITERS)}.")
    stated = [row for row in (row.as_published() for row in rows) if not row.problems]
    text = WRITERS[format](stated, path)
    write_output(path, text)
    return len(stated)


def _as_lines(rows: Sequence[AnnotationRow], _path: Path) -> str:
    return "".join(json.dumps(own_row(row), ensure_ascii=False) + "\n" for row in rows)


def _as_charades(rows: Sequence[AnnotationRow], path: Path) -> str:
    _require(rows, "charades_sta", {"temporal_grounding"})
    if path.suffix.lower() == ".txt":
        if spaced := next((row for row in rows if row.video.split() != [row.video]), None):
            raise AnnotationError(
                f"row {spaced.label}: lines of charades_sta end the name of a video at a space, and {spaced.video!r} "
                "has one; name a .json file."
            )
        return "".join(f"{row.video} {row.truth[0]} {row.truth[1]}##{_one_line(row)}\n" for row in rows)
    videos: dict[str, dict[str, Json]] = {}
    for row in rows:
        if row.duration_s is None:
            raise AnnotationError(
                f"row {row.label}: charades_sta in JSON needs the duration of {row.video!r}, which the file does not "
                "give; name a .txt file, or add durations."
            )
        entry = videos.setdefault(row.video, {"duration": row.duration_s, "timestamps": [], "sentences": []})
        entry["timestamps"].append(row.truth)
        entry["sentences"].append(row.question)
    return json.dumps(videos, ensure_ascii=False, indent=1)


def _as_nextgqa(rows: Sequence[AnnotationRow], _path: Path) -> str:
    _require(rows, "nextgqa", {"grounded_qa"})
    entries = []
    for row in rows:
        if row.duration_s is None:
            raise AnnotationError(f"row {row.label}: nextgqa needs the duration of {row.video!r}; add durations.")
        name = {"id": f"{Path(row.video).stem}_{row.labels['qid']}"} if "qid" in row.labels else {}
        kind = {"type": row.labels["question_type"]} if "question_type" in row.labels else {}
        entry = {**name, "video": row.video, "question": row.question, "options": list(row.options)}
        entries.append({**entry, **row.truth, "duration": row.duration_s, **kind})
    return json.dumps(entries, ensure_ascii=False, indent=1)


def _as_got10k(rows: Sequence[AnnotationRow], _path: Path) -> str:
    _require(rows, "got10k", {"tracking"})
    if unsized := next((row for row in rows if row.needs_size), None):
        raise AnnotationError(
            f"row {unsized.label}: got10k needs fractions, and the boxes are pixels of pictures of unknown size."
        )
    if other := next((row for row in rows if len(row.truth) != NUM_TRACKED_FRAMES), None):
        raise AnnotationError(
            f"row {other.label}: got10k holds {NUM_TRACKED_FRAMES} boxes a sequence, and this has {len(other.truth)}."
        )
    return json.dumps([{"path": row.video, "object": row.question, "gt": row.truth} for row in rows], indent=1)


def _require(rows: Sequence[AnnotationRow], format: str, tasks: set[str]) -> None:
    for row in rows:
        if row.task not in tasks or row.window_s is not None or row.images or row.videos or row.frames:
            what = row.task if row.task not in tasks else "a row about a part of a file or with further images"
            raise AnnotationError(
                f"row {row.label}: {format} holds {', '.join(tasks)} of whole videos, this is {what}."
            )


def _one_line(row: AnnotationRow) -> str:
    return " ".join(row.question.split())


WRITERS: Mapping[str, Callable[[Sequence[AnnotationRow], Path], str]] = {
    "vtts": _as_lines,
    "charades_sta": _as_charades,
    "nextgqa": _as_nextgqa,
    "got10k": _as_got10k,
}
"""Format -> its writer: the rows, and the file's path, whose suffix may decide the form."""


def row_schema() -> dict[str, Json]:
    """Return the JSON Schema of one line of our own JSON lines; it allows further fields, which are left alone."""
    span = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    box = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
    spans, boxes = ({"type": "array", "items": one, "minItems": 1} for one in (span, box))
    both = {
        "type": "object",
        "properties": {"temporal": {"anyOf": [span, spans]}, "spatial": {"anyOf": [box, boxes]}},
        "additionalProperties": False,
    }
    schema = VttsEntry.model_json_schema()
    fields = schema["properties"]
    fields["clue"] = {"anyOf": [span, spans, box, boxes, both, {"type": "null"}]}
    fields["options"] = {
        "anyOf": [{"type": "array", "items": {"type": ["string", "number"]}}, {"type": "string"}, {"type": "null"}]
    }
    fields["answer"] = {"type": ["string", "number", "null"]}
    for name, text in _MEANINGS.items():
        fields[name]["description"] = text
    title = "A row of an annotation file in the format vtts"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": title, "description": _ROW}


_ROW = "One line of a JSON lines file. What it is annotated with decides its task. Further fields are left alone."
_MEANINGS: Mapping[str, str] = {
    "video": "Video file or folder of frames, relative to data.videos, or several; a suffix may be left out.",
    "image": "Still image or several, in place of a video.",
    "image_list": "Images, in order, that are the frames of one video, fps a second or all in duration seconds.",
    "question": "Text of the question; a caption needs none.",
    "options": "Options of a multiple-choice question, with or without letters, or the classes of video_quality.",
    "answer": "Letter or text of the right option, a number, or a class in words.",
    "clue": "Evidence: a period [start, end] in seconds or several, a box [x0, y0, x1, y1] or one for each tracked "
    "frame (fractions of width and height if all are within 0..1, else pixels), or both.",
    "caption": "Reference caption.",
    "events": "Events of the caption, for evaluation.",
    "task": "Task of the row; it must agree with the annotations.",
    "think": "Reasoning that leads to the answer, a text, which rlsys sft imitates; no score reads it.",
    "duration": "Length in seconds of what the row is about.",
    "width": "Width in pixels of the picture that boxes in pixels refer to.",
    "height": "Height in pixels of the picture that boxes in pixels refer to.",
    "video_start": "Start in seconds of the part of the file that the row is about.",
    "video_end": "End in seconds of the part of the file that the row is about.",
    "fps": "Images per second of a folder of frames or of image_list.",
}

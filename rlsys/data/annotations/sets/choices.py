"""Multiple-choice and numeric benchmarks as tables: Video-MME, MVBench, Perception Test, VSI-Bench, R4D-Bench, …"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from rlsys.data.annotations.rows import BadLine
from rlsys.data.annotations.sets.records import Record
from rlsys.data.annotations.sets.tables import Table
from rlsys.types import Json

SUBTITLE_FOLDERS = ("subtitle", "subtitles")
"""Folders beside the annotation file in which Video-MME's subtitles are looked for, one `.srt` file a video."""
STATIC, DYNAMIC = ("VG", "DM", "SR"), ("R", "C", "T", "FP", "SA", "DP")
"""Categories of R4D-Bench. Source: 4D-RGPT, §A2."""

_STAR, _CLEVRER = "star/Charades_v1_480", "clevrer/video_validation"
MVBENCH_FOLDERS: Mapping[str, str] = {
    "action_sequence": _STAR,
    "action_prediction": _STAR,
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": _CLEVRER,
    "object_interaction": _STAR,
    "object_shuffle": "perception/videos",
    "moving_direction": _CLEVRER,
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": _CLEVRER,
    "moving_attribute": _CLEVRER,
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": _CLEVRER,
}
"""Subtask of MVBench -> folder of its videos below the benchmark's folder `video`, as its authors lay them out."""
MVBENCH_FRAMES_FPS = 3.0
"""Images per second of MVBench's frame folders (episodic_reasoning)."""
_MVBENCH_PARTS = frozenset(
    ("action_sequence", "action_prediction", "object_interaction", "action_localization", "episodic_reasoning")
)
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_CUE_TIME = re.compile(r"\d+:\d\d:\d\d[,.]\d+\s*-->.*")


def _with_subtitles(record: Record) -> Iterator[Record]:
    """Put the whole subtitles of a video before its question, as lmms-eval does when it is not given frames' times."""
    assert not isinstance(record.fields, BadLine)
    name = str(record.fields.get("videoID") or record.fields.get("video") or record.fields.get("video_id"))
    below = record.file.parent
    files = [folder / kind / f"{Path(name).stem}.srt" for folder in (below, below.parent) for kind in SUBTITLE_FOLDERS]
    text = next((subtitles(file) for file in files if file.is_file()), "") or "No subtitles available"
    question = f"This video's subtitles are listed below:\n{text}\n{record.fields.get('question') or ''}"
    yield replace(record, fields={**record.fields, "question": question})


def subtitles(file: Path) -> str:
    """Return the spoken lines of an .srt file without numbers, times and markup, joined by spaces."""
    lines = [
        _MARKUP.sub("", line).strip() for line in file.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    ]
    return " ".join(line for line in lines if line and not line.isdecimal() and not _CUE_TIME.fullmatch(line))


def _of_mvbench(record: Record) -> Iterator[Record]:
    """Name the subtask by its file, the folder of its videos, and the part of the video where there is one."""
    assert not isinstance(record.fields, BadLine)
    fields = dict(record.fields)
    subtask = re.sub(r"\W+", "_", str(fields.get("task_type") or record.file.stem)).lower()
    fields["subtask"] = subtask
    if subtask in MVBENCH_FOLDERS and isinstance(fields.get("video"), str) and "/" not in fields["video"]:
        fields["video"] = f"{MVBENCH_FOLDERS[subtask]}/{fields['video']}"
    if subtask not in _MVBENCH_PARTS and subtask in MVBENCH_FOLDERS:
        fields.pop("start", None)
        fields.pop("end", None)
    if subtask == "episodic_reasoning":
        fields.setdefault("fps", MVBENCH_FRAMES_FPS)
    yield replace(record, fields=fields)


def _of_perception_test(record: Record) -> Iterator[Record]:
    """Take the questions out of `{video: {metadata, mc_question: […]}}`, the form of the authors' JSON."""
    assert not isinstance(record.fields, BadLine)
    questions = record.fields.get("mc_question")
    if not isinstance(questions, list):
        yield record
        return
    for index, question in enumerate(questions):
        fields: Mapping[str, Json] | BadLine = BadLine(problem=f"mc_question {index} is not an object")
        if isinstance(question, dict):
            fields = {"video_name": record.fields.get("id"), "question_id": question.get("id"), **question}
        yield replace(record, label=f"{record.label}/{index}", fields=fields)


def _of_vsi_bench(record: Record) -> Iterator[Record]:
    """Name the video by data set and scene, and join the three levels of relative directions into one category."""
    assert not isinstance(record.fields, BadLine)
    fields = dict(record.fields)
    if fields.get("scene_name") is not None:
        folder = f"{fields['dataset']}/" if fields.get("dataset") else ""
        fields["video"] = f"{folder}{fields['scene_name']}.mp4"
    if isinstance(fields.get("question_type"), str):
        fields["category"] = re.sub(r"_(?:easy|medium|hard)$", "", fields["question_type"])
    yield replace(record, fields=fields)


def _of_r4d_bench(record: Record) -> Iterator[Record]:
    """Add whether the category is static or dynamic; write an answer of another type as its option is written."""
    assert not isinstance(record.fields, BadLine)
    fields = dict(record.fields)
    category = str(fields.get("task") or "")
    kinds = {**dict.fromkeys(STATIC, "static"), **dict.fromkeys(DYNAMIC, "dynamic")}
    fields["category"], fields["subset"] = category or None, kinds.get(category.upper())
    fields.pop("task", None)  # the benchmark's category, not a task of ours
    if fields.get("answer") is not None:
        answer = fields["answer"]
        fields["answer"] = str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer)
    yield replace(record, fields=fields)


_VIDEO_MME = Table(
    columns={
        "video": ("videoID", "video", "video_path", "video_id"),
        "options": ("options", "candidates"),
        "duration": (),  # the column `duration` holds a class
        "qid": ("question_id", "index"),
        "task": (),
    },
    labels={
        "duration_class": ("duration",),
        "category": ("domain",),
        "sub_category": ("sub_category",),
        "question_type": ("task_type",),
    },
    required=("video", "question", "options", "answer"),
)
TABLES: Mapping[str, Table] = {
    "table": Table(
        columns={},
        labels={
            name: (name,)
            for name in (
                "question_type",
                "category",
                "sub_category",
                "subset",
                "area",
                "reasoning",
                "duration_class",
                "tag",
                "cue",
            )
        },
        required=(),
    ),
    "video_mme": _VIDEO_MME,
    "video_mme_subtitles": replace(_VIDEO_MME, prepare=_with_subtitles),
    "mvbench": Table(
        columns={
            "options": ("candidates", "options"),
            "video_start": ("start", "video_start"),
            "video_end": ("end", "video_end"),
            "task": (),
            "qid": ("question_id", "index"),
        },
        labels={"question_type": ("subtask",)},
        required=("video", "question", "options", "answer"),
        prepare=_of_mvbench,
    ),
    "perception_test": Table(
        columns={
            "video": ("video_name", "video"),
            "answer_index": ("answer_id",),
            "qid": ("question_id", "id"),
            "task": (),
        },
        labels={"area": ("area",), "reasoning": ("reasoning",), "tag": ("tag",)},
        required=("video", "question", "options", "answer_index"),
        prepare=_of_perception_test,
    ),
    "vsi_bench": Table(
        columns={"answer": ("ground_truth",), "qid": ("id",), "task": ()},
        labels={"question_type": ("question_type",), "category": ("category",), "subset": ("dataset",)},
        required=("video", "question", "answer"),
        prepare=_of_vsi_bench,
    ),
    "r4d_bench": Table(
        columns={"images": ("som_image",), "qid": ("id",), "task": ()},
        labels={
            "category": ("category",),
            "subset": ("subset",),
            "benchmark": ("benchmark",),
            "source": ("source",),
        },
        required=("video", "question", "options", "answer"),
        prepare=_of_r4d_bench,
    ),
    "timebench": Table(columns={}, labels={"cue": ("cue",)}, required=("video", "question", "options", "answer")),
}
"""Benchmark -> how its tables are read; "table" is any user's own, with the columns that `data.columns` names."""

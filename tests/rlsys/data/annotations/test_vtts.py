from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import Annotations, load_annotations
from rlsys.data.annotations.formats import FORMATS
from rlsys.data.video.errors import AnnotationError
from rlsys.tasks.table import TASKS, prompt_text
from rlsys.types import ImageSpec, Json, PromptItem, VideoSpec
from tests.support.reports import report
from tests.support.video_files import shared_data

BOX = [0.25, 0.25, 0.75, 0.5]
PIXELS = [16, 8, 48, 24]
OPTIONS = ["A. wipe tears", "B. dance"]
QA = {"options": OPTIONS, "answer": "B. dance"}


def media(folder: Path) -> Path:
    """clip.mp4, the frame folder frames/ and picture.jpg; pictures are 64 x 32 pixels."""
    root = folder / "videos"
    (root / "frames").mkdir(parents=True, exist_ok=True)
    (root / "clip.mp4").touch()
    for name in ("frames/0001.jpg", "frames/0002.jpg", "picture.jpg"):
        Image.new("RGB", (64, 32)).save(root / name)
    (root / "frames" / "0000.txt").write_text("no picture")
    return root


def write(folder: Path, *rows: Json) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def load_rows(folder: Path, *rows: Json, format: str = "vtts", **data: object) -> Annotations:
    return load_annotations(write(folder, *rows), videos=media(folder), data=DataConfig(format=format, **data))


def load_row(folder: Path, **row: Json) -> PromptItem:
    """The item of one clean row."""
    loaded = load_rows(folder, {"video": "clip.mp4", "question": "why?", **row})
    assert loaded.dirty == ()
    return loaded.items[0]


@pytest.mark.parametrize(
    ("row", "task", "truth"),
    [
        (QA, "multiple_choice", "(B)"),
        ({**QA, "image": "picture.jpg", "video": None}, "multiple_choice", "(B)"),
        ({"answer": [11.6, 19]}, "temporal_grounding", [11.6, 19.0]),
        ({"task": "temporal_grounding", "answer": [[11.6, 19]]}, "temporal_grounding", [11.6, 19.0]),
        ({"answer": [BOX] * 8}, "tracking", [BOX] * 8),
        ({**QA, "clue": [11.6, 19]}, "grounded_qa", {"answer": "(B)", "glue": [[11.6, 19.0]]}),
        ({**QA, "clue": [[1, 2], [4, 6]]}, "grounded_qa", {"answer": "(B)", "glue": [[1.0, 2.0], [4.0, 6.0]]}),
        ({**QA, "clue": BOX}, "spatial_qa", {"answer": "(B)", "box": BOX}),
        (
            {**QA, "clue": {"temporal": [1, 2], "spatial": BOX}},
            "spatiotemporal_qa",
            {"answer": "(B)", "glue": [[1.0, 2.0]], "box": BOX},
        ),
        ({"clue": [6.0, 11.9]}, "temporal_grounding", [6.0, 11.9]),
        ({"clue": [[6.0, 11.9]]}, "temporal_grounding", [6.0, 11.9]),
        ({"clue": "[6.0, 11.9]"}, "temporal_grounding", [6.0, 11.9]),
        ({"clue": "0:06 - 0:11.9"}, "temporal_grounding", [6.0, 11.9]),
        ({"clue": {"start": 6.0, "end": "11.9"}}, "temporal_grounding", [6.0, 11.9]),
        ({**QA, "clue": {"temporal": ["1 - 2", "4 - 6"]}}, "grounded_qa", {"answer": "(B)", "glue": [[1, 2], [4, 6]]}),
        ({"clue": BOX}, "spatial_grounding", {"box": BOX}),
        (
            {"clue": PIXELS, "width": 64, "height": 32},
            "spatial_grounding",
            {"box": [16.0, 8.0, 48.0, 24.0], "width": 64.0, "height": 32.0},
        ),
        ({"clue": BOX, "width": 64, "height": 32}, "spatial_grounding", {"box": BOX}),
        (
            {"clue": {"temporal": [[1, 2]], "spatial": BOX}},
            "spatiotemporal_grounding",
            {"period": [1.0, 2.0], "box": BOX},
        ),
        ({"clue": [BOX] * 8}, "tracking", [BOX] * 8),
        ({"clue": [PIXELS] * 8, "width": 64, "height": 32}, "tracking", [[0.25, 0.25, 0.75, 0.75]] * 8),
        ({"answer": 3}, "numeric_qa", 3.0),
        ({"answer": "2.5 m"}, "numeric_qa", 2.5),
        ({"caption": "A cat sleeps."}, "captioning", {"caption": "A cat sleeps."}),
        ({"caption": "a", "events": ["b", "c"]}, "captioning", {"caption": "a", "events": ["b", "c"]}),
        ({"task": "video_quality", "answer": "low quality"}, "video_quality", "low quality"),
        (
            {"task": "video_quality", "answer": "Low quality", "options": ["low quality", "high quality"]},
            "video_quality",
            "Low quality",
        ),
        ({"task": "multiple_choice", "answer": "(C)"}, "multiple_choice", "(C)"),
        ({**QA, "clue": [], "caption": "", "events": []}, "multiple_choice", "(B)"),
    ],
)
def test_what_a_row_is_annotated_with_decides_its_task(tmp_path: Path, row: dict, task: str, truth: object) -> None:
    found = load_row(tmp_path, **row)
    assert (found.task, found.truth) == (task, truth)
    assert TASKS[task].read_truth(found.truth)
    for think in (True, False):
        assert "why?" in prompt_text(found, think=think, style="full")
    named = load_row(tmp_path, **row, **({} if "task" in row else {"task": task}))
    assert (named.task, named.truth) == (task, truth)


@pytest.mark.parametrize(
    ("clue", "cut"), [([0.25, 0.25, 1.004, 0.5], [0.25, 0.25, 1.0, 0.5]), ([-0.01, 0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5])]
)
def test_fractions_just_outside_the_picture_are_no_pixels(tmp_path: Path, clue: list[float], cut: list[float]) -> None:
    row = {"image": "picture.jpg", "question": "where?", "clue": clue}
    assert "goes past the picture" in load_rows(tmp_path, row, on_dirty_row="drop").dirty[0].problem
    assert load_rows(tmp_path, row, on_dirty_row="clip").items[0].truth == {"box": cut}


@pytest.mark.parametrize("answer", ["3k", "3 million", "3 dozen", "1st", "3M", "1,5", "3-4"])
def test_a_number_that_could_be_read_as_another_one_is_dirty(tmp_path: Path, answer: str) -> None:
    loaded = load_rows(tmp_path, {"video": "clip", "question": "How many?", "answer": answer})
    assert loaded.items == () and "is not a plain number" in loaded.dirty[0].problem


def test_the_answer_is_an_option_in_other_quotes_or_accents(tmp_path: Path) -> None:
    options = ["the man\u2019s hat", "a \u201cred\u201d caf\u00e9"]
    for answer, letter in (("the man's hat", "(A)"), ('A "red" cafe\u0301', "(B)")):
        assert load_row(tmp_path, video="clip", options=options, answer=answer).truth == letter


def test_options_are_shown_with_letters_and_classes_without(tmp_path: Path) -> None:
    assert load_row(tmp_path, **QA).options == ("(A) wipe tears", "(B) dance")
    quality = load_row(tmp_path, task="video_quality", answer="low", options=["low", "high"])
    assert quality.options == ("low", "high")


def test_images_become_image_specs_within_the_budgets_of_vtts(tmp_path: Path) -> None:
    found = load_row(tmp_path, video=None, image="picture.jpg", **QA)
    (spec,) = found.media
    assert spec == ImageSpec(
        uri=str(tmp_path / "videos" / "picture.jpg"), min_pixels=4 * 28 * 28, max_pixels=768 * 28 * 28
    )
    assert "about the image" in prompt_text(found, think=True, style="full")


@pytest.mark.parametrize(("video", "fps"), [("clip.mp4", 2.0), ("frames", 10.0), ("/authors/disk/frames/", 10.0)])
def test_tracking_shows_eight_frames_one_for_each_box(tmp_path: Path, video: str, fps: float) -> None:
    (spec,) = load_row(tmp_path, video=video, clue=[BOX] * 8).media
    assert isinstance(spec, VideoSpec)
    assert (spec.min_frames, spec.max_frames, spec.fps) == (8, 8, fps)


def test_pixels_without_a_size_are_counted_in_the_pictures_own(tmp_path: Path) -> None:
    still = load_row(tmp_path, video=None, image="picture.jpg", clue=PIXELS)
    assert still.truth == {"box": [16.0, 8.0, 48.0, 24.0], "width": 64.0, "height": 32.0}
    assert "which is 64 wide and 32 high" in prompt_text(still, think=True, style="full")
    assert load_row(tmp_path, video="frames", clue=[PIXELS] * 8).truth == [[0.25, 0.25, 0.75, 0.75]] * 8
    loaded = load_rows(tmp_path, {"video": "clip.mp4", "question": "where?", "clue": PIXELS})
    assert [(row.row, row.field) for row in loaded.dirty] == [("1", "width, height")]
    assert "need the size of the picture" in loaded.dirty[0].problem


def test_a_turned_photograph_is_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(media(tmp_path) / "turned.jpg", exif=exif)
    found = load_row(tmp_path, video=None, image="turned.jpg", clue=[1, 2, 30, 60])
    assert (found.truth["width"], found.truth["height"]) == (32.0, 64.0)


CONTRADICTIONS = [
    ({"image": "picture.jpg", **QA}, "image", "both a video and an image are given"),
    ({"video": None, "image": "picture.jpg", "clue": [1, 2]}, "clue", "periods of an image, which has no time"),
    ({"video": None, "image": "picture.jpg", "clue": [BOX] * 8}, "clue", "boxes of an image"),
    ({"options": OPTIONS}, "answer", "options without an answer"),
    ({"options": OPTIONS, "clue": [1, 2]}, "answer", "options without an answer"),
    ({"options": OPTIONS, "answer": "C"}, "answer", "'C' is not among (A) wipe tears, (B) dance"),
    ({"options": OPTIONS, "answer": "A. dance"}, "answer", "the letter of one option and the text of (B)"),
    ({"events": ["a cat sleeps"]}, "events", "events without their caption"),
    ({"caption": "a", **QA}, "caption", "no task scores caption and letter together"),
    ({"clue": [BOX] * 8, **QA}, "clue", "no task scores boxes and letter together"),
    ({"answer": 3, "clue": [1, 2]}, "answer", "no task scores number and periods together"),
    ({"clue": {"temporal": BOX}}, "clue", "temporal clue [0.25, 0.25, 0.75, 0.5] is of the other kind"),
    ({"task": "captioning", **QA}, "caption", "task captioning needs caption, and the row has letter"),
    ({"task": "temporal_grounding", "clue": BOX}, "clue", "needs periods, and the row has box"),
    ({"task": "tracking"}, "clue", "needs boxes, and the row has no annotation"),
    ({"task": "multiple_choice", **QA, "clue": [1, 2]}, "clue", "does not score periods"),
    ({"task": "numeric_qa", "answer": "three"}, "answer", "needs number, and the row has words"),
    ({"task": "video_quality", "answer": 3}, "answer", "is not a class in words"),
    ({"task": "video_quality", "answer": "low", "options": ["good", "bad"]}, "answer", "is not among"),
    ({"task": "dance", **QA}, "task", "'dance' is not known; the tasks are multiple_choice"),
]


@pytest.mark.parametrize("on_dirty_row", ["drop", "clip", "stop"])
@pytest.mark.parametrize(("row", "field", "text"), CONTRADICTIONS)
def test_a_contradiction_refuses_the_file_and_names_row_and_field(
    tmp_path: Path, row: dict, field: str, text: str, on_dirty_row: str
) -> None:
    good = {"video": "clip.mp4", "question": "why?", **QA}
    with pytest.raises(AnnotationError) as caught:
        load_rows(tmp_path, good, {"video": "clip.mp4", "question": "why?", **row}, on_dirty_row=on_dirty_row)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'rows.jsonl'}: row 2: {field}: ")
    assert text in message and message.endswith("fix the file.")


def test_many_contradictions_are_listed_and_cut_short(tmp_path: Path) -> None:
    rows = [{"video": "clip.mp4", "question": str(index), "options": OPTIONS} for index in range(13)]
    with pytest.raises(AnnotationError) as caught:
        load_rows(tmp_path, *rows)
    assert "row 10: answer" in str(caught.value) and "row 11" not in str(caught.value)
    assert "… and 3 more" in str(caught.value)
    lines = report(tmp_path / "rows.jsonl", "vtts")
    assert "13 contradictions refuse the file" in lines[2]
    assert sum(line.endswith("[refused]") for line in lines) == 13


def test_dirt_follows_the_setting_row_by_row(tmp_path: Path) -> None:
    def row(**changes: Json) -> dict[str, Json]:
        return {"video": "clip.mp4", "question": "when?", "duration": 10, "clue": [1, 2], **changes}

    rows = [
        row(),
        row(clue=[8, 11]),
        row(clue=[5, 5]),
        row(clue=[11, 12]),
        row(question=" "),
        row(),
        row(clue="around noon"),
        row(clue=None, answer="because"),
        row(clue=None),
        row(video="gone.mp4"),
        row(clue=[[1, 2], [3, 4]]),
        row(clue=[BOX] * 3),
        row(clue=[0.9, 0.25, 0.1, 0.5]),
        row(clue=[-8, 8, 48, 24], width=64, height=32),
        row(clue=PIXELS, width=64),
        row(clue=None, answer="A", options=["only one"]),
        row(video=None),
        "{not json",
        row(duration=-1),
        row(clue=None, answer=1e10),
        "[1, 2]",
    ]
    loaded = load_rows(tmp_path, *rows, on_dirty_row="clip")
    assert [(item.prompt_id, item.truth) for item in loaded.items] == [
        ("rows:1", [1.0, 2.0]),
        ("rows:2", [8.0, 10.0]),
        ("rows:14", {"box": [0.0, 8.0, 48.0, 24.0], "width": 64.0, "height": 32.0}),
    ]
    assert [(dirty.row, dirty.field, dirty.action) for dirty in loaded.dirty] == [
        ("2", "clue", "clipped"),
        ("3", "clue", "dropped"),
        ("4", "clue", "dropped"),
        ("5", "question", "dropped"),
        ("6", "question", "dropped"),
        ("7", "clue", "dropped"),
        ("8", "answer", "dropped"),
        ("9", "(row)", "dropped"),
        ("10", "video", "dropped"),
        ("11", "clue", "dropped"),
        ("12", "clue", "dropped"),
        ("13", "clue", "dropped"),
        ("14", "clue", "clipped"),
        ("15", "height", "dropped"),
        ("16", "options", "dropped"),
        ("17", "video", "dropped"),
        ("18", "(row)", "dropped"),
        ("19", "duration", "dropped"),
        ("20", "truth", "dropped"),
        ("21", "(row)", "dropped"),
    ]
    assert loaded.num_queries == 21
    assert len(load_rows(tmp_path, *rows).items) == 1
    with pytest.raises(AnnotationError, match="row 2: clue: .*goes past the clip of 10 s.*data.on_dirty_row"):
        load_rows(tmp_path, *rows, on_dirty_row="stop")


def test_a_report_counts_the_tasks_of_a_mixed_file(tmp_path: Path) -> None:
    base = {"video": "frames", "question": "?"}
    path = write(tmp_path, {**base, **QA}, "", {**base, "clue": [1, 2]}, {**base, "clue": [BOX] * 8})
    lines = report(path, "vtts", media(tmp_path))
    assert lines[0].endswith("1 videos, 3 queries, 0 dirty rows")
    assert lines[1] == "tasks: 1 multiple_choice, 1 temporal_grounding, 1 tracking"
    assert "8 evenly spaced frames" in lines[2]


@pytest.mark.parametrize("text", ["[\n1,\n", "a\nb\n", "[[[" * 40_000])
def test_a_file_without_a_line_of_json_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(AnnotationError, match="one object per line is expected"):
        load_annotations(path, videos=media(tmp_path), data=DataConfig(format="vtts"))


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"video": "clip.mp4", "question": "one\u2028two\x85three", **QA}, ensure_ascii=False)
    path.write_bytes(f"{row}\r\n{row}\r\n".encode())
    lines = report(path, "vtts", media(tmp_path))
    assert "2 queries, 1 dirty rows" in lines[0]  # the second is there twice


def test_captions_are_read_with_their_events(tmp_path: Path) -> None:
    rows = [
        {"video": "clip", "caption": " A cat sleeps. "},
        {"video": "frames", "caption": "a", "events": ["b"], "question": "What does the cat do?"},
        {"video": "clip", "caption": "again"},
        {"video": "clip", "caption": ""},
        {"video": "clip", "caption": "x", "question": "?", "events": []},
    ]
    loaded = load_rows(tmp_path, *rows, format="captions")
    assert [(item.task, item.question, item.truth) for item in loaded.items] == [
        ("captioning", "Describe what happens in the video.", {"caption": "A cat sleeps."}),
        ("captioning", "What does the cat do?", {"caption": "a", "events": ["b"]}),
    ]
    assert [(row.row, row.field) for row in loaded.dirty] == [("3", "video"), ("4", "caption"), ("5", "events")]


def test_the_real_quality_rows_are_read_whole(tmp_path: Path) -> None:
    path = shared_data("annotations", "vidtab_quality_100shot.json")
    assert report(path, "vidtab") == [f"{path}: 200 videos, 200 queries, 0 dirty rows"]
    rows = json.loads(path.read_text())[:2]
    rows += [{**rows[0], "video": "1.mp4", "answer": "fine"}, rows[1], {"video": "2.mp4"}]
    copy = tmp_path / "vidtab.json"
    copy.write_text(json.dumps(rows))
    videos = tmp_path / "videos"
    videos.mkdir()
    for row in rows:
        (videos / row["video"]).touch()
    loaded = load_annotations(copy, videos=videos, data=DataConfig(format="vidtab"))
    assert [(item.task, item.truth) for item in loaded.items] == [("video_quality", "low quality")] * 2
    assert "['low quality', 'high quality']" in prompt_text(loaded.items[0], think=True, style="full")
    assert [(row.row, row.field) for row in loaded.dirty] == [
        ("2", "answer"),
        ("3", "video"),
        ("4", "instruction, answer"),
    ]


def test_the_config_knows_every_format() -> None:
    assert set(FORMATS) == set(DataConfig.model_fields["format"].annotation.__args__)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["A", "B. dance"]),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(st.sampled_from(["temporal", "spatial", "x"]), inner)
        | st.just([1, 2])
        | st.just([0, 0, 1, 1])
    ),
    max_leaves=12,
)
keys = ["video", "image", "question", "options", "clue", "answer", "caption", "events", "task", "duration", "width"]


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from([*keys, "height"]), values) | values)
def test_any_json_is_a_row_with_problems_or_one_that_can_be_scored(entry: object) -> None:
    for read in (FORMATS["vtts"].read, FORMATS["captions"].read):
        (row,) = read([("1", entry)])
        assert row.label == "1"
        if not row.problems and not row.needs_size:
            prompt = PromptItem(
                prompt_id="p", task=row.task, question=row.question, options=row.options, media=(), truth=row.truth
            )
            assert prompt_text(prompt, think=True, style="full")

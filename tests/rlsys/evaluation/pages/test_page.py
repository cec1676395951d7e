"""The page of rows: what stands in it, and what a browser makes of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import load_annotations
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.pages.page import Curve, Section, Table, write_page
from rlsys.evaluation.pages.preview import write_preview
from rlsys.evaluation.pages.rows import page_row
from rlsys.evaluation.pages.thumbnails import MAX_FRAMES, thumbnails
from rlsys.types import VideoSpec
from tests.support.browser import needs_browser, opened_row, shown
from tests.support.pace import patience
from tests.support.video_files import make_video

HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=alert(1)>"


def grounding(name: str, question: str, text: str) -> Answered:
    return Answered(
        row_id=name,
        task="temporal_grounding",
        question=question,
        options=(),
        truth=[1.0, 3.5],
        labels={"duration_s": 6.0, "question_type": "CH"},
        texts=(text,) if text else (),
        reason="" if text else "the video is missing",
    )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    rows = [
        page_row(grounding("set:0", HOSTILE, "<answer>0.5 to 2.0</answer>"), group="one", score=0.25),
        page_row(grounding("set:1", "When does the dog bark?", "<answer>1.0 to 3.5</answer>"), group="one", score=1.0),
        page_row(grounding("set:2", "When does the cat sleep?", ""), group="two"),
    ]
    table = Table(title=HOSTILE, columns=["metric", "value"], rows=[["mIoU", 0.625]])
    curve = Curve(title="recall", x_label="IoU", y_label="share", series={HOSTILE: [(0.0, 1.0), (1.0, 0.0)]})
    return write_page(tmp_path / "page.html", HOSTILE, [Section(title="one", tables=[table], curves=[curve])], rows)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_hostile_text_adds_no_element_to_the_page(page: Path) -> None:
    tags = _Tags()
    tags.feed(page.read_text())
    assert [tag for tag, _ in tags.found if tag in ("script", "img")] == ["script", "script"]
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)


def test_the_page_loads_nothing_from_a_network(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:)\w+:", text)


def test_spans_of_truth_and_answer_are_read_for_the_time_line() -> None:
    row = page_row(grounding("a", "When?", "<answer>0.5 to 2.0</answer>"), group="g")
    assert row["spans"] == {"true": [(1.0, 3.5)], "answered": [(0.5, 2.0)]}


def test_boxes_in_pixels_are_shown_as_fractions() -> None:
    boxes = Answered(
        row_id="b",
        task="spatial_grounding",
        question="Where?",
        options=(),
        truth={"box": [20, 10, 60, 40], "width": 100, "height": 50},
        texts=("<answer>[10, 10, 60, 40]</answer>",),
    )
    shown = page_row(boxes, group="g")["boxes"]
    assert shown["true"] == [pytest.approx((0.2, 0.2, 0.6, 0.8))]
    assert shown["answered"] == [pytest.approx((0.1, 0.2, 0.6, 0.8))]


def test_a_row_that_cannot_be_read_is_shown_as_it_is() -> None:
    row = page_row(Answered(row_id="x", task="", question="?", options=(), truth={"odd": 1}), group="g")
    assert row["spans"] == {"true": [], "answered": []}
    assert row["truth"] == "{'odd': 1}"


def test_thumbnails_show_the_frames_that_a_model_is_shown(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4", size=(112, 112))
    (tmp_path / "broken.mp4").write_bytes(b"\0" * 64)
    budgets = {"min_frames": 4, "min_pixels": 28 * 28, "max_pixels": 112 * 112, "total_pixels": 10**8}
    specs = [
        VideoSpec(uri=str(tmp_path / "clip.mp4"), fps=1.0, max_frames=4, **budgets),
        VideoSpec(uri=str(tmp_path / "clip.mp4"), fps=8.0, max_frames=48, **budgets),
        VideoSpec(uri=str(tmp_path / "broken.mp4"), fps=1.0, max_frames=4, **budgets),
    ]
    few, many, none = thumbnails([[spec] for spec in specs], workers=1, timeout_s=patience(60.0))
    assert [len(few), len(many), len(none)] == [4, MAX_FRAMES, 0]
    assert [one["time_s"] for one in few] == sorted(one["time_s"] for one in few)
    assert few[0]["url"].startswith("data:image/jpeg;base64,/9j/")


@pytest.mark.slow
@needs_browser
def test_a_browser_filters_rows_and_opens_one(page: Path) -> None:
    everything = shown(page, "")
    assert "3 of 3 rows" in everything
    assert "<title>run" not in everything  # no script of a row has run
    one = shown(page, "find=bark&open=set:1")
    assert "1 of 3 rows" in one
    assert "annotated 1 to 3.5 s" in one
    assert "answered 1 to 3.5 s" in one
    assert "cat sleep" not in one.partition('id="rows"')[2].partition("<script")[0]
    assert "1 of 3 rows" in shown(page, "kind=none")
    assert "2 of 3 rows" in shown(page, "group=one")
    assert "annotated 1 to 3.5 s" in shown(page, "find=nothing&open=set:1")  # a link opens what its filters hide


@pytest.fixture
def preview(tmp_path: Path) -> Path:
    """The page of `rlsys data preview` for two rows about numbered clips and one whose clip is not there."""
    rows = []
    for name in ("first", "second"):
        make_video(tmp_path / f"{name}.mp4", size=(112, 112))
        rows.append({"video": f"{name}.mp4", "duration": 6.0, "question": f"When is {name} seen?", "clue": [1.5, 3.0]})
    rows.append({"video": "gone.mp4", "question": "How many?", "answer": 2})
    annotations = tmp_path / "rows.jsonl"
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(format="vtts", fps=1.0, max_frames=8, min_pixels=28 * 28, max_pixels=112 * 112)
    found = load_annotations(annotations, videos=tmp_path, data=data, keep="published")
    path, num = write_preview(tmp_path / "preview.html", "Preview", found, num=9, workers=1, timeout_s=patience(60.0))
    assert num == 3
    return path


@pytest.mark.slow
@needs_browser
def test_a_browser_opens_the_preview_and_a_row_of_it_with_its_frames(preview: Path) -> None:
    closed = shown(preview, "").partition('id="rows"')[2].partition("<script")[0]
    assert "When is first seen?" in closed and "When is second seen?" in closed and "How many?" in closed
    assert "<img" not in closed, "the frames of a row are shown when it is opened"
    rows = shown(preview, "find=second&open=rows:2").partition('id="rows"')[2].partition("<script")[0]
    assert rows.count("<details") == 1 and '<details class="row" open' in rows
    assert re.findall(r'alt="frame at ([\d.]+) s"', rows) == [f"{second}.00" for second in range(6)]
    assert rows.count('src="data:image/jpeg;base64,') == 6
    assert 'title="annotated 1.5 to 3 s"' in rows and "answered" not in rows
    gone = opened_row(preview, "rows:3")
    assert "no answer: " in gone.replace("</span>", "") and "gone.mp4" in gone and "<img" not in gone

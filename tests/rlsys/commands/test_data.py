"""`rlsys data …` on files made here and on the real clips."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rlsys.commands.app import app
from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import load_annotations
from rlsys.data.video.decode import decode
from tests.support.video_files import make_video, shared_data

HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=alert(1)>"


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "a.mp4", size=(56, 112))  # 6 s
    return write(
        tmp_path / "rows.jsonl",
        [
            {"video": "a.mp4", "duration": 6.0, "question": HOSTILE, "clue": [1.0, 4.0]},
            {"video": "a.mp4", "duration": 30.0, "question": "late", "clue": [1.0, 20.0]},
            {"video": "a.mp4", "question": "where?", "clue": [10, 10, 50, 50], "width": 80, "height": 80},
            {"video": "a.mp4", "question": "where now?", "clue": [10, 10, 50, 50], "width": 224, "height": 112},
            {"video": "gone.mp4", "question": "who?", "options": [HOSTILE, "y"], "answer": "y"},
        ],
    )


def test_check_opens_the_files_and_compares_durations_periods_and_boxes(rows: Path) -> None:
    text = run("check", "--format", "vtts", "--annotations", rows, "--videos", rows.parent / "videos", "--workers", 3)
    assert "2 videos, 5 queries, 3 dirty rows" in text
    assert "1 videos last more than 1 s longer or shorter than annotated:\n  a.mp4: 30 s annotated, 6.00 s long" in text
    assert "2: truth: the true period 1 to 20 s is not inside the decoded clip, which lasts 6.00 s" in text
    assert "3: width, height: the boxes are pixels of 80 x 80, the file shows 112 x 56 pixels [dropped]" in text
    assert "1 missing videos" in text


def test_check_counts_the_images_of_a_got10k_sequence(tmp_path: Path) -> None:
    folder = tmp_path / "s1"
    folder.mkdir()
    for index in range(9):
        Image.new("RGB", (100, 50)).save(folder / f"{index}.jpg")
    (folder / "groundtruth.txt").write_text("10,5,20,10\n" * 10)
    text = run("check", "--format", "got10k", "--annotations", tmp_path, "--videos", tmp_path)
    assert "s1: truth: 10 boxes for the folder's 9 images [dropped]" in text


def test_check_reads_the_real_clips(tmp_path: Path) -> None:
    clips = shared_data("clips")
    names = ["arm_wrestling.mp4", "spatiotemporal.mp4", "flipping_a_pancake.mkv", "dog.mp4", "corrupted.mp4"]
    path = write(
        tmp_path / "r.jsonl", [{"video": name, "question": "q", "clue": [1, 9], "duration": 10} for name in names]
    )
    text = run("check", "--format", "vtts", "--annotations", path, "--videos", clips)
    assert "5 videos, 5 queries" in text and "cannot be decoded" not in text
    # its headers are whole; its pictures end in the middle
    text = run("check", "--format", "vtts", "--annotations", path, "--videos", clips, "--decode", "--set", "data.fps=1")
    (failed,) = [line for line in text.splitlines() if line.startswith("cannot be decoded")]
    assert f"{clips / 'corrupted.mp4'}: corrupt" in failed


def test_check_decodes_files_that_open_and_fail_in_the_middle(tmp_path: Path) -> None:
    good, bad = make_video(tmp_path / "good.mp4"), make_video(tmp_path / "bad.mp4")
    data = bytearray(bad.read_bytes())
    quarter = len(data) // 4
    data[quarter : 2 * quarter] = np.random.default_rng(0).bytes(quarter)
    bad.write_bytes(data)
    names = [good.name, bad.name, "empty.mp4", "gone.mp4"]
    (tmp_path / "empty.mp4").touch()
    rows = [{"video": name, "question": "q", "clue": [1, 4]} for name in names]
    arguments = ["check", "--format", "vtts", "--annotations", write(tmp_path / "r.jsonl", rows)]
    text = run(*arguments, "--videos", tmp_path)
    assert [line.split(": ")[2] for line in text.splitlines() if line.startswith("cannot be decoded")] == ["empty"]
    text = run(*arguments, "--videos", tmp_path, "--decode", "--workers", 2)
    failed = [line for line in text.splitlines() if line.startswith("cannot be decoded")]
    assert sorted((line.split(": ")[1], line.split(": ")[2]) for line in failed) == [
        (str(bad), "corrupt"), (str(tmp_path / "empty.mp4"), "empty"),
    ]  # fmt: skip


def test_stats_prints_and_draws(rows: Path, tmp_path: Path) -> None:
    plot = tmp_path / "out" / "stats.png"
    text = run(
        "stats", "--format", "vtts", "--annotations", rows, "--videos", rows.parent / "videos", "--plot", plot,
        "--set", "data.fps=1", "--set", "data.min_pixels=784", "--set", "data.max_pixels=6272",
    )  # fmt: skip
    assert "5 rows, 3 of them dirty" in text  # as `check` counts them
    (tokens,) = [line.split() for line in text.splitlines() if line.startswith("visual tokens of a clip")]
    assert tokens[5:7] == ["4", "24"]  # four rows; 3 steps of 2 x 4 tokens
    with Image.open(plot) as image:
        assert image.format == "PNG"


def test_convert_and_schema(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "again.jsonl"
    assert "again.jsonl: 5 rows" in run("convert", out, "--format", "vtts", "--annotations", rows)
    assert [json.loads(line)["question"] for line in out.read_text().splitlines()][1] == "late"
    assert json.loads(run("schema"))["properties"]["clue"]
    csv = tmp_path / "mine.csv"
    csv.write_text("clip,ask,a,b,right\nv.mp4,what?,x,y,1\n")
    columns = ("video=clip", "question=ask", "options=a,b", "answer_index=right")
    options = [part for column in columns for part in ("--column", column)]
    run("convert", out, "--format", "table", "--annotations", csv, *options)
    assert json.loads(out.read_text()) == {
        "video": "v.mp4",
        "task": "multiple_choice",
        "question": "what?",
        "options": ["(A) x", "(B) y"],
        "answer": "(B)",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("convert", "o.jsonl", "--format", "table", "--column", "ask"), "write it as ROLE=NAME; the roles are video"),
        (("stats", "--format", "nope"), "data.format: Input should be 'charades_sta'"),
        (("stats", "--format", "vtts", "--set", "model.path=x"), "write it as data.KEY=VALUE"),
        (("stats", "--format", "vtts", "--set", "data.min_frames=3"), "use an even number"),
        (("check", "--format", "nope"), "data.format: Input should be 'charades_sta'"),
        (("stats", "--format", "vtts", "--set", "data.fsp=2"), "data.fsp: unknown key (value 2)"),
        (("check", "--format", "vtts", "--decode"), "--decode: give the folder of the videos too"),
    ],
)
def test_wrong_options_are_one_clear_sentence(arguments: tuple[str, ...], message: str, rows: Path) -> None:
    assert message in run(*arguments, "--annotations", rows, code=2)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


@pytest.mark.slow
def test_preview_shows_frames_spans_and_boxes_and_runs_nothing_of_a_row(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "preview.html"
    text = run("preview", out, "--format", "vtts", "--annotations", rows, "--videos", rows.parent / "videos")
    assert "5 of 5 rows" in text
    page = out.read_text()
    tags = _Tags()
    tags.feed(page)
    assert [tag for tag in tags.found if tag in ("script", "img")] == ["script", "script"]
    data = page.partition('id="data">')[2].partition("</script>")[0]
    shown = {row["id"]: row for row in json.loads(data)}
    assert shown["rows:1"]["spans"]["true"] == [[1.0, 4.0]] and shown["rows:1"]["question"] == HOSTILE
    assert shown["rows:2"]["spans"]["true"] == [[1.0, 20.0]]  # as the file states it
    assert shown["rows:4"]["boxes"]["true"] == [pytest.approx([10 / 224, 10 / 112, 50 / 224, 50 / 112])]
    assert shown["rows:1"]["frames"][0]["url"].startswith("data:image/jpeg;base64,")
    assert shown["rows:5"]["frames"] == [] and "gone.mp4" in shown["rows:5"]["reason"]


@pytest.mark.parametrize("cue", ["none", "prompts", "marks"])
def test_timebench_asks_how_much_time_has_passed(cue: str, tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    (videos / "sub").mkdir(parents=True)
    make_video(videos / "sub" / "a.mp4", size=(112, 112))  # 6 s
    make_video(videos / "b.mp4", num_frames=30, size=(112, 112))  # 3 s
    (videos / "broken.mp4").write_bytes(b"no video")
    budgets = ["--set", "data.fps=2", "--set", "data.min_pixels=784", "--set", "data.max_pixels=12544"]
    text = run("timebench", "--videos", videos, "--out", out, "--cue", cue, *budgets)
    assert "timebench.jsonl: 2 rows" in text and "skipped: " in text and "broken.mp4" in text
    data = DataConfig.model_validate({"format": "timebench", "fps": 2.0, "min_pixels": 784, "max_pixels": 12544})
    found = load_annotations(out / "timebench.jsonl", videos=out if cue == "marks" else videos, data=data)
    assert found.dirty == () and len(found.items) == 2
    for item, length_s in zip(found.items, (3.0, 6.0), strict=True):
        texts = dict(option.split(") ", 1) for option in item.options)
        assert texts[item.truth.strip(")")] == f"{length_s:.1f} seconds"
        seconds = sorted(float(text.split()[0]) for text in texts.values())
        assert seconds == pytest.approx([factor * length_s for factor in (0.25, 0.5, 1, 2, 4)], abs=0.051)
        assert item.labels["cue"] == cue
        clip = decode(item.media[0])
        assert len(clip.frames) == 2 * length_s and clip.info.times_s[2] == pytest.approx(1.0, abs=0.05)
        assert ("0.00s, 0.50s, 1.00s" in item.question) == (cue == "prompts")
        corner = clip.frames[:, 1:3, 1:3].mean(axis=(1, 2, 3))
        assert bool((corner < 10).all()) == (cue == "marks")  # the black ground of the time

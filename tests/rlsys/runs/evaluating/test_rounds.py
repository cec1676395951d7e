"""`rlsys eval` of rows in rounds by a scripted model, with real clips, prompts and reports, and without a cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.run import ConfigError, RunConfig, parse
from rlsys.data.video.budgets import largest_grids
from rlsys.data.video.decode import decode_all
from rlsys.data.video.opened import OpenedFiles
from rlsys.evaluation.answering.answers import Answer, Shown, shown_frames
from rlsys.models.prompts import PromptBuilder
from rlsys.perception.controls import largest_one_round
from rlsys.runs.assemble import prompt_builder
from rlsys.runs.evaluating import evaluate
from rlsys.runs.evaluating.answering import chosen_sets
from rlsys.runs.evaluating.evaluate import EvalOptions, run_evaluation
from rlsys.types import PromptItem, Sampling
from tests.support.browser import needs_browser, opened_row
from tests.support.video_files import make_video

pytestmark = pytest.mark.stack
SPANS = [[2.0, 3.0], [1.0, 2.0]]


class Scripted:
    """Points to 1.5..4 s of a clip that it sees evenly, and to 2..3 s of one that it sees in segments."""

    def __init__(self, prompts: PromptBuilder) -> None:
        self.prompts, self.opened = prompts, OpenedFiles(1 << 24)
        self.prompts_seen: list[str] = []

    def answer(self, item: PromptItem, sampling: Sampling) -> Future[Answer]:
        clips = decode_all(item.media, self.opened) if item.media else []
        infos = tuple(clip.info for clip in clips)
        prompt = self.prompts.build(item, infos)
        self.prompts_seen.append(self.prompts.decode(prompt.engine_ids))
        num_frames, frame_pixels = shown_frames(infos)
        text = "<answer>2.0 to 3.0</answer>" if item.media_texts else "<answer>1.5 to 4.0</answer>"
        future: Future[Answer] = Future()
        future.set_result(
            Answer(
                row_id=item.prompt_id,
                texts=(text,),
                finish_reasons=("stop",),
                prompt_tokens=int(prompt.prompt_ids.size),
                num_frames=num_frames,
                frame_pixels=frame_pixels,
                seconds=0.5,
                shown=Shown(clips=infos, decode_s=0.25),
            )
        )
        return future

    def prefetch(self, item: PromptItem) -> None:
        pass

    def check(self) -> None:
        raise AssertionError("every answer is there at once")


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path) -> RunConfig:
    rows: dict[str, Any] = {}
    for index, span in enumerate(SPANS):
        make_video(tmp_path / f"clip{index}.mp4", num_frames=60)
        rows[f"clip{index}"] = {"duration": 6.0, "timestamps": [span], "sentences": [f"row {index} happens."]}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    budgets = {"fps": 2.0, "max_frames": 12, "min_pixels": 784, "max_pixels": 3136, "prompt_style": "terse"}
    return parse(
        {
            "output_dir": str(tmp_path / "out"),
            "model": {"path": str(tiny_model_dir), "dtype": "float32", "max_model_len": 1024},
            "data": {**budgets, "videos": str(tmp_path), "decode_workers": 1},
            "rollout": {"num_actors": 1, "max_tokens": 8},
            "evaluation": {"sets": [{"name": "rows", "annotations": str(tmp_path / "rows.json")}], "page_rows": 1},
            "perception": {"rounds": 2},
        },
        source="test",
    )


def run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Scripted]:
    model = Scripted(prompt_builder(config))

    @contextmanager
    def opened(*_: object) -> Iterator[Scripted]:
        yield model

    monkeypatch.setattr(evaluate, "open_responder", opened)
    return run_evaluation(config, EvalOptions()), model


def row_of(page: Path) -> dict[str, Any]:
    """Return the row of a page that has frames."""
    rows = json.loads(page.read_text().partition('id="data">')[2].partition("</script>")[0])
    (found,) = (row for row in rows if row.get("rounds"))
    return found


def test_rounds_controls_reports_and_a_third_round_later(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    out, model = run(config, monkeypatch)
    (one,) = json.loads((out / "results.json").read_text())["sets"]
    (found, *_) = one["tasks"]["temporal_grounding"]
    first, second = found["rounds"]["by_round"]
    # 1.5..4 s against 2..3 s and 1..2 s: 1 / 2.5 and 0.5 / 3; then 1 and 0
    assert first["metrics"]["miou"] == pytest.approx((0.4 + 0.5 / 3) / 2)
    assert second["metrics"]["miou"] == found["metrics"]["miou"]["value"] == pytest.approx(0.5)
    assert (second["num_better"], second["num_worse"], second["worse"][0]["row"]) == (1, 1, "rows:clip1/0")
    assert first["frames"] == second["frames"] == 12 and first["visual_tokens"] == second["visual_tokens"]
    assert (second["decode_s"], second["seconds"]) == (0.25, 0.5)
    controls = found["rounds"]["controls"]
    assert {"random_window", "oracle_window", "one_round_equal_tokens_2"} == set(controls)
    once = controls["one_round_equal_tokens_2"]
    assert (once["frames"], once["total_visual_tokens"]) == (24, second["total_visual_tokens"])
    assert once["metrics"]["miou"] == first["metrics"]["miou"], "the scripted model sees an even look"
    assert once["same_rows"]["round_2"]["miou"] == pytest.approx(0.5)
    assert {"other_video", "text_only"} == set(found["controls"])
    assert any("0.0 to 1.5:<|vision_start|>" in text and "1.5 to 4.0:<|vision" in text for text in model.prompts_seen)
    markdown = (out / "report.md").read_text()
    assert "| one round, equal tokens (2) | 0.283 | 24.0 | 48.0 | 48.0 |" in markdown
    assert "| round 2 | 0.500 |" in markdown and "oracle window: 0.500 after two rounds of 2 rows" in markdown
    assert "rows that a later round made worse" in (out / "report.html").read_text()
    assert (out / "rounds_rows_temporal_grounding.png").stat().st_size > 1000
    shown = row_of(out / "report.html")
    assert [one["score"] for one in shown["rounds"]] == [pytest.approx(0.4), 1.0]
    assert [one["spans"] for one in shown["rounds"]] == [[[1.5, 4.0]], [[2.0, 3.0]]]
    assert [one["clue"]["spans"] for one in shown["rounds"]] == [[], [[1.5, 4.0]]]
    assert [part["label"] for part in shown["rounds"][1]["parts"]] == ["0.0 to 1.5:", "1.5 to 4.0:", "4.0 to 6.0:"]
    times = [[part["times"] for part in one["parts"]] for one in shown["rounds"]]
    assert times[0] == [[0.5 * index for index in range(12)]]
    assert (
        [len(part) for part in times[1]] == [2, 6, 4] and times[1][1][0] == 1.5 and times[1][2] == [4.0, 4.5, 5.0, 5.5]
    )
    frames = [frame for one in shown["rounds"] for part in one["parts"] for frame in part["frames"]]
    assert len(frames) == 24 and len(shown["pictures"]) < 24, "a frame that both rounds show is on the page once"
    assert shown["length_s"] == 6.0 and not shown["frames"]
    _, nothing = run(config, monkeypatch)
    assert not nothing.prompts_seen, "all answers were there"
    three = config.model_copy(update={"perception": config.perception.model_copy(update={"rounds": 3})})
    _, third = run(three, monkeypatch)
    assert len(third.prompts_seen) == 2 * len(SPANS), "only the third round and one round at its tokens were missing"
    (one,) = json.loads((out / "results.json").read_text())["sets"]
    assert len(one["tasks"]["temporal_grounding"][0]["rounds"]["by_round"]) == 3


def test_one_round_at_the_tokens_of_all_needs_room_in_the_context(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, perception = {"max_pixels": 12544}, {"max_periods": 1}  # so that frames are longer than texts
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "perception": config.perception.model_copy(update=perception),
        }
    )
    (one,) = chosen_sets(config)
    largest = largest_one_round(one.asked[0], config.perception)
    assert largest is not None
    needed = prompt_builder(config).count_tokens(largest, largest_grids(largest)).total

    def with_context(max_model_len: int, **evaluation: object) -> RunConfig:
        return config.model_copy(
            update={
                "model": config.model.model_copy(update={"max_model_len": max_model_len}),
                "evaluation": config.evaluation.model_copy(update=evaluation),
                "output_dir": config.output_dir / f"{max_model_len}{bool(evaluation)}",
            }
        )

    with pytest.raises(ConfigError, match=r"one_round_equal_tokens.*perception.rounds=2 rounds.*or remove the control"):
        run(with_context(needed - 1, controls=("one_round_equal_tokens",)), monkeypatch)
    for room, extra in ((needed - 1, set()), (needed, {"one_round_equal_tokens_2"})):
        out, _ = run(with_context(room), monkeypatch)
        (found,) = json.loads((out / "results.json").read_text())["sets"]
        controls = found["tasks"]["temporal_grounding"][0]["rounds"]["controls"]
        assert set(controls) == {"random_window", "oracle_window"} | extra


@needs_browser
def test_a_browser_opens_a_row_and_sees_both_rounds(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = run(config, monkeypatch)
    row = opened_row(out / "report.html", "rows:clip0/0")
    first, second = row.split('<div class="round">')[1:]
    assert re.findall(r'alt="frame at ([\d.]+) s"', first) == [f"{0.5 * index:.2f}" for index in range(12)]
    assert "12 frames, 24 visual tokens, score 0.400" in first and "<pre><answer>1.5 to 4.0</answer></pre>" in first
    assert "score 1.000" in second and "shown around: </span>1.5 to 4 s" in second
    assert re.findall(r'<div class="key">([^<]*)</div>', second) == ["0.0 to 1.5:", "1.5 to 4.0:", "4.0 to 6.0:"]
    assert re.findall(r'alt="frame at ([\d.]+) s"', second)[:3] == ["0.00", "0.70", "1.50"], (
        "0.75 s lies between two frames"
    )
    for title in ("annotated 2 to 3 s", "round 1 answered 1.5 to 4 s", "round 2 shown around 1.5 to 4 s"):
        assert f'title="{title}"' in row
    assert 'title="round 2 answered 2 to 3 s"' in row and row.count('class="lane"') == 3

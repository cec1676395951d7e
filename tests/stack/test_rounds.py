"""`rlsys eval` of rows in two rounds, with a real engine and encoded videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rlsys.demo.synthetic import draw_dataset
from tests.stack.test_end_to_end import rlsys
from tests.support.browser import needs_browser, opened_row

pytestmark = pytest.mark.stack
NUM_CLIPS, NUM_ROWS = 3, 6  # two objects a clip


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> list[str]:
    folder = tmp_path_factory.mktemp("rounds")
    clips = draw_dataset(folder / "clips", num_clips=NUM_CLIPS, seed=3)
    sets = [{"name": "rows", "annotations": str(clips.annotations), "videos": str(clips.videos)}]
    settings = {
        "output_dir": folder / "out",
        "model.path": tiny_model_dir,
        "data.decode_workers": 1,
        "rollout": "{num_actors: 1, max_tokens: 12}",
        "evaluation.sets": json.dumps(sets),
        "evaluation.controls": "[random_window, oracle_window]",
        "evaluation.page_rows": 1,
        "perception.rounds": 2,
    }
    return ["configs/demo.yaml", *(f"{key}={value}" for key, value in settings.items())]


@pytest.fixture(scope="module")
def out(command: list[str]) -> Path:
    """The folder of the evaluation."""
    result = rlsys("eval", *command)
    assert result.returncode == 0, result.stdout + result.stderr
    return Path(command[1].removeprefix("output_dir=")) / "evaluation"


def answers(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers" / "rows" / f"{name}.jsonl").read_text().splitlines()[1:]]


def test_every_row_is_answered_in_each_round_and_costs_are_known(out: Path) -> None:
    first, second = (answers(out, f"round_{number}") for number in (1, 2))
    assert len(first) == len(second) == NUM_ROWS
    for one in first:
        start_s, length_s, source_fps, num_frames = one["look"]["whole"]
        assert start_s == 0.0 and length_s > 0 and source_fps > 0 and num_frames == one["num_frames"]
        assert one["look"]["visual_tokens"] > 0 and one["look"]["decode_s"] > 0
    # a model that was never trained points nowhere
    assert {one["look"]["reason"] for one in second} == {"round 1 has no readable clue: looked evenly again"}


def test_the_oracle_shows_the_engine_segments_around_the_true_period_at_the_cost_of_one_even_look(out: Path) -> None:
    first = {one["row_id"]: one for one in answers(out, "round_1")}
    oracle = answers(out, "oracle_window")
    assert len(oracle) == NUM_ROWS and not answers(out, "random_window"), "a random window needs a clue"
    for one in oracle:
        before = first[one["row_id"]]
        assert one["texts"] and not one["problem"]
        assert one["num_frames"] <= before["num_frames"] and one["frame_pixels"] == before["frame_pixels"]
        assert 0 < one["look"]["visual_tokens"] <= before["look"]["visual_tokens"]
        text_tokens = [answer["prompt_tokens"] - answer["look"]["visual_tokens"] for answer in (before, one)]
        assert text_tokens[1] > text_tokens[0], "periods are told before the segments"


def test_reports_have_the_figures_of_each_round(out: Path) -> None:
    (one,) = json.loads((out / "results.json").read_text())["sets"]
    (found, *_) = one["tasks"]["temporal_grounding"]
    rounds = found["rounds"]["by_round"]
    assert [one["round"] for one in rounds] == [1, 2]
    assert rounds[1]["metrics"] == {name: figure["value"] for name, figure in found["metrics"].items()}
    assert rounds[1]["total_visual_tokens"] == rounds[0]["visual_tokens"] + rounds[1]["visual_tokens"]
    assert rounds[1]["num_without_clue"] == NUM_ROWS
    assert found["rounds"]["controls"]["oracle_window"]["metrics"]["num_rows"] == NUM_ROWS
    assert "| round 2 |" in (out / "report.md").read_text()
    assert "visual tokens a row, all rounds so far" in (out / "report.html").read_text()
    assert (out / "rounds_rows_temporal_grounding.png").stat().st_size > 1000
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    metrics = client.get_run((out / "mlflow_run_id").read_text().strip()).data.metrics
    assert {"eval/rows/round_1/miou", "eval/rows/round_2/miou"} <= metrics.keys()


@needs_browser
def test_a_browser_sees_both_rounds_of_a_row_with_their_frames(out: Path) -> None:
    first = answers(out, "round_1")[0]
    rounds = opened_row(out / "report.html", first["row_id"]).split('<div class="round">')[1:]
    assert len(rounds) == 2
    assert all(one.count('src="data:image/jpeg;base64,') == first["num_frames"] for one in rounds)
    assert "looked evenly again" in rounds[1]


def test_other_settings_of_perception_are_refused_in_the_same_folder(out: Path, command: list[str]) -> None:
    result = rlsys("eval", *command, "perception.key_ratio=0.7")
    assert result.returncode != 0
    assert "has answers of another evaluation" in result.stderr + result.stdout
    assert "perception: was" in result.stderr + result.stdout

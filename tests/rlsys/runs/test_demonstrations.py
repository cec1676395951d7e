"""Demonstrations of later rounds: what they show, and which lines are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.config.run import ConfigError, RunConfig, parse
from rlsys.data.annotations.responses import read_responses, write_responses
from rlsys.data.video.decode import decode, plan_clip
from rlsys.demo.synthetic import draw_dataset
from rlsys.perception.media import whole_clip
from rlsys.runs.demonstrations import read_lessons
from rlsys.runs.inputs.items import training_items
from rlsys.types import VideoSpec

EARLIER = "<answer>1.0 to 3.0</answer>"


@pytest.fixture
def config(tmp_path: Path, tiny_model_dir: Path) -> RunConfig:
    clips = draw_dataset(tmp_path / "clips", num_clips=1, seed=0, durations_s=(6.0,), source_fps=(8,))
    budgets = {"fps": 2.0, "max_frames": 12, "min_pixels": 784, "max_pixels": 3136, "prompt_style": "terse"}
    return parse(
        {
            "output_dir": str(tmp_path / "out"),
            "model": {"path": str(tiny_model_dir), "dtype": "float32", "max_model_len": 1024},
            "data": {**budgets, "annotations": str(clips.annotations), "videos": str(clips.videos)},
            "rollout": {"num_actors": 1, "max_tokens": 8},
            "sft": {"responses": str(tmp_path / "responses.jsonl")},
            "perception": {"rounds": 2},
        },
        source="test",
    )


def written(config: RunConfig, *earlier: str) -> None:
    name = training_items(config)[0].prompt_id
    path = config.sft.responses
    assert path is not None
    write_responses(path, [(name, "<answer>1.5 to 2.5</answer>"), (name, "<answer>1.5 to 2.5</answer>", *earlier)])


def test_a_response_after_an_earlier_one_is_shown_what_that_one_points_to(config: RunConfig) -> None:
    written(config, EARLIER)
    lessons = read_lessons(config)
    lessons.report.raise_problems()
    first, second = lessons.demonstrations
    assert (first.is_later, second.is_later) == (False, True)
    assert first.item.prompt_id != second.item.prompt_id, "demonstrations of one id would share a prompt"
    assert second.item.media_texts == ("0.0 to 1.0:", "1.0 to 3.0:", "3.0 to 6.0:")
    assert "1.0 to 3.0 seconds" in second.item.note
    frames = [spec.max_frames for spec in second.item.media if isinstance(spec, VideoSpec)]
    assert frames == [2, 6, 4]
    assert first.response_ids.tolist() == second.response_ids.tolist()


@pytest.mark.parametrize(
    ("rounds", "earlier", "reason"),
    [
        (2, (EARLIER, EARLIER), r"no round follows its 2 earlier responses \(perception.rounds=2\)"),
        (1, (EARLIER,), r"no round follows its 1 earlier responses \(perception.rounds=1\): rounds used up"),
    ],
)
def test_a_response_to_a_round_that_is_never_asked_is_refused_by_its_line(
    config: RunConfig, rounds: int, earlier: tuple[str, ...], reason: str
) -> None:
    written(config, *earlier)
    perception = config.perception.model_copy(update={"rounds": rounds})
    with pytest.raises(ConfigError, match=r"responses.jsonl:2: .*" + reason):
        read_lessons(config.model_copy(update={"perception": perception}))


def test_earlier_responses_are_read_as_they_were_written(config: RunConfig) -> None:
    written(config, EARLIER)
    path = config.sft.responses
    assert path is not None
    assert [one.earlier for one in read_responses(path, training_items(config))] == [(), (EARLIER,)]


def test_headers_tell_of_a_clip_what_decoding_does(config: RunConfig) -> None:
    (spec,) = training_items(config)[0].media
    assert isinstance(spec, VideoSpec)
    planned, decoded = plan_clip(spec), decode(spec).info
    assert whole_clip(spec, planned) == whole_clip(spec, decoded)
    assert planned.times_s.tolist() == decoded.times_s.tolist()
    assert (planned.grid_thw, planned.num_bytes) == (decoded.grid_thw, decoded.num_bytes)
    assert planned.second_per_grid_s == decoded.second_per_grid_s

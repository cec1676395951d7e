"""Section `data`: one source or several, each with settings of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlsys.config.data import sources
from rlsys.config.run import ConfigError, RunConfig, field_lines, load, parse
from tests.support.paths import CONFIGS

TWO = [{"annotations": "a.json"}, {"annotations": "b.json", "format": "nextgqa"}]


def config(**data: Any) -> RunConfig:
    return parse({"output_dir": "out", "model": {"path": "m"}, "data": data}, source="test")


def test_one_file_is_one_source_with_the_settings_of_the_section() -> None:
    (only,) = sources(config(annotations="rows.json", videos="clips", fps=3.0).data)
    assert (only.name, only.annotations, only.videos) == ("rows", Path("rows.json"), Path("clips"))
    assert (only.data.fps, only.weight, only.task) == (3.0, None, None)
    assert sources(config().data) == ()


def test_a_source_has_its_own_settings_and_otherwise_those_of_the_section() -> None:
    own = {"annotations": "b.json", "videos": "b", "format": "nextgqa", "fps": 1.0, "think": False, "weight": 2}
    given = config(videos="clips", fps=4.0, max_frames=64, sources=[{**TWO[0], "weight": 1}, own])
    first, second = sources(given.data)
    assert (first.videos, first.data.format, first.data.fps) == (Path("clips"), "charades_sta", 4.0)
    assert (first.data.think, first.data.max_frames, first.weight) == (True, 64, 1.0)
    assert (second.videos, second.data.format, second.data.fps, second.data.think) == (Path("b"), "nextgqa", 1.0, False)
    assert (second.data.max_frames, second.weight, second.data.sources) == (64, 2.0, ())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"annotations": "a.json", "sources": TWO}, "data.annotations=a.json and data.sources are both given"),
        ({"sources": [TWO[0], {"annotations": "x/a.json"}]}, "data.sources.0 (a.json) and data.sources.1 (x/a.json)"),
        ({"sources": [TWO[0], {"annotations": "A.json"}]}, "give one of them another `name`"),
        ({"sources": [{**TWO[0], "weight": 1}, TWO[1]]}, "data.sources.1 (b) has no weight"),
        ({"sources": [{**TWO[0], "weight": 0}]}, "data.sources.0.weight: Input should be greater than 0"),
        ({"sources": [{**TWO[0], "max_frames": 7}]}, "data.sources.0.max_frames=7: models merge frames in pairs"),
        ({"max_frames": 8, "sources": [{**TWO[0], "min_frames": 10}]}, "data.sources.0.min_frames=10 is above"),
        ({"sources": [{**TWO[0], "min_pixels": 10**6}]}, "data.sources.0.min_pixels=1000000 is above"),
        ({"sources": [{**TWO[0], "from_step": 4, "until_step": 4}]}, "until_step=4 is not above from_step=4"),
        ({"sources": [{**TWO[0], "from_step": 2}, {**TWO[1], "from_step": 3}]}, "after 0 steps no source is used"),
        ({"sources": [{**TWO[0], "until_step": 2}, {**TWO[1], "until_step": 5}]}, "after 5 steps no source is used"),
        ({"sources": [{**TWO[0], "until_step": 2}, {**TWO[1], "from_step": 3}]}, "after 2 steps no source is used"),
        ({"sources": [{"videos": "x"}]}, "data.sources.0.annotations: is required; set it"),
        ({"sources": [{**TWO[0], "colour": 1}]}, "data.sources.0.colour: unknown key"),
        ({"sources": [{**TWO[0], "think": "perhaps"}]}, "data.sources.0.think"),
        ({"sources": [{**TWO[0], "fps": True}]}, "data.sources.0.fps: expected a number"),
        ({"pass_rate": {"min": 0.8, "max": 0.2}}, "data.pass_rate.min=0.8 is above data.pass_rate.max=0.2"),
    ],
)
def test_what_sources_contradict_is_one_sentence_with_the_remedy(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(videos="clips", **data)
    assert says in str(error.value)


def test_a_source_without_videos_is_named_when_its_rows_are_read() -> None:
    with pytest.raises(ConfigError, match=r"data.sources.0.videos and data.videos are not set"):
        sources(config(sources=TWO).data)
    with pytest.raises(ConfigError, match=r"^data.videos is not set"):
        sources(config(annotations="a.json").data)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        "output_dir: out\nmodel: {path: m}\n"
        "data: {videos: v, sources: [{annotations: a.json, weight: 1}, {annotations: b.json, weight: 1}]}\n"
    )
    return path


def test_an_entry_of_a_list_is_overridden_by_its_number(file: Path) -> None:
    given = load(file, ["data.sources.1.weight=3", "data.sources.0.fps=1"]).data.sources
    assert [(one.weight, one.fps) for one in given] == [(1.0, 1.0), (3.0, None)]
    added = load(file, ["data.sources.2={annotations: c.json, weight: 2}"]).data.sources
    assert [one.annotations.name for one in added] == ["a.json", "b.json", "c.json"]


def test_a_list_can_be_given_entry_by_entry(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: out\nmodel: {path: m}\ndata: {videos: v}\n")
    given = ["data.sources.0.annotations=a.json", "data.sources.1.annotations=b.json", "data.sources.0.name=x"]
    assert [one.name for one in sources(load(path, given).data)] == ["x", "b"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.sources.3.weight=1", "3 is no entry of a list of 2; entries are counted from 0, and 2 adds one"),
        ("data.sources.-1.weight=1", "-1 is no entry"),
        ("data.sources.last.weight=1", "last is no entry"),
        ("data.sources.0.weight.x=1", "weight is a value, not a section"),
        ("data.videos.0=1", "videos is a value, not a section"),
    ],
)
def test_an_entry_that_does_not_exist_is_an_error(file: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(file, [override])
    assert says in str(error.value)


def test_the_keys_of_a_source_are_listed() -> None:
    lines = "\n".join(field_lines())
    assert "data.sources.N.weight = None  # Share of prompts" in lines
    assert "data.pass_rate.min = 0.0" in lines


def test_epochs_and_steps_are_not_given_together() -> None:
    def train(**settings: Any) -> RunConfig:
        return parse({"output_dir": "o", "model": {"path": "m"}, "train": settings}, source="test")

    assert train(epochs=1.5).train.epochs == 1.5
    assert train(epochs=None, num_steps=3).train.num_steps == 3
    with pytest.raises(ConfigError, match="train.epochs=2 and train.num_steps=3 are both given"):
        train(epochs=2, num_steps=3)
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        train(epochs=0)


def test_the_joint_config_of_videochat_r1_has_three_sources_in_one_epoch() -> None:
    joint = load(CONFIGS / "videochat_r1_joint.yaml")
    found = sources(joint.data)
    assert [(one.name, one.data.format, one.rows_per_video) for one in found] == [
        ("charades_sta", "charades_sta", 1),
        ("nextgqa", "nextgqa", 0),
        ("got10k", "got10k", 0),
    ]
    assert all(one.weight is None and one.data.total_pixels == joint.data.total_pixels for one in found)
    assert (joint.train.epochs, joint.train.prompts_per_step, joint.rollout.group_size) == (1, 16, 8)

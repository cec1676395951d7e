"""A resume with another model, other data or other group sizes is noticed."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsys.config.run import ConfigError, RunConfig, parse
from rlsys.runs.inputs.identity import (
    changed_settings,
    changes,
    evaluation_identity,
    identity,
    model_digest,
    require_same,
)
from rlsys.runs.sft import responses_identity
from rlsys.runs.supervised import Demonstration
from rlsys.types import ImageSpec, PromptItem, VideoSpec
from tests.support.factories import make_item
from tests.support.video_files import make_spec

ITEMS = [make_item(f"rows:{index}") for index in range(3)]


def config(model: Path, **sections: Any) -> RunConfig:
    return parse({"output_dir": "runs/x", "model": {"path": str(model)}, **sections}, source="test")


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("identity") / "model"))


def test_a_run_is_itself_wherever_its_model_lies(model: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(model, tmp_path / "moved"))
    assert not changes(identity(config(model), ITEMS), identity(config(moved), ITEMS))


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"rollout": {"group_size": 4}}, "rollout.group_size"),
        ({"learner": {"frozen_parts": ["vision_tower"]}}, "learner.frozen_parts"),
        ({"learner": {"lora": {"rank": 4}}}, "learner.lora"),
        ({"data": {"think": False}}, "data.think"),
        ({"perception": {"rounds": 2}}, "perception"),
        ({"tracking": {"experiment": "another"}}, "tracking.experiment"),
    ],
)
def test_each_part_is_named_and_refused_unless_allowed(model: Path, sections: dict[str, Any], named: str) -> None:
    before, now = identity(config(model), ITEMS), identity(config(model, **sections), ITEMS)
    with pytest.raises(ConfigError, match=named):
        require_same(before, now, allow_changes=False)
    (line,) = require_same(before, now, allow_changes=True)
    assert named in line
    assert not require_same(before, before, allow_changes=False)


def test_other_rows_and_other_truths_are_other_data(model: Path) -> None:
    before = identity(config(model), ITEMS)
    for items in (ITEMS[:2], [replace(ITEMS[0], truth=[0.0, 9.0]), *ITEMS[1:]], [*ITEMS[1:], ITEMS[0]]):
        (line,) = changes(before, identity(config(model), items))
        assert line.startswith("training data")


def test_videos_may_lie_in_another_folder_but_not_be_others(model: Path) -> None:
    here, moved, other = ([replace(ITEMS[0], media=(make_spec(uri),))] for uri in ("/a/1.mp4", "/b/1.mp4", "/a/2.mp4"))
    before = identity(config(model), here)
    assert not changes(before, identity(config(model), moved))
    assert changes(before, identity(config(model), other))


def test_rows_of_an_older_run_are_the_same_data_and_other_patches_are_not(model: Path) -> None:
    spec = VideoSpec(
        uri="x/a.mp4", fps=2.0, min_frames=4, max_frames=12, min_pixels=784, max_pixels=7056, total_pixels=10**6
    )
    rows = [replace(make_item("a:1"), media=(spec, ImageSpec(uri="b.png", min_pixels=784, max_pixels=784)))]
    before = identity(config(model), rows)
    # as written before specs had patches
    assert before["training data (rows, truths, frame and pixel budgets)"] == "1 rows, 588d80314ce0b508"
    assert changes(before, identity(config(model), [replace(rows[0], media=(replace(spec, patch_px=16),))]))


def test_lists_of_images_may_lie_in_another_folder_but_not_be_in_another_order(model: Path) -> None:
    def rows(*files: str) -> list[PromptItem]:
        return [replace(ITEMS[0], media=(make_spec(files[0], files=files),))]

    before = identity(config(model), rows("/a/1.png", "/a/2.png"))
    assert not changes(before, identity(config(model), rows("/b/1.png", "/b/2.png")))
    assert changes(before, identity(config(model), rows("/a/1.png", "/a/2.png", "/a/3.png")))
    assert changes(before, identity(config(model), rows("/a/1.png", "/a/3.png")))


def test_learning_rates_and_numbers_of_actors_may_change(model: Path) -> None:
    other = config(model, train={"learning_rate": 5e-6, "num_steps": 99}, rollout={"num_actors": 7})
    assert not changes(identity(config(model), ITEMS), identity(other, ITEMS))
    lines = list(changed_settings(config(model).model_dump(mode="json"), other.model_dump(mode="json")))
    assert [line.split(":")[0] for line in lines] == ["rollout.num_actors", "train.learning_rate", "train.num_steps"]
    assert lines[1].endswith("-> 5e-06")


def test_another_base_model_has_another_digest(model: Path, tmp_path: Path) -> None:
    for file, at in (("model.safetensors", 9), ("model.safetensors", -3), ("tokenizer.json", 5), ("config.json", 4)):
        other = Path(shutil.copytree(model, tmp_path / f"{file}{at}"))
        data = bytearray((other / file).read_bytes())
        data[at] ^= 1
        (other / file).write_bytes(data)
        assert model_digest(other) != model_digest(model), file


def test_what_later_rounds_show_is_part_of_a_run_of_several_rounds_and_their_weights_are_not(model: Path) -> None:
    def of(**perception: Any) -> Any:
        return identity(config(model, perception=perception), ITEMS)

    assert not changes(of(rounds=1), of(rounds=1, turn="zoom", margin=0.3))
    assert not changes(of(rounds=2), of(rounds=2, clue_coef=0.1, improvement_coef=0.1))
    for other in ({"turn": "zoom"}, {"margin": 0.3}, {"carry": "clue_and_answer"}, {"stop": ["clue_stable"]}):
        (line,) = changes(of(rounds=2), of(rounds=2, **other))
        assert "perception" in line


def test_a_run_whose_start_did_not_record_a_part_is_not_refused_for_it(model: Path) -> None:
    before = dict(identity(config(model), ITEMS))
    del before["what later rounds show (perception)"]
    assert not require_same(before, identity(config(model, perception={"rounds": 2}), ITEMS), allow_changes=False)


def test_other_imitated_responses_are_another_run() -> None:
    def of(*ids: int) -> Any:
        one = Demonstration(item=ITEMS[0], response_ids=np.array(ids, np.int32), where="rows:0", is_later=False)
        return responses_identity([one])

    assert not changes(of(1, 2), of(1, 2))
    (line,) = changes(of(1, 2), of(1, 3))
    assert "sft.responses" in line


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"answers": {"reading": "lenient"}}, "answers.reading: was paper, is lenient"),
        ({"perception": {"rounds": 2}}, "perception"),
        ({"data": {"prompt_style": "terse"}}, "data.prompt_style"),
        ({"reward": {"weights": {"temporal_grounding": {"iou": 2.0}}}}, "reward.weights"),
        ({"reward": {"settings": {"recall_tiers": [[0.5, 1.0]]}}}, "reward.settings"),
        ({"reward": {"judge": {"urls": ["http://h/v1"], "model": "m"}}}, "judge .*was sentence embeddings.*is m"),
        ({"evaluation": {"num_samples": 4}}, "evaluation.num_samples: was 1, is 4"),
        ({"rollout": {"max_tokens": 99}}, "rollout.max_tokens"),
        ({"seed": 3}, "seed"),
    ],
)
def test_what_held_out_figures_depend_on_is_named(model: Path, sections: dict[str, Any], named: str) -> None:
    before = evaluation_identity(config(model), ITEMS)
    (line,) = changes(before, evaluation_identity(config(model, **sections), ITEMS))
    assert re.search(named, line)
    others = {"reward": {"timeout_s": 9.0, "judge": {"max_attempts": 2}}, "train": {"learning_rate": 1e-5}}
    assert not changes(before, evaluation_identity(config(model, **others), ITEMS))
    assert changes(before, evaluation_identity(config(model), ITEMS[:2])), "other rows"

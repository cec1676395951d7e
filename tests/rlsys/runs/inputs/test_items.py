"""The rows of all sources, the number of steps of their epochs, and what a run records of each source."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.data import sources
from rlsys.config.run import ConfigError, RunConfig, load, parse
from rlsys.loop.collect import Collected
from rlsys.loop.parts import Step
from rlsys.loop.state import RunState
from rlsys.runs.check import check
from rlsys.runs.inputs.identity import changes, identity
from rlsys.runs.inputs.items import order_of, read_rows, training_items, with_num_steps
from rlsys.runs.inputs.source_metrics import SourceMetrics
from tests.support.factories import batch_of, make_group, make_scored
from tests.support.paths import CONFIGS
from tests.support.video_files import shared_data


def charades(folder: Path, name: str, num_rows: int, *, num_dirty: int = 0) -> Path:
    spans = [[0.0, 2.0]] * num_rows + [[5.0, 5.0]] * num_dirty
    entry = {"duration": 9.0, "timestamps": spans, "sentences": [f"sentence {n}" for n in range(len(spans))]}
    (folder / f"{name}.json").write_text(json.dumps({"clip": entry}))
    (folder / "clip.mp4").touch()
    return folder / f"{name}.json"


def config(folder: Path, model: Path | str = "m", **sections: Any) -> RunConfig:
    data = {"videos": str(folder), **sections.pop("data", {})}
    tree = {"output_dir": str(folder / "run"), "model": {"path": str(model)}, "data": data, **sections}
    return parse(tree, source="test")


@pytest.fixture
def two(tmp_path: Path) -> list[dict[str, Any]]:
    return [
        {"annotations": str(charades(tmp_path, "long", 6, num_dirty=2)), "fps": 1.0, "think": False},
        {"annotations": str(charades(tmp_path, "short", 2)), "name": "brief"},
    ]


def test_the_rows_of_all_sources_are_read_with_the_settings_of_each(tmp_path: Path, two: list[dict[str, Any]]) -> None:
    rows = read_rows(config(tmp_path, data={"sources": two}))
    assert [item.prompt_id for item in rows.training] == [
        *(f"long:clip/{n}" for n in range(6)),
        "brief:clip/0",
        "brief:clip/1",
    ]
    assert [(item.media[0].fps, item.think) for item in rows.training[5:7]] == [(1.0, False), (2.0, True)]
    assert {path.name: len(dirty) for path, dirty in rows.dirty.items()} == {"long.json": 2, "short.json": 0}
    assert len(rows.tables()["dirty_rows"]) == 2


def test_media_are_cut_for_the_patches_of_the_model_in_use(tmp_path: Path, tiny_model_dir: Path) -> None:
    given = config(tmp_path, tiny_model_dir, data={"annotations": str(charades(tmp_path, "rows", 2))})
    found = {item.media[0].patch_px for item in training_items(given)}
    copied = shutil.copytree(tiny_model_dir, tmp_path / "other")
    tree = json.loads((copied / "config.json").read_text())
    tree["vision_config"]["patch_size"] = 16
    (copied / "config.json").write_text(json.dumps(tree))
    other = config(tmp_path, copied, data={"annotations": str(tmp_path / "rows.json")})
    assert (found, {item.media[0].patch_px for item in training_items(other)}) == ({14}, {16})


def test_limits_below_one_visual_token_of_the_model_are_problems(
    tmp_path: Path, qwen3_vl_dirs: Mapping[str, Path]
) -> None:
    limits = {"min_frames": 2, "min_pixels": 784, "max_pixels": 1023, "total_pixels": 2047}
    data = {"annotations": str(charades(tmp_path, "rows", 2)), **limits}
    found = [one for one in check(config(tmp_path, qwen3_vl_dirs["tiny"], data=data)).problems if "visual token" in one]
    assert [one.partition(" pixels")[0] for one in found] == [
        "data.max_pixels = 1023",
        "data.total_pixels / data.min_frames = 1023",
    ]
    enough = {**data, "max_pixels": 1024, "total_pixels": 2048}
    assert "visual token" not in str(check(config(tmp_path, qwen3_vl_dirs["tiny"], data=enough)).problems)


def test_limits_that_the_only_size_of_frames_does_not_keep_are_problems(
    tmp_path: Path, internvl_dirs: Mapping[str, Path]
) -> None:
    limits = {"min_frames": 2, "max_frames": 4, "min_pixels": 784, "max_pixels": 3135, "total_pixels": 6271}
    data = {"annotations": str(charades(tmp_path, "rows", 2)), **limits}
    found = [one for one in check(config(tmp_path, internvl_dirs["tiny"], data=data)).problems if "every frame" in one]
    assert [one.partition(" pixels")[0] for one in found] == [
        "data.max_pixels = 3135",
        "data.total_pixels / data.min_frames = 3135",
    ]
    larger = {**data, "min_pixels": 3137, "max_pixels": 3137, "total_pixels": 6274}
    (problem,) = [
        one for one in check(config(tmp_path, internvl_dirs["tiny"], data=larger)).problems if "every frame" in one
    ]
    assert problem.startswith("data.min_pixels = 3137 pixels, but every frame of")
    enough = {**data, "max_pixels": 3136, "total_pixels": 6272}
    given = config(tmp_path, internvl_dirs["tiny"], data=enough)
    assert "every frame" not in str(check(given).problems)
    (spec,) = training_items(given)[0].media
    assert (spec.patch_px, spec.patch_frames, spec.side_px) == (14, 1, 56)


def test_the_only_source_of_a_list_is_the_file_in_its_short_form(tmp_path: Path) -> None:
    file = str(charades(tmp_path, "rows", 5))
    short, listed = (
        config(tmp_path, data={"annotations": file}),
        config(tmp_path, data={"sources": [{"annotations": file}]}),
    )
    assert [item.prompt_id for item in training_items(short)] == [item.prompt_id for item in training_items(listed)]
    orders = [order_of(one, training_items(one)) for one in (short, listed)]
    assert [orders[0].index_at(n) for n in range(12)] == [orders[1].index_at(n) for n in range(12)]


@pytest.mark.parametrize(("epochs", "num_steps"), [(1, 3), (1.5, 4), (0.1, 1), (3, 8)])
def test_epochs_are_as_many_steps_as_reach_every_row(
    tmp_path: Path, two: list[dict[str, Any]], epochs: float, num_steps: int
) -> None:
    given = config(tmp_path, data={"sources": two}, train={"epochs": epochs, "prompts_per_step": 3})
    found = with_num_steps(given, lambda whole: len(training_items(whole)))
    assert (found.train.num_steps, found.train.epochs) == (num_steps, None)
    assert parse(found.model_dump(mode="json"), source="run.json") == found
    fixed = config(tmp_path, data={"sources": two}, train={"num_steps": 7})
    assert with_num_steps(fixed, lambda whole: pytest.fail("the rows need not be read")) is fixed


def test_a_check_reports_what_is_taken_of_each_source(
    tmp_path: Path, two: list[dict[str, Any]], tiny_model_dir: Path
) -> None:
    weighted = [{**one, "weight": weight} for one, weight in zip(two, (1, 3), strict=True)]
    given = config(tmp_path, tiny_model_dir, data={"sources": weighted}, train={"num_steps": 4, "prompts_per_step": 4})
    facts = check(given).facts
    assert "long: 6 rows, 25.0% of the prompts, 0.67 epochs" in facts
    assert "brief: 2 rows, 75.0% of the prompts, 6.00 epochs" in facts


def test_a_source_without_a_usable_row_is_named(tmp_path: Path, two: list[dict[str, Any]]) -> None:
    none = {"annotations": str(charades(tmp_path, "none", 0, num_dirty=3))}
    with pytest.raises(ConfigError, match=r"none\.json: no usable row"):
        training_items(config(tmp_path, data={"sources": [*two, none]}))
    with pytest.raises(ConfigError, match=r"list several files in data\.sources"):
        training_items(config(tmp_path))


def test_what_decides_the_order_of_several_sources_is_part_of_a_run(
    tmp_path: Path, two: list[dict[str, Any]], tiny_model_dir: Path
) -> None:
    def of(data: dict[str, Any], **sections: Any) -> Any:
        one = config(tmp_path, tiny_model_dir, data=data, **sections)
        return identity(one, training_items(one))

    before = of({"sources": two})
    assert "mixture (data.sources)" in before
    weighted = of({"sources": [{**one, "weight": 1} for one in two]})
    (line,) = changes(before, weighted)
    assert line.startswith("mixture (data.sources): was long by rows")
    thinking = of({"sources": [{**two[0], "think": True}, two[1]]})
    assert [line.partition(":")[0] for line in changes(before, thinking)] == ["prompts (data.think, data.prompt_style)"]
    assert not changes(before, of({"sources": two}, train={"prompts_per_step": 8}))
    staged = [two[0], {**two[1], "from_step": 2}]
    assert changes(of({"sources": staged}), of({"sources": staged}, train={"prompts_per_step": 8}))


def test_rewards_rows_and_epochs_are_recorded_by_source(tmp_path: Path, two: list[dict[str, Any]]) -> None:
    given = config(tmp_path, data={"sources": [{**one, "weight": 1} for one in two]})
    items = training_items(given)
    order = order_of(given, items)
    groups = [make_group(items[order.index_at(n)].prompt_id) for n in range(3)]
    scored = tuple(
        make_scored(replace(group, item=items[order.index_at(n)]), [float(n)] * 4) for n, group in enumerate(groups)
    )
    step = Step(
        state=RunState(step=1, prompts_consumed=3, seed=0, mlflow_run_id="", weights_digest=""),
        collected=Collected(
            prompt_indices=(0, 1, 2), groups=scored, replaced_indices=(), replaced=(), skipped=(), num_stale=0
        ),
        batch=batch_of(scored, given.reward),
        shaping_metrics={},
        learner_metrics={},
        seconds={},
    )
    assert SourceMetrics(sources(given.data), items, order).of(step) == {
        "data/by_source/long/rows": 2.0,
        "data/by_source/long/drawn": 2.0,
        "data/by_source/long/epochs": 2 / 6,
        "reward/by_source/long/mean": 1.0,
        "data/by_source/brief/rows": 1.0,
        "data/by_source/brief/drawn": 1.0,
        "data/by_source/brief/epochs": 0.5,
        "reward/by_source/brief/mean": 1.0,
    }
    assert SourceMetrics(sources(given.data)[:1], items, order).of(step) == {}


@pytest.mark.slow
def test_the_joint_config_reads_the_published_files_row_by_row(tmp_path: Path) -> None:
    """With GOT-10k's validation file in place of its training file, which has the same shape."""
    overrides = []
    for number, (name, key) in enumerate(
        {"charades_sta_train": "", "nextgqa_val": "video", "got10k_val": "path"}.items()
    ):
        file, videos = shared_data("annotations", f"{name}.json"), tmp_path / name
        videos.mkdir()
        tree = json.loads(file.read_text())
        for row in tree:
            place = videos / (row if isinstance(row, str) else str(row[key])).rsplit("/", 1)[-1]
            if key == "path":
                place.mkdir(exist_ok=True)
            else:
                place.with_name(f"{place.name}.mp4").touch()
        overrides += [f"data.sources.{number}.annotations={file}", f"data.sources.{number}.videos={videos}"]
    joint = load(CONFIGS / "videochat_r1_joint.yaml", overrides)
    items = training_items(joint)
    counts = Counter(item.source for item in items)
    assert counts == {"charades_sta": 5336, "nextgqa": 3358, "got10k": 180}
    assert {(item.source, item.task) for item in items} == {
        ("charades_sta", "temporal_grounding"),
        ("nextgqa", "grounded_qa"),
        ("got10k", "tracking"),
    }
    steps = with_num_steps(joint, lambda whole: len(items)).train.num_steps
    assert steps == -(-len(items) // 16) == 555
    assert order_of(joint, items).prompts_by_source(len(items)) == list(counts.values())
    every = load(CONFIGS / "videochat_r1_joint.yaml", [*overrides, "data.sources.0.rows_per_video=0"])
    assert len(training_items(every)) == 12404 + 3358 + 180
    shares = [f"data.sources.{number}.weight={weight}" for number, weight in enumerate((2, 1, 1))]
    weighted = load(CONFIGS / "videochat_r1_joint.yaml", [*overrides, *shares])
    assert order_of(weighted, items).prompts_by_source(8000) == [4000, 2000, 2000]

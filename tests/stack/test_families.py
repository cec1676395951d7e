"""`rlsys eval` of further families, and a model with experts and a head of its own: trained, exported, trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlsys.demo.synthetic import SyntheticSet, draw_dataset
from rlsys.weights.tensors import HEAD, embedding_name
from tests.stack.test_end_to_end import rlsys
from tests.support.plain_reward_server import SCORERS, plain_reward_server

pytestmark = pytest.mark.stack
NUM_CLIPS = 3
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return draw_dataset(tmp_path_factory.mktemp("clips"), num_clips=NUM_CLIPS, seed=3)


def command(name: str, model: Path, out: Path, clips: SyntheticSet, **more: object) -> list[str]:
    sets = [{"name": "rows", "annotations": str(clips.annotations), "videos": str(clips.videos)}]
    settings = {
        "output_dir": out,
        "model.path": model,
        "data.annotations": clips.annotations,
        "data.videos": clips.videos,
        "data.decode_workers": 1,
        "rollout": "{num_actors: 1, group_size: 4, max_tokens: 12}",
        "evaluation.sets": json.dumps(sets),
        "evaluation.controls": "[]",
        "evaluation.page_rows": 1,
        **more,
    }
    return [name, "configs/demo.yaml", *(f"{key}={value}" for key, value in settings.items())]


def evaluated(model: Path, out: Path, clips: SyntheticSet) -> list[dict[str, Any]]:
    """Evaluate a model and return its answers."""
    result = rlsys(*command("eval", model, out, clips))
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((out / "evaluation" / "results.json").read_text())
    assert [one["name"] for one in found["sets"]] == ["rows"]
    lines = (out / "evaluation" / "answers" / "rows" / "greedy.jsonl").read_text().splitlines()[1:]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "dirs",
    [
        "qwen3_vl_dirs",
        *(pytest.param(f"{name}_dirs", marks=pytest.mark.long) for name in ("qwen2_vl", "internvl", "qwen3_5")),
    ],
)
def test_a_model_of_another_family_is_evaluated(
    dirs: str, request: pytest.FixtureRequest, tmp_path: Path, clips: SyntheticSet
) -> None:
    answers = evaluated(request.getfixturevalue(dirs)["tiny"], tmp_path, clips)
    assert len(answers) == 2 * NUM_CLIPS  # two objects a clip


@pytest.fixture(scope="module")
def untied(qwen3_vl_moe_dirs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with experts, and a head of its own, as the published ones have."""
    folder = Path(shutil.copytree(qwen3_vl_moe_dirs["tiny"], tmp_path_factory.mktemp("untied") / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    shape = tensors[str(embedding_name(tensors))].shape
    tensors[HEAD] = (0.08 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def trained(model: Path, out: Path, clips: SyntheticSet, **more: object) -> Path:
    """Train two steps and return the exported model."""
    settings = {"train.num_steps": 2, "train.prompts_per_step": 2, "learner.num_ranks": 1, "checkpoint.every_steps": 2}
    settings |= {"train.learning_rate": 1e-2, "train.warmup_steps": 0, "reward.scorers": json.dumps(SCORERS)}
    # it tells random answers apart
    settings |= {"reward.weights": json.dumps({"temporal_grounding": {"checksum": 1.0}})}
    with plain_reward_server() as url:
        result = rlsys(*command("train", model, out, clips, **{"reward.url": url}, **settings, **more))
    assert result.returncode == 0, result.stdout + result.stderr
    return Path(json.loads((out / "summary.json").read_text())["model"])


def changed(before: Path, after: Path) -> set[str]:
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert {name: one.shape for name, one in old.items()} == {name: one.shape for name, one in new.items()}
    return {name for name in old if not np.array_equal(old[name], new[name])}


@pytest.mark.long
def test_the_export_of_an_untied_model_with_experts_trains_on_with_adapters_and_is_evaluated(
    untied: Path, tmp_path: Path, clips: SyntheticSet
) -> None:
    whole = trained(untied, tmp_path / "whole", clips)
    found = changed(untied, whole)
    assert HEAD in found and any(".experts.gate_up_proj" in name for name in found)
    # with adapters, which engines on CPU are sent merged into whole models
    lora = {"learner.lora.rank": 4, "learner.lora.targets": json.dumps(ATTENTION)}
    merged = trained(whole, tmp_path / "lora", clips, **lora)
    assert {name.split(".")[-2] for name in changed(whole, merged)} == set(ATTENTION)
    assert len(evaluated(merged, tmp_path / "eval", clips)) == 2 * NUM_CLIPS

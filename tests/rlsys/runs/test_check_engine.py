"""What an engine would refuse: the same that vLLM itself refuses, for every family and other sizes of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.run import ConfigError, parse
from rlsys.models.parallel import tensor_parallel_problem
from rlsys.planning.plan import assumptions
from rlsys.planning.plan_times import Measured
from rlsys.runs.check_engine import engine_problems
from rlsys.runs.plan_inputs import plan
from tests.support.pace import patience
from tests.support.paths import REPO

HEADS = {"num_attention_heads": 12, "num_key_value_heads": 3}
NARROW = {"intermediate_size": 252}
TOWER = {"num_heads": 6, "embed_dim": 96, "intermediate_size": 132}
EXPERTS = {"num_experts": 6, "moe_intermediate_size": 144}
LINEAR = {"linear_num_key_heads": 3, "linear_num_value_heads": 6}


def changed(source: Path, folder: Path, text: Mapping[str, int], vision: Mapping[str, int]) -> Path:
    """Return a copy of a model's folder with other sizes in its config, of the keys that it has, and no weights."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    file = folder / "config.json"
    tree: dict[str, Any] = json.loads(file.read_text())
    language, tower = tree.get("text_config", tree), tree["vision_config"]
    if "num_attention_heads" in text and not language.get("head_dim"):
        size = language["hidden_size"] // language["num_attention_heads"]
        language["hidden_size"] = size * text["num_attention_heads"]
        out = "hidden_size" if "embed_dim" in tower else "out_hidden_size"
        tower |= {out: language["hidden_size"]} if out in tower else {}
    language |= {key: value for key, value in text.items() if key in language}
    if "num_heads" in tower and "embed_dim" not in tower and "embed_dim" in vision:
        tower["hidden_size"] = vision["embed_dim"]
    tower |= {key: value for key, value in vision.items() if key in tower}
    file.write_text(json.dumps(tree))
    return folder


@pytest.mark.stack
def test_vllm_builds_and_holds_exactly_what_is_said_of_every_family(
    tiny_dirs_by_family: Mapping[str, Path], tmp_path: Path
) -> None:
    folders = []
    for family, source in tiny_dirs_by_family.items():
        variants: list[tuple[Mapping[str, int], Mapping[str, int]]] = [
            ({}, {}),
            (HEADS, {}),
            (HEADS | NARROW, {}),
            ({}, TOWER),
        ]
        variants += [(EXPERTS, {})] if "moe" in family else [(LINEAR, {})] if family == "qwen3_5" else []
        folders += [
            changed(source, tmp_path / f"{family}_{index}", text, vision)
            for index, (text, vision) in enumerate(variants)
        ]
    command = [sys.executable, "-m", "tests.support.vllm_models_probe", *map(str, folders)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=patience(600.0))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert min(found["num_built"], found["num_refused"]) > len(folders)
    assert found["num_caches"] == 8 * len(folders)


def test_workers_that_cannot_share_a_model_are_a_problem_that_names_the_numbers_that_can(tiny_model_dir: Path) -> None:
    assert tensor_parallel_problem(tiny_model_dir, 4) is None
    problem = tensor_parallel_problem(tiny_model_dir, 3)
    assert problem == (
        "rollout.tensor_parallel_size=3: the workers of an engine share each layer of the model equally, and "
        f"{tiny_model_dir} has 4 attention heads; set it to 1 or 2 or 4."
    )


def config(model: Path, **sections: dict[str, object]) -> Any:
    tree = {"output_dir": "out", "model": {"path": str(model), "dtype": "float32", "max_model_len": 2048}}
    return parse({**tree, "train": {"prompts_per_step": 8}, **sections}, source="test")


def test_check_config_and_plan_refuse_such_workers(tiny_model_dir: Path) -> None:
    def of(size: int) -> list[str]:
        found = config(tiny_model_dir, cluster={"device": "cuda"}, rollout={"tensor_parallel_size": size})
        return list(engine_problems(found))

    assert of(2) == []
    (problem,) = of(8)
    assert problem.startswith("rollout.tensor_parallel_size=8: ")
    planned = config(tiny_model_dir, cluster={"device": "cuda"}, rollout={"tensor_parallel_size": 8})
    assert problem in [
        one for section in plan(planned, assumptions("cuda", ()), Measured()) for one in section.problems
    ]


def test_no_more_responses_are_asked_at_once_than_an_engine_generates(tiny_model_dir: Path) -> None:
    rollout: dict[str, object] = {"group_size": 4, "max_num_seqs": 4, "shuffled_group_size": 5}
    reward = {"weights": {"temporal_grounding": {"iou": 1.0, "order_contrast": 1.0}}}
    with pytest.raises(ConfigError, match=r"rollout.shuffled_group_size=5 is above rollout.max_num_seqs=4"):
        config(tiny_model_dir, rollout=rollout, reward=reward)
    rollout = {"group_size": 4, "max_num_seqs": 4}
    unused, used = {"num_samples": 5}, {"num_samples": 5, "annotations": "rows.json"}
    assert list(engine_problems(config(tiny_model_dir, rollout=rollout, evaluation=unused))) == []
    (problem,) = engine_problems(config(tiny_model_dir, rollout=rollout, evaluation=used))
    assert problem.startswith("evaluation.num_samples=5 is above rollout.max_num_seqs=4")

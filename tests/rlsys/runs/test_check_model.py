"""What a model folder does not allow, found before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlsys.config.run import parse
from rlsys.demo.synthetic import draw_dataset
from rlsys.runs.check import check


def problems(folder: Path, model_path: Path, **sections: dict[str, object]) -> list[str]:
    """Return what `rlsys check-config` says of a run with one clip. sections: keys beside those that it needs."""
    clips = draw_dataset(folder / "clips", num_clips=1, seed=0)
    tree = {
        "output_dir": str(folder / "out"),
        "data": {"annotations": str(clips.annotations), "videos": str(clips.videos)},
        "train": {"prompts_per_step": 1, "num_steps": 1},
        **sections,
        "model": {"path": str(model_path), "dtype": "float32", "max_model_len": 8192, **sections.get("model", {})},
    }
    return check(parse(tree, source="test")).problems


def test_heads_that_the_ranks_of_a_sequence_group_cannot_share_are_a_problem(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    def of_ranks(number: int) -> list[str]:
        learner = {"num_ranks": number, "sequence_parallel": number}
        found = problems(tmp_path / str(number), tiny_model_dir, learner=learner)
        return [one for one in found if "sequence_parallel" in one]

    assert not of_ranks(4)
    (problem,) = of_ranks(8)
    assert problem.endswith("and the model has 4; set it to one of 1, 2, 4.")


def test_linear_attention_in_bfloat16_is_a_problem_on_a_cpu_only(
    tmp_path: Path, tiny_model_dir: Path, qwen3_5_dirs: Mapping[str, Path]
) -> None:
    def of(model: Path, dtype: str) -> list[str]:
        found = problems(tmp_path / f"{model.name}_{dtype}", model, model={"dtype": dtype}, cluster={"device": "cpu"})
        return [one for one in found if one.startswith("model.dtype")]

    assert not of(qwen3_5_dirs["bench"], "float32")
    assert not of(tiny_model_dir, "bfloat16")
    (problem,) = of(qwen3_5_dirs["bench"], "bfloat16")
    assert "which has linear attention" in problem
    assert problem.endswith("set it to float32.")

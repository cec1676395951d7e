"""Attention heads that ranks cannot share, found from a model folder before anything starts."""

from __future__ import annotations

from pathlib import Path

from rlsys.config.run import parse
from rlsys.demo.synthetic import draw_dataset
from rlsys.runs.check import check


def test_heads_that_the_ranks_of_a_sequence_group_cannot_share_are_a_problem(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    clips = draw_dataset(tmp_path / "clips", num_clips=1, seed=0)

    def problems(sequence_parallel: int) -> list[str]:
        run = parse(
            {
                "output_dir": str(tmp_path / "out"),
                "model": {"path": str(tiny_model_dir), "dtype": "float32", "max_model_len": 8192},
                "data": {"annotations": str(clips.annotations), "videos": str(clips.videos)},
                "train": {"prompts_per_step": 1, "num_steps": 1},
                "learner": {"num_ranks": sequence_parallel, "sequence_parallel": sequence_parallel},
            },
            source="test",
        )
        return [one for one in check(run).problems if "sequence_parallel" in one]

    assert not problems(4)
    (problem,) = problems(8)
    assert problem.endswith("and the model has 4; set it to one of 1, 2, 4.")

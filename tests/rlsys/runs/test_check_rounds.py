"""The token budget of later rounds, from a model folder and rows alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlsys.config.run import RunConfig, parse
from rlsys.demo.synthetic import draw_dataset
from rlsys.runs.check import check, check_evaluation
from rlsys.runs.evaluating.answering import chosen_sets


def config(folder: Path, model: Path, max_model_len: int) -> RunConfig:
    clips = draw_dataset(folder / "clips", num_clips=1, seed=0)
    budgets = {"min_pixels": 784, "max_pixels": 3136, "total_pixels": 37632, "max_frames": 12, "prompt_style": "terse"}
    return parse(
        {
            "output_dir": str(folder / "out"),
            "model": {"path": str(model), "dtype": "float32", "max_model_len": max_model_len},
            "data": {**budgets, "videos": str(clips.videos)},
            "rollout": {"num_actors": 1, "max_tokens": 8},
            "evaluation": {"sets": [{"annotations": str(clips.annotations)}]},
            "perception": {"rounds": 2},
        },
        source="test",
    )


def test_a_later_round_that_does_not_fit_is_found_before_anything_starts(tmp_path: Path, tiny_model_dir: Path) -> None:
    roomy = config(tmp_path, tiny_model_dir, 1024)
    (fact,) = [one for one in check_evaluation(roomy, chosen_sets(roomy)).facts if "later round" in one]
    total = int(fact.split(" = ")[1].split()[0])
    (first,) = [
        one for one in check_evaluation(roomy, chosen_sets(roomy)).facts if one.startswith("longest possible prompt: ")
    ]
    assert int(first.split(" = ")[1].split()[0]) < total - 1, "segments need more text"
    tight = config(tmp_path, tiny_model_dir, total - 1)
    problems = check_evaluation(tight, chosen_sets(tight)).problems
    assert len(problems) == 1 and "a later round of 2 rows may not fit (lower perception.max_frames" in problems[0]
    with pytest.raises(Exception, match="may not fit"):
        check_evaluation(tight, chosen_sets(tight)).raise_problems()


def with_training(shown: RunConfig, **data: object) -> RunConfig:
    return shown.model_copy(update={"data": shown.data.model_copy(update=data)})


def test_a_training_run_is_told_its_rounds_and_whether_they_fit(tmp_path: Path, tiny_model_dir: Path) -> None:
    shown = config(tmp_path, tiny_model_dir, 1024)
    training = with_training(shown, annotations=tmp_path / "clips" / "annotations.json")
    report = check(training)
    assert not report.problems
    assert any("responses in up to 2 rounds" in fact for fact in report.facts)
    (fact,) = [fact for fact in report.facts if fact.startswith("longest possible prompt of a later round")]
    total = int(fact.split(" = ")[1].split()[0])
    tight = training.model_copy(update={"model": training.model.model_copy(update={"max_model_len": total - 1})})
    assert any("a later round of" in problem for problem in check(tight).problems)


def test_rounds_are_refused_beside_a_score_that_shuffles_frames(tmp_path: Path, tiny_model_dir: Path) -> None:
    shown = config(tmp_path, tiny_model_dir, 1024)
    (video, *_) = sorted((tmp_path / "clips" / "videos").iterdir())
    row = {"video": video.name, "question": "what?", "options": ["a square", "a disc"], "answer": "a disc"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    training = with_training(shown, annotations=tmp_path / "rows.jsonl", format="vtts")
    weights = {"multiple_choice": {"order_contrast": 0.3}}
    training = training.model_copy(update={"reward": training.reward.model_copy(update={"weights": weights})})
    (problem,) = [one for one in check(training).problems if "order_contrast" in one]
    assert problem.endswith("set perception.rounds to 1, or remove the weight.")

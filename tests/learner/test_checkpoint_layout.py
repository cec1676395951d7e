"""Checkpoints that are resumed unchanged, resharded, or refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from learner.checkpoint_layout import LAYOUT_FILE, Layout, layout_of, must_reshard, read_layout
from learner.spec import LearnerSpec
from rlsys.config.run import AlgorithmConfig, ModelConfig, RolloutConfig
from rlsys.errors import CheckpointError
from tests.support.learner import learner_config, train_config

SAVED = Layout(num_ranks=2, zero_stage=2, dtype="float32", trained="all but nothing")


def layout(**learner: Any) -> Layout:
    spec = LearnerSpec(
        model=ModelConfig(path=Path("unused"), dtype="float32"),
        rollout=RolloutConfig(),
        train=train_config(),
        algorithm=AlgorithmConfig(),
        learner=learner_config(**learner),
    )
    return layout_of(spec.model, spec.learner, num_ranks=2)


def test_trained_parts_belong_to_the_layout_in_any_order() -> None:
    assert layout(zero_stage=2) == SAVED
    assert layout(frozen_parts=("vision_tower", "projector")) == layout(frozen_parts=("projector", "vision_tower"))
    first, second = (layout(lora={"rank": 4, "targets": targets}) for targets in (("q_proj",), ("v_proj",)))
    assert first.trained == "LoRA of rank 4 on q_proj"
    assert first != second


def test_other_ranks_or_another_stage_are_resharded_and_the_same_are_not() -> None:
    folder = Path("run")
    assert not must_reshard(SAVED, SAVED, folder)
    assert must_reshard(SAVED, replace(SAVED, num_ranks=1), folder)
    assert must_reshard(SAVED, replace(SAVED, zero_stage=3), folder)


def test_without_zero_every_rank_has_everything() -> None:
    plain = replace(SAVED, zero_stage=0)
    assert not must_reshard(plain, replace(plain, num_ranks=4), Path("run"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"zero_stage": 0}, "learner.zero_stage=2, the config says 0"),
        ({"dtype": "bfloat16"}, "set model.dtype"),
        ({"trained": "LoRA of rank 4 on q_proj"}, "set learner.lora and learner.frozen_parts"),
    ],
)
def test_a_config_that_the_optimiser_state_does_not_fit_is_refused_with_the_remedy(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        must_reshard(SAVED, replace(SAVED, **change), Path("run"))


def test_a_layout_is_read_as_it_was_written_and_its_absence_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no learner checkpoint in it"):
        read_layout(tmp_path)
    (tmp_path / LAYOUT_FILE).write_text(json.dumps(asdict(SAVED)))
    assert read_layout(tmp_path) == SAVED

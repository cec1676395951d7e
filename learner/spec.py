"""What a learner is built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlsys.config import LearnerConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class LearnerSpec:
    """Model, hyperparameters and device of a learner.

    model_path: checkpoint folder the weights start from; also the reference policy when `train.kl_coef` > 0.
    dtype: "float32" or "bfloat16".  attention, see `learner.policy.load_model`.  device: "cpu" or "cuda".
    """

    model_path: Path
    dtype: str
    attention: str
    train: TrainConfig
    learner: LearnerConfig
    device: str
    seed: int

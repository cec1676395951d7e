"""What a learner is built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlsys.config.run import AlgorithmConfig, LearnerConfig, TrainConfig, WeightsConfig


@dataclass(frozen=True, kw_only=True)
class LearnerSpec:
    """Model, hyperparameters and device of a learner.

    model_path: checkpoint folder the weights start from; also the reference policy when `algorithm.kl_coef` > 0.
    dtype: "float32" or "bfloat16".  attention, see `learner.policy.load_model`.  device: "cpu" or "cuda".
    max_tokens: longest response that is sampled, tokens.
    weights: how `publish` sends them.
    ranks_each: GPUs of one engine that is sent the weights.
    sync: what `publish` sends: all weights, adapters merged in ("full"), or the adapters alone ("adapter"), for
    engines that hold the model at `model_path`.
    """

    model_path: Path
    dtype: str
    attention: str
    train: TrainConfig
    algorithm: AlgorithmConfig
    max_tokens: int
    learner: LearnerConfig
    device: str
    seed: int
    weights: WeightsConfig = WeightsConfig()
    ranks_each: int = 1
    sync: Literal["full", "adapter"] = "full"

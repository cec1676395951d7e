"""What a learner is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlsys.config.run import AlgorithmConfig, LearnerConfig, ModelConfig, RolloutConfig, TrainConfig, WeightsConfig


@dataclass(frozen=True, kw_only=True)
class LearnerSpec:
    """How to build a learner: the config's sections that concern it, its device and seed.

    model: the checkpoint the weights start from; also the reference policy when `algorithm.kl_coef` > 0.
    rollout: the longest response and the GPUs of one engine are read from it.
    device: as in section `cluster`.
    sync: what `publish` sends: all weights, adapters merged in ("full"), or the adapters alone ("adapter"), for
    engines that hold `model`.
    """

    model: ModelConfig
    rollout: RolloutConfig
    train: TrainConfig
    algorithm: AlgorithmConfig
    learner: LearnerConfig
    weights: WeightsConfig = WeightsConfig()
    device: str = "cpu"
    seed: int = 0
    sync: Literal["full", "adapter"] = "full"

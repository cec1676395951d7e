"""The settings of a learner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlsys.config.run import AlgorithmConfig, LearnerConfig, ModelConfig, RolloutConfig, TrainConfig, WeightsConfig


@dataclass(frozen=True, kw_only=True)
class LearnerSpec:
    """The settings of a learner: sections of the config, and its device and seed.

    model: the checkpoint that the weights start from, and the reference policy if `algorithm.kl_coef` > 0.
    rollout: only the longest response and the number of GPUs of one engine are used.
    device: as in section `cluster`.
    sync: `publish` sends all weights with adapters merged in ("full"), or only the adapters ("adapter"), for engines
    that hold `model`.
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

    @property
    def is_partitioned(self) -> bool:
        """Whether each rank has a part of every parameter, so that whole ones must be gathered from all (ZeRO-3)."""
        return self.learner.zero_stage == 3

"""The learning rate schedule, by batch."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rlsys.config.run import TrainConfig

COSINE_FLOOR = 0.1


def rate_factor(step: int, train: TrainConfig) -> float:
    """Return the factor of the peak learning rate in the run's step `step` (0 is the first).

    During the warm-up it is (step + 1) / warmup_steps, so that no step has a rate of 0. Then it is 1 ("constant"), or
    falls from 1 to 0 ("linear") or to a tenth ("cosine"), which it would reach one step after the last. Linear without
    warm-up is 1 - step / num_steps.
    """
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - train.warmup_steps) / max(1, train.num_steps - train.warmup_steps))
    if train.schedule == "linear":
        return 1.0 - progress
    return COSINE_FLOOR + (1.0 - COSINE_FLOOR) * 0.5 * (1.0 + math.cos(math.pi * progress))


class BatchSchedule(LambdaLR):
    """A schedule by `rate_factor` that advances once per batch, regardless of the number of updates per batch.

    DeepSpeed steps its schedule after every update; while `ends_batch` is False, the rate stays the same.
    """

    ends_batch = True

    def __init__(self, optimizer: Optimizer, train: TrainConfig) -> None:
        super().__init__(optimizer, lambda batch: rate_factor(batch, train))

    def apply_settings(self, train: TrainConfig) -> None:
        """Set the optimizer's learning rate, betas and weight decay to the config's.

        A checkpoint restores those that it was saved with, but a config changed since then must take effect.
        """
        num_groups = len(self.optimizer.param_groups)
        self.base_lrs = [train.learning_rate] * num_groups
        rate = train.learning_rate * rate_factor(self.last_epoch, train)
        for group in self.optimizer.param_groups:
            group |= {"initial_lr": train.learning_rate, "lr": rate}
            group |= {"betas": train.betas, "weight_decay": train.weight_decay}
        self._last_lr = [rate] * num_groups

    def step(self, epoch: int | None = None) -> None:
        if self.ends_batch:
            super().step(epoch)

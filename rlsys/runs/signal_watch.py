"""Notices a run that learns nothing: step after step without a group whose rewards differ."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from rlsys.config.train import TrainConfig
from rlsys.errors import UserError
from rlsys.types import ScoredGroup

log = logging.getLogger(__name__)

NUM_SHOWN = 3
MAX_CHARACTERS = 200


class NoLearningSignal(UserError):
    """No group of the last steps had different rewards; the message shows what the policy responds."""


class SignalWatch:
    """Counts consecutive steps without a gradient.

    A group whose valid rewards are all equal has advantages of 0, so a step of such groups changes no weight.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._limit, self._stops = config.no_signal_steps, config.stop_without_signal
        self._num_steps = 0

    def observe(self, step: int, groups: Sequence[ScoredGroup], grad_norm: float) -> None:
        """Log a warning with sampled responses after `train.no_signal_steps` such steps, and again after as many.

        grad_norm: of the step's update. Raises NoLearningSignal instead under `train.stop_without_signal`.
        """
        if grad_norm > 0 or any(_differ(scored) for scored in groups):
            self._num_steps = 0
            return
        self._num_steps += 1
        if self._num_steps % self._limit:
            return
        message = (
            f"step {step}: the last {self._num_steps} steps had no learning signal: all valid rewards of each group "
            f"were equal, and the gradient was 0. Sampled responses:\n{_shown(groups)}\nCheck the prompt and the "
            "expected answer format, raise rollout.temperature or rollout.group_size, or start from a model that "
            "succeeds now and then (`rlsys sft`)."
        )
        if self._stops:
            raise NoLearningSignal(f"{message} train.stop_without_signal=true ends the run.")
        log.warning("%s", message)


def _differ(scored: ScoredGroup) -> bool:
    valid = scored.rewards[scored.is_valid]
    return bool(valid.size > 1 and np.ptp(valid) > 0)


def _shown(groups: Sequence[ScoredGroup]) -> str:
    lines = []
    for scored in groups[:NUM_SHOWN]:
        last = next((one for one in reversed(scored.later) if one.sample_index == 0), None)
        text, reward = (last.scored.group if last else scored.group).rollouts[0].text, scored.rewards[0]
        short = text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
        lines.append(f"  {scored.group.item.prompt_id}: reward {reward:g}: {short!r}")
    return "\n".join(lines)

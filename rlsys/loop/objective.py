"""The objectives of the loop: policy gradient on scored groups, or imitation of demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from rlsys.algorithm.batch import group_advantages_of, has_spread, imitation_batch, make_batch, require_scores
from rlsys.algorithm.reward_shaping import Shaped, needs_reference, shape_rewards
from rlsys.algorithm.trajectories import clue_advantages, clue_qualities, clue_terms, round_advantages
from rlsys.config.run import RunConfig
from rlsys.loop.staleness import is_fresh
from rlsys.perception.clues import clue_scores
from rlsys.types import ScoredGroup, TrainBatch

Reference = Sequence[Sequence[np.ndarray]]
"""Log-probs of the reference policy, f32 [R], as `[group][sample]`, for the groups of all rounds."""


class Objective(Protocol):
    """The decisions in which objectives differ; all methods are pure."""

    max_lag: int
    """Number of steps by which a group may start before the step that trains on it."""
    needs_reference: bool
    """Whether rewards are shaped by the reference policy's log-probs."""

    def teaches(self, scored: ScoredGroup) -> bool:
        """Return whether a group gives a learning signal; one that does not may be replaced."""

    def staleness_problem(self, scored: ScoredGroup, step: int) -> str:
        """Return why a group is too stale to be trained on after `step` steps, or "" if it is not."""

    def shape(self, groups: tuple[ScoredGroup, ...], reference: Reference | None) -> Shaped:
        """Return the groups with the rewards that advantages are computed from."""

    def advantages(self, groups: Sequence[ScoredGroup]) -> tuple[np.ndarray, ...]:
        """Return the advantage of each response, f32 [G] for each group of each round."""

    def batch(self, groups: tuple[ScoredGroup, ...], advantages: tuple[np.ndarray, ...]) -> TrainBatch:
        """Return the batch of one step. Raises ScoringFailed if no response of it was scored."""


class PolicyGradient:
    """Policy gradient with rewards relative to the same prompt's, as in GRPO. Source: arXiv:2402.03300."""

    def __init__(self, config: RunConfig) -> None:
        self._algorithm, self._reward, self._max_tokens = config.algorithm, config.reward, config.rollout.max_tokens
        self._perception = config.perception
        self.max_lag = config.pipeline.max_lag
        self.needs_reference = needs_reference(config.algorithm)

    def teaches(self, scored: ScoredGroup) -> bool:
        return has_spread(scored, self._algorithm, self._reward) or bool(self._of_clues(scored).any())

    def staleness_problem(self, scored: ScoredGroup, step: int) -> str:
        for rollout in scored.rollouts:
            versions = rollout.token_versions
            # both ends: a response generated while the learner rolls back can have tokens of discarded weights
            for weight_version in (int(versions.min()), int(versions.max())):
                if not is_fresh(version=step, weight_version=weight_version, max_lag=self.max_lag):
                    lag = step - weight_version
                    return (
                        f"{rollout.rollout_id} is {lag} updates old at version {step}; pipeline.max_lag={self.max_lag}."
                    )
        return ""

    def shape(self, groups: tuple[ScoredGroup, ...], reference: Reference | None) -> Shaped:
        return shape_rewards(groups, self._algorithm, self._max_tokens, reference)

    def advantages(self, groups: Sequence[ScoredGroup]) -> tuple[np.ndarray, ...]:
        of_trajectories = group_advantages_of(groups, self._algorithm, self._reward)
        return tuple(
            advantages
            for scored, of_trajectory in zip(groups, of_trajectories, strict=True)
            for advantages in round_advantages(scored, of_trajectory, self._of_clues(scored))
        )

    def _of_clues(self, scored: ScoredGroup) -> np.ndarray:
        """Return the part of the advantages that clues are worth, f32 [rounds, G]; 0 if rows are asked once."""
        perception = self._perception
        size = len(scored.group.rollouts)
        if perception.rounds == 1 or perception.turn != "look_again" or not perception.clue_coef:
            return np.zeros((max((one.number for one in scored.later), default=1), size), np.float32)
        terms = clue_terms(clue_qualities(scored, clue_scores(scored.group.item.task)), perception.improvement_coef)
        found = clue_advantages(terms, self._algorithm.advantage, self._reward.min_valid)
        return np.float32(perception.clue_coef) * found

    def batch(self, groups: tuple[ScoredGroup, ...], advantages: tuple[np.ndarray, ...]) -> TrainBatch:
        batch = make_batch(groups, advantages, self._reward)
        require_scores(groups, batch)
        return batch


class Imitation:
    """Supervised training on the negative log-likelihood of demonstrations, which never become stale."""

    max_lag = 1  # decode the clips of the next step while the learner trains on this one
    needs_reference = False

    def teaches(self, scored: ScoredGroup) -> bool:
        return True

    def staleness_problem(self, scored: ScoredGroup, step: int) -> str:
        return ""

    def shape(self, groups: tuple[ScoredGroup, ...], reference: Reference | None) -> Shaped:
        return Shaped(groups=groups, metrics={})

    def advantages(self, groups: Sequence[ScoredGroup]) -> tuple[np.ndarray, ...]:
        return tuple(np.ones(len(scored.group.rollouts), np.float32) for scored in groups)

    def batch(self, groups: tuple[ScoredGroup, ...], advantages: tuple[np.ndarray, ...]) -> TrainBatch:
        return imitation_batch([scored.group for scored in groups], advantages)

"""Trajectories: responses that were asked again, round after round, and what each round of theirs is worth.

A group then has G trajectories, and its scores are those of the last round of each. Every round is trained on with the
advantage of its trajectory, to which the term of its clue is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from rlsys.algorithm.advantages import centred_advantages, group_advantages, leave_one_out_advantages
from rlsys.types import LaterRound, ScoredGroup

Method = Literal["grpo", "dr_grpo", "rloo", "gdpo"]


def trajectories(first: ScoredGroup, later: Sequence[LaterRound]) -> ScoredGroup:
    """Return a group whose responses were asked again, with the scores of each trajectory's last round.

    later: in the order of rounds for each trajectory. Without any, `first` is returned as it is.
    Raises ValueError if a round is missing, or was scored by other names.
    """
    if not later:
        return first
    scores, rewards, is_valid = first.scores.copy(), first.rewards.copy(), first.is_valid.copy()
    reasons, evidence = list(first.reasons), list(first.evidence)
    num_rounds = [1] * len(reasons)
    for one in later:
        index, scored = one.sample_index, one.scored
        num_rounds[index] += 1
        if one.number != num_rounds[index] or scored.score_names != first.score_names:
            raise ValueError(
                f"{first.group.item.prompt_id}: round {one.number} of response {index}, scored by "
                f"{scored.score_names}, cannot follow {num_rounds[index] - 1} rounds scored by {first.score_names}."
            )
        scores[index], rewards[index], is_valid[index] = scored.scores[0], scored.rewards[0], scored.is_valid[0]
        reasons[index], evidence[index] = scored.reasons[0], scored.evidence[0]
    return replace(
        first,
        scores=scores,
        rewards=rewards,
        is_valid=is_valid,
        reasons=tuple(reasons),
        evidence=tuple(evidence),
        first=first,
        later=tuple(later),
    )


def summed_over_rounds(scored: ScoredGroup, by_group: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of a number of each response over the rounds of each trajectory, f64 [G].

    by_group: of the responses of each of `scored.groups`.
    """
    total = np.asarray(by_group[0], np.float64).copy()
    for one, values in zip(scored.later, by_group[1:], strict=True):
        total[one.sample_index] += values[0]
    return total


def clue_qualities(scored: ScoredGroup, names: Sequence[str]) -> np.ndarray:
    """Return how well the clue of each round agrees with the true one, f64 [rounds, G] in [0, 1].

    names: of the scores that compare clues, see `rlsys.perception.clues.clue_scores`; the lowest counts, as a period
    and a box must both be right. NaN where a trajectory has no such round, where the score is missing, and without any
    of these names.
    """
    num_rounds = max((one.number for one in scored.later), default=1)
    found = np.full((num_rounds, len(scored.group.rollouts)), np.nan)
    columns = [scored.score_names.index(name) for name in names if name in scored.score_names]
    if not columns:
        return found
    first = scored.first or scored
    found[0] = np.where(first.is_valid, first.scores[:, columns].min(axis=1), np.nan)
    for one in scored.later:
        if one.scored.is_valid[0]:
            found[one.number - 1, one.sample_index] = one.scored.scores[0, columns].min()
    return found


def clue_terms(qualities: np.ndarray, improvement_coef: float) -> np.ndarray:
    """Return c[k] = q[k] + improvement_coef (q[k] - q[k - 1]), f64 [rounds, G]; the first round has no such bonus.

    qualities: q, f64 [rounds, G], NaN where missing. There is no bonus where the round before is missing.
    Source: of q, the reward of clues in VTTS, §A.1; of the bonus, which also is a malus, SCoRe, arXiv:2409.12917, §5.2.
    """
    found = qualities.copy()
    found[1:] += improvement_coef * np.nan_to_num(qualities[1:] - qualities[:-1])
    return found


def clue_advantages(terms: np.ndarray, method: Method, min_valid: int = 2) -> np.ndarray:
    """Return how much better the clue of each round is than those of the group's other trajectories in that round.

    terms: f64 [rounds, G], NaN where missing. Returns f32 [rounds, G], 0 where missing, and throughout a round that
    fewer than `min_valid` trajectories have. Each round is normalised by itself, by the method of the advantages;
    "gdpo" normalises single scores as "grpo" does.
    """
    of = {"dr_grpo": centred_advantages, "rloo": leave_one_out_advantages}.get(method, group_advantages)
    return np.stack([of(one.astype(np.float32), ~np.isnan(one), min_valid) for one in terms])


def round_advantages(scored: ScoredGroup, of_trajectory: np.ndarray, of_clue: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the advantages of the responses of each of `scored.groups`: that of the trajectory plus that of the clue.

    of_trajectory: f32 [G].  of_clue: f32 [rounds, G], with its coefficient. A trajectory whose last round could not be
    scored is worth nothing known: all its rounds have 0.
    """
    total = np.where(scored.is_valid, of_trajectory + of_clue, 0.0).astype(np.float32)
    return (total[0], *(total[one.number - 1, one.sample_index][None] for one in scored.later))


def spread_over_rounds(scored: ScoredGroup, of_trajectory: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return a value of each trajectory, [G], as that of the responses of each of `scored.groups`."""
    return (of_trajectory, *(of_trajectory[one.sample_index][None] for one in scored.later))

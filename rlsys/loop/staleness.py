"""Staleness of rollouts: how far generation may run ahead of learning, and what is too stale to train on."""

from __future__ import annotations

from rlsys.config.run import RunConfig


def groups_under_way(*, collected: int, prompts_per_step: int, max_lag: int) -> int:
    """Return how many groups may be in flight at once so that none becomes more than `max_lag` steps old.

    The count starts at the next group to be collected. Groups are trained on in prompt order, `prompts_per_step` at a
    time, so a group that starts behind n others is trained on n // prompts_per_step steps from now.

    collected: number of groups that wait for the next update.
    """
    return max(0, (max_lag + 1) * prompts_per_step - collected)


def lag_steps(*, version: int, weight_version: int) -> int:
    """Return the number of versions (one per step) from the weights that sampled a token to the current ones."""
    return version - weight_version


def is_fresh(*, version: int, weight_version: int, max_lag: int) -> bool:
    """Return whether a token is at most `max_lag` versions old, and so may be trained on.

    A version ahead of the current one was sampled before the learner rolled back, from weights that were discarded.
    """
    return 0 <= lag_steps(version=version, weight_version=weight_version) <= max_lag


def prompts_held(config: RunConfig) -> int:
    """Return the largest number of training prompts whose clips are held at once.

    A group holds its clips from its start until the step that uses it is done; of the max_lag + 1 steps whose groups
    are in flight, one is being trained on. Replaced groups are held as long as the rest of their step.
    """
    groups = groups_under_way(
        collected=0, prompts_per_step=config.train.prompts_per_step, max_lag=config.pipeline.max_lag
    )
    return groups + config.algorithm.max_extra_groups + config.data.decode_ahead


def evaluated_at_once(config: RunConfig, num_samples: int) -> int:
    """Return the number of prompts in flight in an evaluation: as many responses as training has in flight."""
    return max(1, prompts_held(config) * config.rollout.group_size // num_samples)

"""How far generation may run ahead of learning, and what is too old to learn from: pure decisions."""

from __future__ import annotations

from rlsys.config.run import RunConfig


def groups_under_way(*, collected: int, prompts_per_step: int, max_lag: int) -> int:
    """Groups, from the next one to be collected on, that may be under way so that none gets over `max_lag` steps old.

    Groups are trained on in the order of their draws, `prompts_per_step` at a time, so a group that
    starts behind n others is trained on n // prompts_per_step steps from now.

    collected: groups that wait for the next update.
    """
    return max(0, (max_lag + 1) * prompts_per_step - collected)


def lag_steps(*, version: int, weight_version: int) -> int:
    """Weight versions, one a step, between the weights that sampled a token and those it now trains."""
    return version - weight_version


def is_fresh(*, version: int, weight_version: int, max_lag: int) -> bool:
    """Whether a token may be trained on. One of a version that is still to come is of a course the run went back on."""
    return 0 <= lag_steps(version=version, weight_version=weight_version) <= max_lag


def prompts_held(config: RunConfig) -> int:
    """Most prompts of training whose clips are held at once.

    From its start until the step that it is used in is over a group holds its clips, and one of the max_lag + 1
    steps whose groups are under way is the one that learns. What is replaced stays as long as the rest of its step.
    """
    groups = groups_under_way(
        collected=0, prompts_per_step=config.train.prompts_per_step, max_lag=config.pipeline.max_lag
    )
    return groups + config.algorithm.max_extra_groups + config.data.decode_ahead


def evaluated_at_once(config: RunConfig, num_samples: int) -> int:
    """Prompts under way in an evaluation: with as many responses as training has under way."""
    return max(1, prompts_held(config) * config.rollout.group_size // num_samples)

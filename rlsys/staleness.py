"""How far generation may run ahead of learning: pure decisions."""


def how_many_may_start(*, in_flight: int, collected: int, prompts_per_step: int, max_lag: int) -> int:
    """Groups that may start now so that none is over `max_lag` updates old when it is trained on.

    Groups are trained on in the order in which they started, `prompts_per_step` at a time, so a
    group that starts behind n others is trained on n // prompts_per_step updates from now.

    in_flight: groups started and not yet collected.  collected: groups waiting for the next update.
    """
    return max(0, (max_lag + 1) * prompts_per_step - in_flight - collected)


def lag_updates(*, version: int, weight_version: int) -> int:
    """Weight versions, one a step, between the weights that sampled a rollout and those it now trains."""
    return version - weight_version

"""The control of one round with the visual tokens of several: whether it fits, and what the engines need for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rlsys.config.evaluation import OF_ROUNDS, Control
from rlsys.config.run import ConfigError, RunConfig
from rlsys.data.video.budgets import largest_grids
from rlsys.models.prompts import PromptBuilder, PromptTooLong
from rlsys.perception.controls import largest_one_round
from rlsys.runs.assemble import all_sources
from rlsys.types import PromptItem

log = logging.getLogger(__name__)

BOTH: tuple[Control, ...] = ("other_video", "text_only")
EQUAL_TOKENS: Control = "one_round_equal_tokens"


def chosen_controls(
    config: RunConfig, items: Sequence[PromptItem], prompts: PromptBuilder | None
) -> tuple[Control, ...]:
    """Return the controls of an evaluation by `rlsys eval`: those of the config, or all that apply.

    items: the rows that are asked.  prompts: None if an endpoint answers, whose context is not known.
    Raises ConfigError if the config names `one_round_equal_tokens` and `model.max_model_len` has no room for it.
    """
    wanted = config.evaluation.controls
    if wanted is None:
        wanted = (*BOTH, *(OF_ROUNDS if config.perception.rounds > 1 else ()))
    if EQUAL_TOKENS not in wanted or prompts is None:
        return wanted
    try:
        _check_room(config, items, prompts)
    except PromptTooLong as error:
        if config.evaluation.controls is not None:
            raise ConfigError(
                f"evaluation.controls has {EQUAL_TOKENS}, one round with the visual tokens of perception.rounds="
                f"{config.perception.rounds} rounds: {error}; or remove the control."
            ) from error
        log.info("the control %s is left out: %s", EQUAL_TOKENS, error)
        return tuple(name for name in wanted if name != EQUAL_TOKENS)
    return wanted


def _check_room(config: RunConfig, items: Sequence[PromptItem], prompts: PromptBuilder) -> None:
    for item in items:
        if (larger := largest_one_round(item, config.perception)) is not None:
            prompts.count_tokens(larger, largest_grids(larger)).check()


def with_largest_look(config: RunConfig) -> RunConfig:
    """Return the config with later rounds as large as the largest look of an evaluation, by which engines are sized."""
    if EQUAL_TOKENS not in (config.evaluation.controls or ()):
        return config
    data, perception = config.data, config.perception
    times = perception.rounds * (2 if perception.turn == "zoom" else 1)
    budgets = [data, *(one.data for one in all_sources(config))]
    larger = {
        "max_frames": times * max(perception.max_frames or 0, *(one.max_frames for one in budgets)),
        "total_pixels": times * max(perception.total_pixels or 0, *(one.total_pixels for one in budgets)),
    }
    return config.model_copy(update={"perception": perception.model_copy(update=larger)})

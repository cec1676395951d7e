"""The inputs of a plan: model sizes, and prompt shapes from the annotations or from the pixel budgets."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from rlsys.config.data import sources
from rlsys.config.run import RunConfig
from rlsys.data.video.budgets import largest_grid, largest_grids
from rlsys.data.video.decode import plan_grid
from rlsys.data.video.errors import ClipError
from rlsys.models.model_config import patch_shape
from rlsys.models.parallel import tensor_parallel_problem
from rlsys.models.sizes import read_model_sizes
from rlsys.planning.plan import (
    Assumptions,
    Prompts,
    Section,
    average,
    engine_room,
    engine_section,
    mean_response,
    payload_bytes,
    token_section,
)
from rlsys.planning.plan_colocated import shared_section
from rlsys.planning.plan_learner import learner_section
from rlsys.planning.plan_store import clip_bytes, store_section
from rlsys.planning.plan_times import Measured, phase_times, time_section
from rlsys.runs.assemble import multiply_adds, needs_judge, prompt_builder, with_model
from rlsys.runs.inputs.hub_paths import with_local_files
from rlsys.runs.inputs.items import training_items
from rlsys.types import PromptItem

log = logging.getLogger(__name__)

Grid = tuple[int, int, int]
HEADERS = 32  # rows whose clip headers are read for the mean; opening thousands would take minutes


def plan(config: RunConfig, given: Assumptions, measured: Measured) -> tuple[Section, ...]:
    """Return the plan of a run. Raises UserError if the model's config.json or the annotations cannot be read."""
    with with_model(with_local_files(config, only_cached=True)) as complete:
        return _plan(complete, given, measured)


def _plan(config: RunConfig, given: Assumptions, measured: Measured) -> tuple[Section, ...]:
    sizes, responses = read_model_sizes(config.model.path), mean_response(config, given)
    items = training_items(config) if sources(config.data) else ()
    prompts = prompts_of_items(config, items, responses) if items else prompts_of_budget(config, given, responses)
    room = engine_room(config, sizes, prompts, responses, given)
    is_judged = bool(items) and needs_judge({item.task for item in items}, config.reward)
    times = phase_times(config, sizes, prompts, room, given, measured, is_judged=is_judged)
    payload = payload_bytes(config, sizes)
    shares_gpus = config.cluster.colocate and config.cluster.device == "cuda"
    engines = engine_section(config, sizes, room, given)
    if problem := tensor_parallel_problem(config.model.path, config.rollout.tensor_parallel_size):
        engines = replace(engines, problems=(problem, *engines.problems))
    return (
        token_section(config, prompts, responses),
        engines,
        store_section(config, clip_bytes(config, items, payload), payload),
        learner_section(config, sizes, prompts, responses, given),
        *([shared_section(config, sizes, prompts, responses, given)] if shares_gpus else []),
        time_section(config, times, room),
    )


def prompts_of_budget(config: RunConfig, given: Assumptions, responses: float) -> Prompts:
    """Return prompt shapes for clips as long and as large as section `data` allows."""
    shape = patch_shape(config.model.path)
    grid = largest_grid(config.data, shape)
    visual = math.prod(grid) // 4
    text = round(given.text_tokens)
    return Prompts(
        mean_text=text,
        mean_visual=visual,
        longest_text=text,
        longest_visual=visual,
        multiply_adds=multiply_adds(config, text + visual, (grid,), round(responses)),
        source="budgets of section data, because data.annotations is not set",
        patch=shape,
    )


def prompts_of_items(config: RunConfig, items: Sequence[PromptItem], responses: float) -> Prompts:
    """Return the mean prompt shape over some rows whose clip headers are read, and the longest that budgets allow."""
    builder = prompt_builder(config)
    bounds = [builder.count_tokens(item, largest_grids(item), 0) for item in items]
    longest = max(bounds, key=lambda count: count.total)
    read = [(item, grids) for item in items[:: max(1, len(items) // HEADERS)] if (grids := _grids(item))]
    source = f"headers of {len(read)} clips; longest: budgets of section data"
    if not read:
        log.warning("none of the %d sampled rows has readable clips; using the budgets of section data", HEADERS)
        chosen = items[:: max(1, len(items) // HEADERS)]
        read, source = [(item, largest_grids(item)) for item in chosen], "budgets of section data: no clip was readable"
    counts = [builder.count_tokens(item, grids, 0) for item, grids in read]
    return Prompts(
        mean_text=average([count.text for count in counts]),
        mean_visual=average([count.visual for count in counts]),
        longest_text=longest.text,
        longest_visual=longest.visual,
        multiply_adds=average(
            [
                multiply_adds(config, count.total, grids, round(responses))
                for count, (_, grids) in zip(counts, read, strict=True)
            ]
        ),
        source=source,
        patch=patch_shape(config.model.path),
    )


def _grids(item: PromptItem) -> list[Grid]:
    try:
        return [plan_grid(spec) for spec in item.media]
    except ClipError:
        return []  # data.on_bad_clip decides what a run does with such a row

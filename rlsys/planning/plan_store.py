"""Estimate the peak use of the object store: clips and weights, from a config and the sizes of its clips."""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlsys import env
from rlsys.config.run import RunConfig
from rlsys.data.video.budgets import largest_grid, largest_grids, patch_bytes
from rlsys.data.video.decode import plan_grid
from rlsys.data.video.errors import ClipError
from rlsys.loop.staleness import evaluated_at_once, prompts_held
from rlsys.models.model_config import ModelFolderError, patch_shape
from rlsys.models.sizes import read_model_sizes
from rlsys.planning.plan import Line, Section, payload_bytes, shown
from rlsys.types import MediaSpec, PatchShape, PromptItem

log = logging.getLogger(__name__)

BY_BUDGET = "as section data allows"
Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class ClipBytes:
    """The peak bytes of clips in use, and whether they come from the files' headers or from the pixel budgets."""

    in_use: int
    source: str


def clip_bytes(
    config: RunConfig, items: Sequence[PromptItem], payload: int, held_out: Sequence[PromptItem] = ()
) -> ClipBytes:
    """Return the peak bytes of clips in use, by the pixel budgets if that fits the store, else by the files' headers.

    Without items every clip is assumed to be as large as section `data` allows.  payload: see `weights_bytes`.
    """
    shape = patch_shape(config.model.path)
    if not items:
        largest = _bytes(largest_grid(config.data, shape), shape)
        return ClipBytes(in_use=prompts_held(config) * _copies(config) * largest, source=BY_BUDGET)

    def most(prompt_bytes: Callable[[PromptItem], int]) -> int:
        """Return the largest prompts in flight in training, or in an evaluation, which runs before or after it."""
        training = heapq.nlargest(prompts_held(config), map(prompt_bytes, items))
        evaluated = heapq.nlargest(evaluated_at_once(config, num_samples=1), map(prompt_bytes, held_out))
        return _copies(config) * max(sum(training), sum(evaluated))

    by_budget = most(lambda item: sum(_bytes(grid, shape) for grid in largest_grids(item)))
    if is_attached(config) or by_budget + 2 * payload <= config.cluster.object_store_mib << 20:
        return ClipBytes(in_use=by_budget, source=BY_BUDGET)
    specs = {spec for item in (*items, *held_out) for spec in item.media}
    log.info("reading the headers of %d clips, because the largest that section data allows may not fit", len(specs))
    sizes = {spec: _header_bytes(spec, shape) for spec in specs}
    read = most(lambda item: sum(sizes[spec] for spec in item.media))
    return ClipBytes(in_use=min(read, by_budget), source="by their headers")


def is_attached(config: RunConfig) -> bool:
    """Return whether the run attaches to a cluster, which has its own object store."""
    return env.named_cluster(config.cluster.address) is not None


def store_section(config: RunConfig, clips: ClipBytes, payload: int) -> Section:
    """Return the section on the object store, with a problem if its peak exceeds a store that the run starts itself."""
    # the cache evicts unused clips before used and cached ones together exceed its limit
    used = max(config.data.cache_bytes, clips.in_use) + 2 * payload
    store = config.cluster.object_store_mib << 20
    problems = []
    if used > store and not is_attached(config):
        problems.append(
            f"the object store may have to hold {shown(used)} ({_arithmetic(config, clips, payload)}), and "
            f"cluster.object_store_mib={config.cluster.object_store_mib} is {shown(store)}: raise it to "
            f"{math.ceil(used / 2**20)}, or lower {_remedy(config, clips)}."
        )
    extra = f" + {config.algorithm.max_extra_groups} replaced" if config.algorithm.max_extra_groups else ""
    has_shuffled = ", each with its frames shuffled too" if config.rollout.shuffled_group_size else ""
    if config.perception.rounds > 1:
        has_shuffled += f", {config.perception.rounds} rounds of {config.rollout.group_size} responses"
    return Section(
        title="object store",
        lines=(
            Line(
                "clips in use",
                shown(clips.in_use),
                f"(max_lag {config.pipeline.max_lag} + 1) x {config.train.prompts_per_step} groups{extra} + "
                f"{config.data.decode_ahead} decoded ahead, the largest {clips.source}{has_shuffled}",
            ),
            Line("clips kept for reuse", shown(config.data.cache_bytes), "data.cache_bytes, including those in use"),
            Line(
                "weights in transfer",
                shown(2 * payload),
                f"2 x {shown(payload)}: the new ones, and those that late actors still fetch",
            ),
            Line(
                "together",
                shown(used),
                "of an attached cluster's store, whose size is not known here"
                if is_attached(config)
                else f"of cluster.object_store_mib={config.cluster.object_store_mib} ({shown(store)})",
            ),
        ),
        problems=tuple(problems),
    )


def weights_bytes(config: RunConfig) -> int:
    """Return the bytes that one publication of the weights sends; 0 if the model is unreadable (see other checks)."""
    try:
        return payload_bytes(config, read_model_sizes(config.model.path))
    except ModelFolderError:
        return 0


def _arithmetic(config: RunConfig, clips: ClipBytes, payload: int) -> str:
    held = f"{prompts_held(config)} prompts' clips in use, the largest {clips.source}, {shown(clips.in_use)}"
    cached = f"data.cache_bytes {shown(config.data.cache_bytes)}"
    larger = held if clips.in_use >= config.data.cache_bytes else cached
    return f"{larger} + weights 2 x {shown(payload)}"


def _remedy(config: RunConfig, clips: ClipBytes) -> str:
    if clips.in_use < config.data.cache_bytes:
        return "data.cache_bytes"
    return "pipeline.max_lag, train.prompts_per_step, data.decode_ahead or the pixel budgets of data"


def _copies(config: RunConfig) -> int:
    """Return how many times the frames of a prompt are held: of every later round of every response again."""
    again = (config.perception.rounds - 1) * config.rollout.group_size
    return 1 + again + (1 if config.rollout.shuffled_group_size else 0)


def _bytes(grid: Grid, shape: PatchShape) -> int:
    return math.prod(grid) * patch_bytes(shape)


def _header_bytes(spec: MediaSpec, shape: PatchShape) -> int:
    try:
        return _bytes(plan_grid(spec), shape)
    except ClipError:
        return 0  # it holds nothing

"""`rlsys check-config`: everything that can be known of a run before an actor starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlsys.config.run import ConfigError, RewardConfig, RunConfig
from rlsys.data.video.budgets import largest_grids
from rlsys.data.video.decode import plan_grid
from rlsys.data.video.errors import ClipError
from rlsys.errors import UserError
from rlsys.models.folder import problems_of_folder
from rlsys.models.prompts import PromptBuilder, PromptTooLong, TokenCount
from rlsys.planning.plan_store import clip_bytes, is_attached, store_section, weights_bytes
from rlsys.runs.assemble import import_scorers, judge_of, needs_judge, prompt_builder
from rlsys.runs.items import held_out_items, training_items
from rlsys.runs.supervised import Demonstration
from rlsys.tasks.table import check_weights
from rlsys.tracking.store_address import TrackingError, require_driver, store_uri
from rlsys.types import PromptItem

SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Report:
    """facts: what the run will use.  problems: why it cannot start; () when it can."""

    facts: tuple[str, ...]
    problems: tuple[str, ...]

    def raise_problems(self) -> None:
        """Raises ConfigError that lists the problems, if there are any."""
        if self.problems:
            raise ConfigError(f"{len(self.problems)} problem(s)\n  " + "\n  ".join(self.problems))


def check(config: RunConfig) -> Report:
    """Check data, model folder, reward weights and the token budget of each clip."""
    facts: list[str] = []
    problems: list[str] = []
    problems += _reward_problems(config.reward)
    problems += _tracking_problems(config)
    loaded: list[tuple[PromptItem, ...]] = []
    for name, load in (("training", training_items), ("held-out", held_out_items)):
        try:
            loaded.append(rows := load(config))
        except UserError as error:
            problems.append(str(error))
            continue
        facts.append(f"{name} rows: {len(rows)}" + (f" ({_by_task(rows)})" if rows else ""))
    items = tuple(item for rows in loaded for item in rows)
    if len(loaded) == 2:
        payload = weights_bytes(config)
        store = store_section(config, clip_bytes(config, loaded[0], payload, loaded[1]), payload)
        facts.append(f"most in the object store: {store.lines[-1].value} {store.lines[-1].how}")
        problems += store.problems
    problems += _judge_problems(config, items)
    try:
        prompts = prompt_builder(config)
        problems += problems_of_folder(config.model.path)
        budget = _token_budget([_Asked(item=item) for item in items], prompts)
    except UserError as error:
        problems.append(str(error))
    else:
        facts += budget.facts
        problems += budget.problems
    updates = config.train.num_steps * config.train.prompts_per_step
    facts.append(
        f"{config.train.num_steps} updates of {config.train.prompts_per_step} prompts x {config.rollout.group_size} "
        f"responses" + (f" = {updates / len(items):.2f} epochs" if items else "")
    )
    return Report(facts=tuple(facts), problems=tuple(problems))


def check_services(config: RunConfig) -> Report:
    """Check what `rlsys rewards serve` reads: sections `reward` and `cluster`."""
    problems = _reward_problems(config.reward)
    judge = ""
    try:
        judge = judge_of(config.reward)
    except UserError as error:
        problems.append(str(error))
    facts = (
        f"reward servers: {config.reward.min_replicas} to {config.reward.max_replicas} replicas",
        f"judge: {judge or 'none'}, {config.reward.judge.min_replicas} to {config.reward.judge.max_replicas} replicas"
        + (f", model {config.reward.judge.serve_model}" if config.reward.judge.serve_model else ""),
    )
    return Report(facts=facts, problems=tuple(problems))


def check_sft(
    config: RunConfig, demonstrations: Sequence[Demonstration], held_out: Sequence[PromptItem], prompts: PromptBuilder
) -> Report:
    """Check what `rlsys sft` needs: the demonstrations' tokens, and what evaluation needs where it is asked for."""
    problems = [*problems_of_folder(config.model.path), *_memory_problems(config), *_tracking_problems(config)]
    if held_out:
        problems += _reward_problems(config.reward)
        problems += _judge_problems(config, held_out)
    problems += _unfit_responses(demonstrations, prompts)
    longest: dict[str, Demonstration] = {}
    for one in demonstrations:
        known = longest.setdefault(one.item.prompt_id, one)
        if one.response_ids.size > known.response_ids.size:
            longest[one.item.prompt_id] = one
    asked = [_Asked(item=one.item, response_tokens=one.response_ids.size, where=one.where) for one in longest.values()]
    budget = _token_budget([*asked, *(_Asked(item=item) for item in held_out)], prompts)
    seen = config.train.num_steps * config.train.prompts_per_step
    facts = (
        f"{len(demonstrations)} demonstrations of {len(longest)} rows; {config.train.num_steps} steps of "
        f"{config.train.prompts_per_step} = {seen / len(demonstrations):.2f} epochs",
        *budget.facts,
    )
    return Report(facts=facts, problems=(*problems, *budget.problems))


def _tracking_problems(config: RunConfig) -> Iterator[str]:
    try:
        require_driver(store_uri(config))
    except TrackingError as error:
        yield str(error)


def _unfit_responses(demonstrations: Sequence[Demonstration], prompts: PromptBuilder) -> Iterator[str]:
    """Tokens that a response must not hold: the engine never samples them, or ends at them."""
    banned = {*prompts.banned_token_ids, prompts.end_token_id}
    found = [one for one in demonstrations if banned.intersection(one.response_ids[:-1].tolist())]
    for one in found[:SHOWN]:
        unfit = sorted(banned.intersection(one.response_ids[:-1].tolist()))
        yield f"{one.where}: the response holds {prompts.decode(unfit)}, which no response may; take it out."
    if len(found) > SHOWN:
        yield f"… and {len(found) - SHOWN} more responses"


def _by_task(items: Sequence[PromptItem]) -> str:
    return ", ".join(f"{count} {task}" for task, count in Counter(item.task for item in items).most_common())


def _reward_problems(reward: RewardConfig) -> list[str]:
    """Return what is wrong with weights and custom scorers; servers that run elsewhere import their own scorers."""
    problems: list[str] = []
    for find in (check_weights, *(() if reward.url else (import_scorers,))):
        try:
            find(reward)
        except UserError as error:
            problems.append(str(error))
            break  # a scorer that is named wrongly cannot be imported either
    return problems


def _judge_problems(config: RunConfig, items: Sequence[PromptItem]) -> Iterator[str]:
    """The run's own servers need a judge that can work; those at `reward.url` say for themselves what they have."""
    if config.reward.url is None and needs_judge({item.task for item in items}, config.reward):
        try:
            kind = judge_of(config.reward)
        except UserError as error:
            yield str(error)
            return
        asked = sorted(task for task, weights in config.reward.weights.items() if "consistency" in weights)
        if kind == "embedding" and asked:
            yield (
                f"reward.weights.{asked[0]}.consistency: sentence embeddings cannot judge reasoning: every row would "
                "be missing; set reward.judge.urls or reward.judge.serve_model, or leave the score out."
            )


def _memory_problems(config: RunConfig) -> Iterator[str]:
    """Of supervised training. A cluster started here has the memory that the config gives it, others their own."""
    store_bytes = config.cluster.object_store_mib << 20
    if not is_attached(config) and config.data.cache_bytes > store_bytes * 3 // 4:
        yield (
            f"data.cache_bytes={config.data.cache_bytes} takes over three quarters of "
            f"cluster.object_store_mib={config.cluster.object_store_mib} ({store_bytes} bytes), which "
            "clips in use share; lower the first or raise the second."
        )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """An item, the tokens of the longest response behind it (None: rollout.max_tokens), and where that is written."""

    item: PromptItem
    response_tokens: int | None = None
    where: str = ""

    def count(self, prompts: PromptBuilder, grids: Sequence[tuple[int, int, int]]) -> TokenCount:
        return prompts.count_tokens(self.item, grids, self.response_tokens)


def _token_budget(asked: Sequence[_Asked], prompts: PromptBuilder) -> Report:
    """Prompt plus response of each item against `max_model_len`.

    The bound that the config's pixel budgets give is tried first; only where it does not fit are
    clip headers read, because opening thousands of files takes minutes.
    """
    over = [one for one in asked if not _fits(one, prompts)]
    if not over:
        counts = (one.count(prompts, largest_grids(one.item)) for one in asked)
        longest = max(counts, key=lambda count: count.total, default=None)
        return Report(facts=(f"longest possible prompt: {longest}",) if longest else (), problems=())
    problems = list(_too_long(over, prompts))
    hidden = len(problems) - SHOWN
    if hidden > 0:
        problems[SHOWN:] = [f"… and {hidden} more clips"]
    return Report(facts=(f"clips whose header was read: {len(over)}",), problems=tuple(problems))


def _fits(asked: _Asked, prompts: PromptBuilder) -> bool:
    try:
        asked.count(prompts, largest_grids(asked.item)).check()
    except PromptTooLong:
        return False
    return True


def _too_long(asked: Sequence[_Asked], prompts: PromptBuilder) -> Iterator[str]:
    for one in asked:
        try:
            grids = [plan_grid(spec) for spec in one.item.media]
        except ClipError:
            continue  # not a matter of tokens: `data.on_bad_clip` decides when the run meets it
        try:
            one.count(prompts, grids).check()
        except PromptTooLong as error:
            yield f"{one.where}: {error}" if one.where else str(error)

"""`rlsys check-config`: everything that can be checked before an actor starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlsys.algorithm.order_contrast import wants_contrast
from rlsys.config.data import sources
from rlsys.config.run import ConfigError, RewardConfig, RunConfig
from rlsys.data.video.budgets import MERGED, largest_grids
from rlsys.data.video.decode import plan_grid
from rlsys.data.video.errors import ClipError
from rlsys.errors import UserError
from rlsys.files import why_not_writable
from rlsys.models.folder import problems_of_folder
from rlsys.models.model_config import patch_shape
from rlsys.models.prompts import PromptBuilder, PromptTooLong, TokenCount
from rlsys.models.sizes import read_model_sizes
from rlsys.perception.choose import largest_items
from rlsys.planning.plan_store import clip_bytes, is_attached, store_section, weights_bytes
from rlsys.runs.assemble import import_scorers, judge_of, machine_problems, needs_judge, prompt_builder
from rlsys.runs.check_engine import engine_problems
from rlsys.runs.evaluating.answering import ChosenSet, chosen_sets
from rlsys.runs.inputs.items import held_out_items, order_of, training_items
from rlsys.runs.records.output_space import output_problems
from rlsys.runs.supervised import Demonstration
from rlsys.tasks.table import check_weights
from rlsys.tracking.store_address import TrackingError, require_driver, store_uri
from rlsys.types import PromptItem

SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a check. facts: what the run will use.  problems: why it cannot start, () if it can."""

    facts: tuple[str, ...]
    problems: tuple[str, ...]

    def raise_problems(self) -> None:
        """Raise ConfigError listing the problems, if there are any."""
        if self.problems:
            raise ConfigError(f"{len(self.problems)} problem(s)\n  " + "\n  ".join(self.problems))


def check(config: RunConfig) -> Report:
    """Check the data, the model folder, the reward weights and the token budget of each row."""
    facts: list[str] = []
    problems: list[str] = machine_problems(config)
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
        facts.append(f"peak use of the object store: {store.lines[-1].value} {store.lines[-1].how}")
        problems += store.problems
    problems += _judge_problems(config, items)
    problems += _contrast_problems(config, items)
    asked: tuple[PromptItem, ...] = ()
    if config.evaluation.every_steps:
        try:
            chosen = chosen_sets(config)
            asked = tuple(item for one in chosen for item in one.asked)
            facts += [f"evaluation set {one.name}: {len(one.asked)} rows" for one in chosen]
            problems += _best_problems(config, chosen)
        except UserError as error:
            problems.append(str(error))
    try:
        prompts = prompt_builder(config)
        problems += problems_of_folder(config.model.path)
        problems += output_problems(config)
        problems += engine_problems(config)
        problems += _heads_problems(config)
        problems += _pixel_problems(config)
        budgets = (
            _token_budget([_RowTokens(item=item) for item in (*items, *asked)], prompts),
            _later_rounds(config, (*items, *asked), prompts),
        )
    except UserError as error:
        problems.append(str(error))
    else:
        for budget in budgets:
            facts += budget.facts
            problems += budget.problems
    prompts_consumed = config.train.num_steps * config.train.prompts_per_step
    training = loaded[0] if len(loaded) == 2 else ()
    facts.append(_amount(config, len(training)))
    try:
        facts += _shares(config, training, prompts_consumed)
    except UserError as error:
        problems.append(str(error))
    return Report(facts=tuple(facts), problems=tuple(dict.fromkeys(problems)))


def _amount(config: RunConfig, num_rows: int) -> str:
    """Return how much a run trains on."""
    steps, prompts = config.train.num_steps, config.train.prompts_per_step
    rounds = f" in up to {config.perception.rounds} rounds" if config.perception.rounds > 1 else ""
    epochs = f" = {steps * prompts / num_rows:.2f} epochs" if num_rows else ""
    return f"{steps} updates of {prompts} prompts x {config.rollout.group_size} responses{rounds}{epochs}"


def _shares(config: RunConfig, items: Sequence[PromptItem], num_prompts: int) -> Iterator[str]:
    """Yield what the run takes of each source, if there are several."""
    found = sources(config.data)
    if len(found) < 2 or not items:
        return
    num_rows = Counter(item.source for item in items)
    for source, taken in zip(found, order_of(config, items).prompts_by_source(num_prompts), strict=True):
        rows = num_rows[source.name]
        yield f"{source.name}: {rows} rows, {taken / num_prompts:.1%} of the prompts, {taken / rows:.2f} epochs"


def check_evaluation(config: RunConfig, chosen: Sequence[ChosenSet]) -> Report:
    """Check the model folder and the token budget of each row that `rlsys eval` asks the actors."""
    prompts = prompt_builder(config)
    budget = _token_budget([_RowTokens(item=item) for one in chosen for item in one.asked], prompts)
    later = _later_rounds(config, [item for one in chosen for item in one.asked], prompts)
    budget = Report(facts=(*budget.facts, *later.facts), problems=(*budget.problems, *later.problems))
    problems = (*machine_problems(config), *problems_of_folder(config.model.path), *engine_problems(config))
    return Report(facts=budget.facts, problems=(*problems, *budget.problems))


def _one_round_problems(config: RunConfig) -> Iterator[str]:
    if config.perception.rounds > 1:
        yield (
            f"perception.rounds={config.perception.rounds}: supervised training imitates one round; set it to 1, or "
            "give it to `rlsys train` and `rlsys eval` alone (rlsys train CONFIG perception.rounds=2)."
        )


def _contrast_problems(config: RunConfig, items: Sequence[PromptItem]) -> Iterator[str]:
    tasks = sorted({item.task for item in items if wants_contrast(item.task, config.reward)})
    if config.perception.rounds > 1 and tasks:
        yield (
            f"reward.weights.{tasks[0]}.order_contrast with perception.rounds={config.perception.rounds}: shuffled "
            "frames have no times to look at again; set perception.rounds to 1, or remove the weight."
        )


def _later_rounds(config: RunConfig, items: Sequence[PromptItem], prompts: PromptBuilder) -> Report:
    """Compare the largest prompts of later rounds with `model.max_model_len`; nothing is decoded for it."""
    counts = [
        prompts.count_tokens(later, largest_grids(later))
        for item in items
        for later in largest_items(item, config.perception)
    ]
    longest = max(counts, key=lambda count: count.total, default=None)
    if longest is None:
        return Report(facts=(), problems=())
    try:
        longest.check()
    except PromptTooLong as error:
        over = sum(count.total > count.max_model_len for count in counts)
        advice = "lower perception.max_frames, perception.total_pixels or perception.max_periods"
        return Report(facts=(), problems=(f"a later round of {over} rows may not fit ({advice}): {error}",))
    return Report(facts=(f"longest possible prompt of a later round: {longest}",), problems=())


def _best_problems(config: RunConfig, chosen: Sequence[ChosenSet]) -> Iterator[str]:
    """Yield why no checkpoint could be the best by `evaluation.best`."""
    name, _, metric = (config.evaluation.best or "").partition("/")
    for one in chosen:
        if one.name == name and metric not in (known := one.unanswered().metric_names()):
            yield f"evaluation.best={name}/{metric}: the set has no such metric; it has {', '.join(sorted(known))}."


def check_services(config: RunConfig) -> Report:
    """Check the sections `reward` and `cluster`, which are what `rlsys rewards serve` reads."""
    problems = [*machine_problems(config), *_reward_problems(config.reward)]
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
    """Check what `rlsys sft` needs: the tokens of the demonstrations, and what a configured evaluation needs."""
    problems = [*machine_problems(config), *problems_of_folder(config.model.path), *output_problems(config)]
    problems += [*_one_round_problems(config), *_heads_problems(config)]
    problems += [*_memory_problems(config), *_tracking_problems(config)]
    if held_out:
        problems += _reward_problems(config.reward)
        problems += _judge_problems(config, held_out)
    problems += _unfit_responses(demonstrations, prompts)
    longest: dict[str, Demonstration] = {}
    for one in demonstrations:
        known = longest.setdefault(one.item.prompt_id, one)
        if one.response_ids.size > known.response_ids.size:
            longest[one.item.prompt_id] = one
    rows = [
        _RowTokens(item=one.item, response_tokens=one.response_ids.size, where=one.where) for one in longest.values()
    ]
    budget = _token_budget([*rows, *(_RowTokens(item=item) for item in held_out)], prompts)
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
    """Yield the responses with tokens that the engine never samples, or with an end token in the middle."""
    banned = {*prompts.banned_token_ids, prompts.end_token_id}
    found = [one for one in demonstrations if banned.intersection(one.response_ids[:-1].tolist())]
    for one in found[:SHOWN]:
        unfit = sorted(banned.intersection(one.response_ids[:-1].tolist()))
        yield f"{one.where}: the response contains {prompts.decode(unfit)}, which the model never samples; remove it."
    if len(found) > SHOWN:
        yield f"… and {len(found) - SHOWN} more responses"


def _by_task(items: Sequence[PromptItem]) -> str:
    return ", ".join(f"{count} {task}" for task, count in Counter(item.task for item in items).most_common())


def _reward_problems(reward: RewardConfig) -> list[str]:
    """Return the problems of weights and custom scorers; servers at `reward.url` import their own scorers."""
    problems: list[str] = []
    for find in (check_weights, *(() if reward.url else (import_scorers,))):
        try:
            find(reward)
        except UserError as error:
            problems.append(str(error))
            break  # a scorer whose name is wrong cannot be imported either
    if reward.judge.urls:
        try:
            judge_of(reward)
        except UserError as error:
            problems.append(str(error))
    path = reward.judge.cache_path
    why = "" if path is None else "it is a folder" if path.is_dir() else why_not_writable(path.parent)
    if why and not reward.url:
        problems.append(f"reward.judge.cache_path={path}: {why}; give a file that can be written.")
    return problems


def _judge_problems(config: RunConfig, items: Sequence[PromptItem]) -> Iterator[str]:
    """Yield why the run's own servers cannot judge; servers at `reward.url` are checked once they are reached."""
    if config.reward.url is None and needs_judge({item.task for item in items}, config.reward):
        try:
            kind = judge_of(config.reward)
        except UserError as error:
            yield str(error)
            return
        judged = sorted(task for task, weights in config.reward.weights.items() if "consistency" in weights)
        if kind == "embedding" and judged:
            yield (
                f"reward.weights.{judged[0]}.consistency: sentence embeddings cannot judge reasoning, so the score "
                "would always be missing; set reward.judge.urls or reward.judge.serve_model, or remove the weight."
            )


def _memory_problems(config: RunConfig) -> Iterator[str]:
    """Yield problems of the object store in supervised training; its size is known only for a cluster started here."""
    store_bytes = config.cluster.object_store_mib << 20
    if not is_attached(config) and config.data.cache_bytes > store_bytes * 3 // 4:
        yield (
            f"data.cache_bytes={config.data.cache_bytes} takes over three quarters of "
            f"cluster.object_store_mib={config.cluster.object_store_mib} ({store_bytes} bytes), which "
            "clips in use share; lower the first or raise the second."
        )


def _pixel_problems(config: RunConfig) -> Iterator[str]:
    """Yield the limits on pixels that no frame can keep: one visual token, or a frame of the only size, takes more."""
    shape, data = patch_shape(config.model.path), config.data
    side, smallest = (shape.side_px, "every frame") if shape.side_px else (MERGED * shape.px, "one visual token")
    limits = {"max_pixels": data.max_pixels, "total_pixels": data.total_pixels // data.min_frames}
    for name, pixels in limits.items():
        if pixels < side**2:
            per_frame = " / data.min_frames" if name == "total_pixels" else ""
            yield (
                f"data.{name}{per_frame} = {pixels} pixels, but {smallest} of {config.model.path} is {side} x "
                f"{side} = {side**2}; raise data.{name}."
            )
    if shape.side_px and data.min_pixels > side**2:
        yield (
            f"data.min_pixels = {data.min_pixels} pixels, but {smallest} of {config.model.path} is {side} x {side} = "
            f"{side**2}; lower data.min_pixels."
        )


def _heads_problems(config: RunConfig) -> Iterator[str]:
    if problem := read_model_sizes(config.model.path).heads_problem(config.learner.sequence_parallel):
        yield problem


@dataclass(frozen=True, kw_only=True)
class _RowTokens:
    """A row with its longest response, whose tokens are to be counted.

    response_tokens: None means rollout.max_tokens.  where: location of the response for messages.
    """

    item: PromptItem
    response_tokens: int | None = None
    where: str = ""

    def count(self, prompts: PromptBuilder, grids: Sequence[tuple[int, int, int]]) -> TokenCount:
        return prompts.count_tokens(self.item, grids, self.response_tokens)


def _token_budget(rows: Sequence[_RowTokens], prompts: PromptBuilder) -> Report:
    """Compare prompt plus response of each row with `model.max_model_len`.

    The upper bound from the config's pixel budgets is tried first; clip headers are read only for rows
    that exceed it, because opening thousands of files takes minutes.
    """
    over = [one for one in rows if not _fits(one, prompts)]
    if not over:
        counts = (one.count(prompts, largest_grids(one.item)) for one in rows)
        longest = max(counts, key=lambda count: count.total, default=None)
        return Report(facts=(f"longest possible prompt: {longest}",) if longest else (), problems=())
    problems = list(_too_long(over, prompts))
    hidden = len(problems) - SHOWN
    if hidden > 0:
        problems[SHOWN:] = [f"… and {hidden} more clips"]
    return Report(facts=(f"rows whose clip headers were read: {len(over)}",), problems=tuple(problems))


def _fits(row: _RowTokens, prompts: PromptBuilder) -> bool:
    try:
        row.count(prompts, largest_grids(row.item)).check()
    except PromptTooLong:
        return False
    return True


def _too_long(rows: Sequence[_RowTokens], prompts: PromptBuilder) -> Iterator[str]:
    for one in rows:
        try:
            grids = [plan_grid(spec) for spec in one.item.media]
        except ClipError:
            continue  # not a token problem: data.on_bad_clip decides when the run reaches the row
        try:
            one.count(prompts, grids).check()
        except PromptTooLong as error:
            yield f"{one.where}: {error}" if one.where else str(error)

"""Estimate step times of a planned run from measured or computed phase times."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlsys.config.run import RunConfig
from rlsys.models.sizes import ModelSizes
from rlsys.planning.plan import BYTES, Assumptions, EngineRoom, Line, Prompts, Section, payload_bytes, total_flops
from rlsys.planning.step_bound import StepBound, best_split, splits


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measured phase times in seconds; None means that the time is to be computed.

    generate, score: per group.  update, sync: per step, with the config's ranks.
    """

    generate: float | None = None
    score: float | None = None
    update: float | None = None
    sync: float | None = None


@dataclass(frozen=True, kw_only=True)
class PhaseTimes:
    """Seconds of each phase, as in `Measured`, and how each was found."""

    generate: float
    score: float
    update: float
    sync: float
    how: tuple[str, str, str, str]


def phase_times(
    config: RunConfig,
    sizes: ModelSizes,
    prompts: Prompts,
    room: EngineRoom,
    given: Assumptions,
    measured: Measured,
    *,
    is_judged: bool,
) -> PhaseTimes:
    """Return the phase times: measured ones, and computed from the assumptions for the rest."""
    compute = f"at {given.tflops:g} TFLOP/s x {given.compute_share:g}"
    flops, payload = total_flops(config, prompts), payload_bytes(config, sizes)
    generate, how_generate = _generate(config, sizes, prompts, room, given)
    score = given.judge_s if is_judged else given.rule_s
    update = flops / (config.learner.num_ranks * given.flops)
    sync = payload / (given.link_gb_per_s * 1e9)
    found = (
        (measured.generate, generate, how_generate),
        (measured.score, score, "assumed, by a judge" if is_judged else "assumed, by rules"),
        (measured.update, update, f"{flops:.3g} FLOP of a step on {config.learner.num_ranks} ranks {compute}"),
        (measured.sync, sync, f"{payload / 1e9:.3g} GB at {given.link_gb_per_s:g} GB/s"),
    )
    values = [guess if known is None else known for known, guess, _ in found]
    how = tuple(text if known is None else "given" for known, _, text in found)
    return PhaseTimes(
        generate=values[0], score=values[1], update=values[2], sync=values[3], how=(how[0], how[1], how[2], how[3])
    )


def _generate(
    config: RunConfig, sizes: ModelSizes, prompts: Prompts, room: EngineRoom, given: Assumptions
) -> tuple[float, str]:
    """Return the seconds of a group in an engine with its share of a step: prefill, then decoding token by token."""
    devices, width = config.rollout.tensor_parallel_size, BYTES[config.model.dtype]
    responses = given.response_tokens or config.rollout.max_tokens / 2
    share = math.ceil(config.train.prompts_per_step / config.rollout.num_actors)
    groups, size = max(1, min(room.groups, share)), config.rollout.group_size
    patches = prompts.mean_visual * sizes.merge**2
    prefill_flops = 2 * (
        sizes.language_used() * prompts.mean + sizes.tower * patches + sizes.projector * prompts.mean_visual
    )
    # where states are kept every response reads its prompt; the tower's features are shared
    num_prompts = size if sizes.linear else 1
    prefill_flops += 2 * (num_prompts - 1) * sizes.language_used() * prompts.mean
    # the prompts of all groups that run at once are read in the time in which one group is generated
    prefill = groups * prefill_flops / (devices * given.flops)
    context = num_prompts * prompts.mean + size * responses / 2
    # of experts, those that any of the responses at once needs
    language = sizes.language_used(groups * size)
    states = groups * size * room.per_response
    read = (language + sizes.vocabulary * sizes.hidden) * width + groups * context * room.per_token + states
    decode = responses * read / (devices * given.bytes_per_s)
    how = (
        f"{groups} prompts read in {prefill:.3g} s + {responses:.0f} tokens in {decode:.3g} s "
        f"({read / 1e9:.3g} GB a token at {given.memory_gb_per_s:g} GB/s x {given.bandwidth_share:g})"
    )
    if again := config.perception.rounds - 1:
        # of a later round every response has a prompt of its own
        alone = read + groups * ((size - num_prompts) * prompts.mean + size * responses / 2) * room.per_token
        later = size * prefill + responses * alone / (devices * given.bytes_per_s)
        return prefill + decode + again * later, f"{how}; {again} later rounds in {later:.3g} s each"
    return prefill + decode, how


def time_section(config: RunConfig, times: PhaseTimes, room: EngineRoom) -> Section:
    """Return the section on times: phases, the shortest step at each lag, and the best actor:learner split."""
    bound = StepBound(
        num_groups=config.train.prompts_per_step,
        num_actors=config.rollout.num_actors,
        num_slots=max(room.groups, 1),
        num_ranks=config.learner.data_parallel,
        generate_s=times.generate,
        score_s=times.score,
        update_s=times.update * config.learner.data_parallel / config.train.prompts_per_step,
        sync_s=times.sync,
        weight_update=config.pipeline.weight_update,
    )
    lines = [
        Line(name, f"{value:.3g} s", how)
        for name, value, how in zip(
            ("generate a group", "score a group", "update, a step", "sync, a step"),
            (times.generate, times.score, times.update, times.sync),
            times.how,
            strict=True,
        )
    ]
    for lag in [0] if config.cluster.colocate else sorted({0, 1, 2, config.pipeline.max_lag}):
        mark = "  <- this config" if lag == config.pipeline.max_lag else ""
        lines.append(Line(f"step at max_lag={lag}", f"{bound.step_s(lag):.3g} s", _described(bound, lag) + mark))
    if not config.cluster.colocate:  # then ranks and actors have the same devices
        lines.append(_best_split(config, bound))
    return Section(title="time of a step, at least (equal groups, nothing fails)", lines=tuple(lines))


def _best_split(config: RunConfig, bound: StepBound) -> Line:
    each, lag = config.rollout.tensor_parallel_size, config.pipeline.max_lag
    devices = config.rollout.num_actors * each + config.learner.num_ranks
    of_rank = config.learner.sequence_parallel  # what the bound counts as a rank computes passes on that many
    possible = splits(bound, num_devices=devices, devices_per_actor=each, devices_per_rank=of_rank)
    best = best_split(possible, lag)
    return Line(
        f"best split of {devices} devices",
        f"{best.num_actors} actors : {best.num_ranks * of_rank} ranks",
        f"{best.step_s(lag):.3g} s a step, {_described(best, lag)}",
    )


def _described(bound: StepBound, lag: int) -> str:
    actors, learner = bound.busy(lag)
    return f"actors {actors:.0%} busy, learner {learner:.0%}; longest phase {bound.longest_phase_s:.3g} s"

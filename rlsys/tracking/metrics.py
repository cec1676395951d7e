"""The metrics of a run: their names and their reductions.

Names are `namespace/quantity[/statistic]`, lower case, with a unit suffix unless the metric is a ratio or in nats.
The statistic is always the last part and is stated where the values are recorded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rlsys.loop.staleness import lag_steps
from rlsys.types import Rollout, ScoredGroup, TrainBatch

if TYPE_CHECKING:
    from rlsys.loop.parts import Step

NAMESPACES = (
    "data",
    "rollout",
    "reward",
    "advantage",
    "loss",
    "policy",
    "optim",
    "weights",
    "time",
    "perf",
    "eval",
    "cluster",
)
_NAME = re.compile(rf"({'|'.join(NAMESPACES)})(/[a-z0-9_.]+)+")
_REDUCTIONS: Mapping[str, Callable[[np.ndarray], float]] = {
    "mean": np.mean,
    "std": np.std,
    "min": np.min,
    "max": np.max,
    "sum": np.sum,
    "p50": lambda values: float(np.percentile(values, 50)),
    "p95": lambda values: float(np.percentile(values, 95)),
}
Span = tuple[float, float]


def summarise(name: str, values: Iterable[float] | np.ndarray, *stats: str) -> dict[str, float]:
    """Return `name/stat` -> value for each of `stats` (mean, std, min, max, sum, p50, p95).

    NaN means a missing value and is skipped; without any value every statistic is NaN.
    """
    array = np.asarray(values if isinstance(values, np.ndarray) else list(values), np.float64)
    present = array[~np.isnan(array)]
    return {f"{name}/{stat}": float(_REDUCTIONS[stat](present)) if present.size else float("nan") for stat in stats}


class MetricNames:
    """The metric names used so far in a run; no name may be a prefix folder of another.

    MLflow distinguishes `a/b` and `a/b/mean` in a database, but not in a file store or in its charts.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._folders: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """Add names. Raises ValueError for a name that breaks the rules of this module."""
        for name in names:
            if name in self._names:
                continue
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"metric {name!r}: write namespace/quantity[/statistic] in lower case, "
                    f"with one of the namespaces {', '.join(NAMESPACES)}."
                )
            parts = name.split("/")
            folders = {"/".join(parts[:end]) for end in range(1, len(parts))}
            clash = folders & self._names or {name} & self._folders
            if clash:
                raise ValueError(
                    f"metric {name!r}: {clash.pop()!r} is both a metric and a folder of metrics; rename one."
                )
            self._names.add(name)
            self._folders |= folders


def step_metrics(
    step: Step,
    clip_counters: Mapping[str, float],
    pool_counters: Mapping[str, float],
    reward_counters: Mapping[str, float],
) -> dict[str, float]:
    """Return all metrics of one step, NaN where there was nothing to measure.

    Counters without a namespace get that of their source: `data/`, `rollout/` or `reward/`.
    """
    rollouts = [rollout for scored in step.groups for rollout in scored.rollouts]
    total_s = sum(step.seconds.values())
    num_tokens = sum(rollout.response_ids.size for rollout in rollouts)
    of_the_step = {
        **{f"time/{phase}_s": seconds for phase, seconds in step.seconds.items()},
        "time/step_s": total_s,
        "perf/rollouts_per_s": _ratio(len(rollouts), total_s),
        "perf/response_tokens_per_s": _ratio(num_tokens, total_s),
        "data/bad_draws": float(sum(one.reason == "bad_clip" for one in step.collected.skipped)),
        "data/truth_outside_draws": float(sum(one.reason == "truth_outside" for one in step.collected.skipped)),
        "data/pass_rate_draws": float(sum(one.reason == "pass_rate" for one in step.collected.skipped)),
        "data/quarantined_draws": float(sum(one.reason == "quarantined" for one in step.collected.skipped)),
        "data/drawn": float(step.state.prompts_consumed),
        "rollout/replaced_groups": float(len(step.replaced)),
        "rollout/stale_groups": float(step.collected.num_stale),
        **(summarise("rollout/replaced_reward", rewards_of(step.replaced), "mean") if step.replaced else {}),
        "weights/version": float(step.state.step),
    }
    return merge(
        reward_metrics(step.groups),
        round_metrics(step.groups),
        advantage_metrics(step.batch),
        rollout_metrics(rollouts, trained_at=step.state.step - 1),
        span_metrics(step.groups),
        step.shaping_metrics,
        step.learner_metrics,
        of_the_step,
        _in_namespace("data", clip_counters),
        _in_namespace("rollout", pool_counters),
        _in_namespace("reward", reward_counters),
    )


def merge(*parts: Mapping[str, float]) -> dict[str, float]:
    """Merge the metrics of several sources. Raises ValueError if two sources use the same name."""
    merged: dict[str, float] = {}
    for part in parts:
        if twice := merged.keys() & part.keys():
            raise ValueError(f"metrics recorded twice in one step: {', '.join(sorted(twice))}; rename one of them.")
        merged |= part
    return merged


def reward_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Return statistics of rewards and scores over scored rollouts, rewards by task, and the failed fraction.

    `reward/<status>_frac` gives the reasons for failures: the judge abstained, a server error, an unusable verdict.
    """
    rewards = rewards_of(groups)
    by_name: dict[str, list[np.ndarray]] = {}
    for scored in groups:
        for index, name in enumerate(scored.score_names):
            by_name.setdefault(name, []).append(np.where(scored.is_valid, scored.scores[:, index], np.nan))
    if "total" in by_name:
        raise ValueError("a score is named 'total', which is reserved for the weighted sum; rename the score.")
    metrics = summarise("reward/total", rewards, "mean", "std", "min", "max")
    for name, columns in by_name.items():
        metrics |= summarise(f"reward/{name}", np.concatenate(columns), "mean")
    for task in sorted({scored.group.item.task for scored in groups}):
        values = rewards_of([scored for scored in groups if scored.group.item.task == task])
        metrics |= summarise(f"reward/by_task/{task}", values, "mean")
    spreads = [np.ptp(scored.rewards[scored.is_valid]) for scored in groups if scored.is_valid.any()]
    metrics |= summarise("reward/group_spread", spreads, "mean")
    metrics["reward/failed_frac"] = float(np.mean(np.concatenate([~scored.is_valid for scored in groups])))
    statuses = [reason.partition(":")[0] for scored in groups for reason in scored.reasons]
    for status in ("abstain", "infra", "malformed"):
        metrics[f"reward/{status}_frac"] = statuses.count(status) / len(statuses)
    verdicts = [evidence for scored in groups for evidence in scored.evidence if evidence]
    if verdicts:
        metrics["reward/judge_cached_frac"] = float(np.mean([bool(verdict.get("cached")) for verdict in verdicts]))
    return metrics


def round_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Return the number of rounds of a trajectory, and the reward and scores of each round; {} if none was asked again.

    `rollout/no_clue_frac` is the share of later rounds that were not shown as the response before asked for.
    """
    later = [one for scored in groups for one in scored.later]
    if not later:
        return {}
    num_trajectories = sum(len(scored.group.rollouts) for scored in groups)
    by_round: dict[int, list[ScoredGroup]] = {1: [scored.first or scored for scored in groups]}
    for one in sorted(later, key=lambda one: one.number):
        by_round.setdefault(one.number, []).append(one.scored)
    metrics = {
        "rollout/rounds/mean": 1 + len(later) / num_trajectories,
        "rollout/no_clue_frac": float(np.mean([bool(one.reason) for one in later])),
    }
    for number, parts in by_round.items():
        metrics |= summarise(f"reward/by_round/{number}", rewards_of(parts), "mean")
        for name in sorted({name for part in parts for name in part.score_names}):
            columns = [
                np.where(part.is_valid, part.scores[:, part.score_names.index(name)], np.nan)
                for part in parts
                if name in part.score_names
            ]
            metrics |= summarise(f"reward/{name}_by_round/{number}", np.concatenate(columns), "mean")
    return metrics


def rewards_of(groups: Sequence[ScoredGroup]) -> np.ndarray:
    """Return the rewards of all rollouts of all groups, f64, NaN where there is no reward."""
    return np.concatenate([np.zeros(0), *(np.where(scored.is_valid, scored.rewards, np.nan) for scored in groups)])


def advantage_metrics(batch: TrainBatch) -> dict[str, float]:
    """Return statistics of advantages and the fraction of groups without reward spread, whose advantages are zero."""
    has_none = [not np.any(advantages) for advantages in batch.advantages]
    trained = np.concatenate([adv[mask] for adv, mask in zip(batch.advantages, batch.is_trained, strict=True)])
    return {
        "advantage/zero_groups_frac": float(np.mean(has_none)),
        "advantage/trained_frac": float(np.mean(np.concatenate(batch.is_trained))),
        **summarise("advantage/abs", np.abs(trained), "mean", "max"),
    }


def rollout_metrics(rollouts: Sequence[Rollout], trained_at: int) -> dict[str, float]:
    """Return lengths, finish reasons, times and staleness. trained_at: version of the weights before the update.

    Staleness is per token: if weights change during generation, a response has tokens of several versions.
    """
    versions, counts = np.unique(np.concatenate([rollout.token_versions for rollout in rollouts]), return_counts=True)
    lags = np.repeat([lag_steps(version=trained_at, weight_version=int(one)) for one in versions], counts)
    return {
        **summarise("rollout/response_tokens", [r.response_ids.size for r in rollouts], "mean", "max"),
        **summarise("rollout/prompt_tokens", [r.prompt_ids.size for r in rollouts], "mean", "max"),
        **summarise("rollout/generate_s", [r.generate_s for r in rollouts], "mean", "max"),
        "rollout/truncated_frac": float(np.mean([r.finish_reason == "length" for r in rollouts])),
        "rollout/mixed_version_frac": float(np.mean([np.ptp(r.token_versions) > 0 for r in rollouts])),
        **summarise("policy/sampled_logprob", [float(np.mean(r.response_logprobs)) for r in rollouts], "mean"),
        **summarise("weights/lag_updates", lags, "mean", "max"),
    }


def span_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Return seconds per group and phase, and the fraction of scoring time that overlaps with generation."""
    phases = sorted({phase for scored in groups for phase in scored.spans})
    metrics: dict[str, float] = {}
    for phase in phases:
        lengths = [scored.spans[phase][1] - scored.spans[phase][0] for scored in groups if phase in scored.spans]
        metrics |= summarise(f"time/group_{phase}_s", lengths, "mean", "max")
    scoring = union([scored.spans["score"] for scored in groups if "score" in scored.spans])
    generating = union([scored.spans["generate"] for scored in groups if "generate" in scored.spans])
    metrics["perf/score_hidden_frac"] = _ratio(_length(intersection(scoring, generating)), _length(scoring))
    return metrics


def union(spans: Iterable[Span]) -> list[Span]:
    """Merge overlapping time spans and return them in order."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def intersection(one: Sequence[Span], other: Sequence[Span]) -> list[Span]:
    """Return the time spans that lie in both arguments, each of which must be free of overlaps."""
    pairs = ((max(a[0], b[0]), min(a[1], b[1])) for a in one for b in other)
    return [(start, end) for start, end in pairs if start < end]


def _length(spans: Iterable[Span]) -> float:
    return sum(end - start for start, end in spans)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")


def _in_namespace(namespace: str, counters: Mapping[str, float]) -> dict[str, float]:
    return {name if "/" in name else f"{namespace}/{name}": float(value) for name, value in counters.items()}

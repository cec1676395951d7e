"""Statistics of an update as sums that ranks can add up, and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Reduction = Literal["token_mean", "max", "sum"]

REDUCTIONS: Mapping[str, Reduction] = {
    # of weighted losses, which add up to the loss
    "loss/total": "sum",
    "loss/policy": "sum",
    "loss/kl": "sum",
    "loss/nll": "sum",
    "policy/entropy": "token_mean",
    "policy/ratio/mean": "token_mean",
    "policy/ratio/max": "max",
    "policy/clip_frac": "token_mean",
    "policy/clip_low_frac": "token_mean",
    "policy/clip_high_frac": "token_mean",
    "policy/dual_clip_frac": "token_mean",
    "policy/kl_to_ref": "token_mean",
    "policy/sampler_logprob_diff/mean": "token_mean",
    "policy/sampler_logprob_diff/max": "max",
    "policy/sampler_kl": "token_mean",
    "policy/sampler_ratio/mean": "token_mean",
    "policy/sampler_ratio_squared/mean": "token_mean",
    "policy/correction_factor/mean": "token_mean",
    "policy/correction_capped_frac": "token_mean",
    "policy/correction_masked_frac": "token_mean",
    "perf/learner_tokens": "sum",
    "perf/learner_passes": "max",
    "perf/learner_compilations": "max",
    "optim/grad_norm": "max",
    "optim/lr": "max",
}
"""Metric -> its reduction over the tokens, passes and ranks of one update."""

OVER_UPDATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "loss/total": lambda values: sum(values) / len(values),
    "loss/policy": lambda values: sum(values) / len(values),
    "loss/kl": lambda values: sum(values) / len(values),
    "loss/nll": lambda values: sum(values) / len(values),
    "perf/learner_tokens": sum,
    "perf/learner_passes": sum,
    "optim/lr": lambda values: values[-1],
}
"""Metric -> its reduction over a batch's updates. Others are token means over all tokens, or maxima."""

BEFORE_UPDATES = frozenset(name for name in REDUCTIONS if name.startswith("policy/sampler_"))
"""Metrics of the first update only, because they compare learner and sampler before the policy changes."""


@dataclass
class RankStats:
    """One rank's share of an update's metrics, with the sum for a token mean."""

    values: dict[str, float] = field(default_factory=dict)
    num_tokens: int = 0

    def add(self, name: str, value: float) -> None:
        """Add a value of a metric: the sum over some tokens for a token mean, else a number to add or to compare."""
        if REDUCTIONS[name] == "max":
            self.values[name] = max(value, self.values.get(name, value))
        else:
            self.values[name] = value + self.values.get(name, 0.0)


def combine(updates: Sequence[Sequence[RankStats]]) -> dict[str, float]:
    """Return the metrics of a batch from the statistics of its updates, each by rank.

    Every token counts once in each update, regardless of its rank and pass. `optim/updates` is the number of updates.
    """
    merged = [_over_ranks(by_rank) for by_rank in updates]
    names = dict.fromkeys(name for update in merged for name in update.values)
    metrics: dict[str, float] = {}
    for name in names:
        counted = merged[:1] if name in BEFORE_UPDATES else merged
        values = [update.values[name] for update in counted if name in update.values]
        if REDUCTIONS[name] == "token_mean":
            metrics[name] = sum(values) / sum(update.num_tokens for update in counted)
        else:
            metrics[name] = OVER_UPDATES.get(name, max)(values)
    metrics["optim/updates"] = float(len(updates))
    return _with_effective_samples(metrics)


def _over_ranks(by_rank: Sequence[RankStats]) -> RankStats:
    merged = RankStats(num_tokens=sum(stats.num_tokens for stats in by_rank))
    for stats in by_rank:
        for name, value in stats.values.items():
            merged.add(name, value)
    return merged


def _with_effective_samples(metrics: dict[str, float]) -> dict[str, float]:
    """Replace the mean of w^2 by `policy/effective_sample_frac`, (sum w)^2 / (n sum w^2) over tokens.

    w is the learner's probability over the sampler's. The fraction is 1 if all tokens have the same weight, and 1/n if
    one has all of it. Source: Kish's effective sample size.
    """
    squared = metrics.pop("policy/sampler_ratio_squared/mean", None)
    if squared is not None:
        metrics["policy/effective_sample_frac"] = metrics["policy/sampler_ratio/mean"] ** 2 / squared
    return metrics

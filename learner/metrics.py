"""Numbers of an update, as sums that ranks can add up, and the metrics made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Reduction = Literal["token_mean", "max", "sum"]

REDUCTIONS: Mapping[str, Reduction] = {
    "loss/policy": "token_mean",
    "loss/kl": "token_mean",
    "loss/nll": "token_mean",
    "policy/entropy": "token_mean",
    "policy/ratio/mean": "token_mean",
    "policy/ratio/max": "max",
    "policy/clip_frac": "token_mean",
    "policy/clip_low_frac": "token_mean",
    "policy/clip_high_frac": "token_mean",
    "policy/kl_to_ref": "token_mean",
    "policy/sampler_logprob_diff/mean": "token_mean",
    "policy/sampler_logprob_diff/max": "max",
    "perf/learner_tokens": "sum",
    "perf/learner_passes": "max",
    "optim/grad_norm": "max",
    "optim/lr": "max",
}
"""How a metric comes together from tokens, passes and ranks."""


@dataclass
class RankStats:
    """One rank's share of an update's metrics. Of a token mean it holds the sum."""

    values: dict[str, float] = field(default_factory=dict)
    num_tokens: int = 0

    def add(self, name: str, value: float) -> None:
        """Bring in one more value: a token mean's sum over some tokens, or a number to add or to compare."""
        if REDUCTIONS[name] == "max":
            self.values[name] = max(value, self.values.get(name, value))
        else:
            self.values[name] = value + self.values.get(name, 0.0)


def combine(stats: Sequence[RankStats]) -> dict[str, float]:
    """Metrics of the update, every token counted once whichever rank and pass computed it."""
    merged = RankStats(num_tokens=sum(part.num_tokens for part in stats))
    for part in stats:
        for name, value in part.values.items():
            merged.add(name, value)
    return {
        name: value / merged.num_tokens if REDUCTIONS[name] == "token_mean" else value
        for name, value in merged.values.items()
    }

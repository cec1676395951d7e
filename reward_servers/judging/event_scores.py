"""Turn verdicts on single events into recall, precision and F1. Pure: used while scoring and by `rlsys judge rescore`.

Source: VideoChat-R1 (arXiv:2504.06958), eq. 6: recall = entailed reference events / reference events. Precision is
the same with the roles exchanged, as in Dream-1k (arXiv:2407.00634); F1 is their harmonic mean.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rlsys.types import Json

Tiers = Sequence[tuple[float, float]]
"""(event recall of at least, reward); () rewards the recall itself."""


@dataclass(frozen=True, kw_only=True)
class EventVerdict:
    """The verdict on one event. entailed: None where the judge cannot tell.  reason: the judge's, in a few words."""

    event: str
    entailed: bool | None
    reason: str

    def as_json(self) -> dict[str, Json]:
        """Return the verdict as it stands in the evidence of a score."""
        return {"event": self.event, "entailed": self.entailed, "reason": self.reason}

    @classmethod
    def from_json(cls, value: Json) -> EventVerdict:
        """Return the verdict that `as_json` wrote. Raises ValueError for anything else."""
        match value:
            case {"event": str(event), "entailed": bool() | None as entailed, "reason": str(reason)}:
                return cls(event=event, entailed=entailed, reason=reason)
        raise ValueError(f"verdict {str(value)[:120]}: write event, entailed (true, false or null) and reason.")


def tiered(recall: float, tiers: Tiers) -> float:
    """Return the reward of the highest tier that `recall` reaches, 0 below all; `recall` itself without tiers."""
    if not tiers:
        return recall
    return max(((at_least, reward) for at_least, reward in tiers if recall >= at_least), default=(0.0, 0.0))[1]


def event_scores(
    recall: Sequence[EventVerdict], precision: Sequence[EventVerdict] | None, want: Collection[str], tiers: Tiers
) -> dict[str, float] | None:
    """Return the wanted ones of "recall", "precision" and "f1"; None when an undecided event could change one of them.

    Tiers apply to "recall" alone, which is the reward; precision and F1 are for evaluation. An event that the judge
    cannot tell is neither counted as missed (a fault of the judge would cost reward) nor skipped in the count (a
    caption that cannot be judged would gain by it). So all scores are taken twice, with every undecided event
    entailed and with none: where both agree, as they can under tiers, the verdict stands.
    recall: one verdict per reference event, at least one. precision: one per predicted event, needed for
    "precision" and "f1"; a prediction without events has precision 0.
    """
    least, most = (_scores(recall, precision, want, tiers, undecided) for undecided in (False, True))
    return least if least == most else None


def _scores(
    recall: Sequence[EventVerdict],
    precision: Sequence[EventVerdict] | None,
    want: Collection[str],
    tiers: Tiers,
    undecided: bool,
) -> dict[str, float]:
    found = _share(recall, undecided)
    scores = {"recall": tiered(found, tiers)}
    if precision is not None:
        right = _share(precision, undecided)
        scores["precision"] = right
        scores["f1"] = 2 * found * right / (found + right) if found + right else 0.0
    return {name: scores[name] for name in ("recall", "precision", "f1") if name in want}


def _share(verdicts: Sequence[EventVerdict], undecided: bool) -> float:
    entailed = sum(undecided if verdict.entailed is None else verdict.entailed for verdict in verdicts)
    return entailed / len(verdicts) if verdicts else 0.0

"""Metrics by source, for runs that train on several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlsys.config.data import Source
from rlsys.data.mixture import PromptOrder
from rlsys.loop.parts import Step
from rlsys.tracking.metrics import rewards_of, summarise
from rlsys.types import PromptItem


class SourceMetrics:
    """What a run has taken from each of its sources; nothing for a run with a single source."""

    def __init__(self, sources: Sequence[Source], items: Sequence[PromptItem], order: PromptOrder) -> None:
        self._sources = sources if len(sources) > 1 else ()
        self._num_rows, self._order = Counter(item.source for item in items), order

    def of(self, step: Step) -> dict[str, float]:
        """Return of each source the groups and the reward of a step, and all its prompts and epochs so far."""
        metrics: dict[str, float] = {}
        consumed = self._order.prompts_by_source(step.state.prompts_consumed) if self._sources else []
        for source, num_prompts in zip(self._sources, consumed, strict=True):
            groups = [scored for scored in step.groups if scored.group.item.source == source.name]
            metrics |= {
                f"data/by_source/{source.metric}/rows": float(len(groups)),
                f"data/by_source/{source.metric}/drawn": float(num_prompts),
                f"data/by_source/{source.metric}/epochs": num_prompts / self._num_rows[source.name],
            }
            if groups:
                metrics |= summarise(f"reward/by_source/{source.metric}", rewards_of(groups), "mean")
        return metrics

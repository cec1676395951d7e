"""Responses as rows of a table that a person reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rlsys.types import ScoredGroup


def choose_samples(step: int, groups: Sequence[ScoredGroup], num_samples: int) -> list[dict[str, Any]]:
    """Rows for `num_samples` responses: the first of every group, then the second of every group, and so on."""
    largest = max((len(scored.group.rollouts) for scored in groups), default=0)
    order = [(scored, index) for index in range(largest) for scored in groups if index < len(scored.group.rollouts)]
    return [sample_row(step, scored, index) for scored, index in order[:num_samples]]


def sample_row(step: int, scored: ScoredGroup, index: int) -> dict[str, Any]:
    """What was asked, answered and scored; `reward` and scores are None where scoring failed."""
    item, rollout = scored.group.item, scored.group.rollouts[index]
    is_valid = bool(scored.is_valid[index])
    scores = {
        f"score/{name}": float(scored.scores[index, column]) if is_valid else None
        for column, name in enumerate(scored.score_names)
    }
    return {
        "step": step,
        "prompt_id": item.prompt_id,
        "sample_index": rollout.sample_index,
        "question": item.question,
        "text": rollout.text,
        "truth": json.dumps(item.truth, default=list),
        "reward": float(scored.rewards[index]) if is_valid else None,
        **scores,
        "valid": is_valid,
        "reason": scored.reasons[index],
        "finish_reason": rollout.finish_reason,
        "response_tokens": int(rollout.response_ids.size),
        "weight_version": rollout.weight_version,
    }

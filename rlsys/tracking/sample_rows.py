"""Build the table rows of sampled responses and of the judge's verdicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rlsys.types import ScoredGroup


def choose_samples(step: int, groups: Sequence[ScoredGroup], num_samples: int) -> list[dict[str, Any]]:
    """Return rows for `num_samples` responses: the first of every group, then the second of every group, and so on.

    A response that was asked again has a row for each of its rounds, and counts once.
    """
    largest = max((len(scored.group.rollouts) for scored in groups), default=0)
    order = [(scored, index) for index in range(largest) for scored in groups if index < len(scored.group.rollouts)]
    return [row for scored, index in order[:num_samples] for row in rows_of_rounds(step, scored, index)]


def rows_of_rounds(step: int, scored: ScoredGroup, index: int) -> list[dict[str, Any]]:
    """Return a row for each round of a response; those of several rounds have the column `round`."""
    if not scored.later:
        return [sample_row(step, scored, index)]
    found = [{**sample_row(step, scored.first or scored, index), "round": 1}]
    return found + [
        {**sample_row(step, one.scored, 0), "sample_index": index, "round": one.number}
        for one in scored.later
        if one.sample_index == index
    ]


def verdict_rows(step: int, groups: Sequence[ScoredGroup]) -> list[dict[str, Any]]:
    """Return every verdict of the judge in a step, a row per judged response; `rlsys judge rescore` reads them."""
    return [
        {
            "step": step,
            "prompt_id": scored.group.item.prompt_id,
            "sample_index": rollout.sample_index,
            "task": scored.group.item.task,
            "weight_version": rollout.weight_version,
            "status": scored.reasons[index].partition(":")[0] or "ok",
            "reason": scored.reasons[index],
            "scores": _scores(scored, index),
            "evidence": scored.evidence[index],
        }
        for trajectories in groups
        for scored in (trajectories.first or trajectories, *(one.scored for one in trajectories.later))
        for index, rollout in enumerate(scored.group.rollouts)
        if scored.evidence[index]
    ]


def _scores(scored: ScoredGroup, index: int) -> dict[str, float]:
    if not scored.is_valid[index]:
        return {}
    return {name: float(scored.scores[index, column]) for column, name in enumerate(scored.score_names)}


def sample_row(step: int, scored: ScoredGroup, index: int) -> dict[str, Any]:
    """Return one response with its question and scores as a row; `reward` and scores are None if scoring failed."""
    item, rollout = scored.group.item, scored.group.rollouts[index]
    is_valid = bool(scored.is_valid[index])
    values = _scores(scored, index)
    scores = {f"score/{name}": values.get(name) for name in scored.score_names}
    return {
        "step": step,
        "prompt_id": item.prompt_id,
        "sample_index": rollout.sample_index,
        "task": item.task,
        "question": item.question,
        "text": rollout.text,
        "truth": json.dumps(item.truth, default=list),
        "reward": float(scored.rewards[index]) if is_valid else None,
        **scores,
        "valid": is_valid,
        "reason": scored.reasons[index],
        "verdicts": _in_words(scored.evidence[index]),
        "finish_reason": rollout.finish_reason,
        "response_tokens": int(rollout.response_ids.size),
        "weight_version": rollout.weight_version,
        "newest_version": int(rollout.token_versions[-1]),
    }


def _in_words(evidence: Any) -> str:  # noqa: ANN401
    """Return the judge's verdicts on the reference's events as readable text."""
    if not isinstance(evidence, dict) or not evidence.get("recall"):
        return ""
    lines = [
        f"[{'x' if verdict.get('entailed') else ' '}] {verdict.get('event')} ({verdict.get('reason') or 'no reason'})"
        for verdict in evidence["recall"]
    ]
    return f"{evidence.get('judge')} {evidence.get('model')}: " + "; ".join(lines)

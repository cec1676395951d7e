"""The page of a training step: its sampled responses with frames, spans, scores and the judge's verdicts."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rlsys.config.run import RunConfig
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.answering.answers import answer_of
from rlsys.evaluation.answering.rounds import with_cost
from rlsys.evaluation.pages.page import Section, Table, write_page
from rlsys.evaluation.pages.rounds import ShownRound, page_rounds
from rlsys.evaluation.pages.rows import page_row
from rlsys.evaluation.pages.thumbnails import ROUND_FRAMES, strips_of_clips, thumbnails_of_clip
from rlsys.perception.media import whole_of
from rlsys.tasks.table import task_named
from rlsys.tracking.tracker import Tracker
from rlsys.types import Clip, Json, LaterRound, RolloutGroup, ScoredGroup

log = logging.getLogger(__name__)

FOLDER = "pages"
"""Folder of the pages in `output_dir` and in MLflow."""


def record_rollout_page(tracker: Tracker, config: RunConfig, step: int, groups: Sequence[ScoredGroup]) -> None:
    """Write the page of a step to `pages/step_N.html` and log it, if `tracking.page_every_steps` says so.

    A page that cannot be written is missing, with a warning: no step fails for it.
    """
    every, num_groups = config.tracking.page_every_steps, config.tracking.samples_per_step
    if not every or not num_groups or step % every:
        return
    path = config.output_dir / FOLDER / f"step_{step:06d}.html"
    try:
        write_rollout_page(path, step, groups, num_groups=num_groups, timeout_s=config.data.decode_timeout_s)
        tracker.log_artifact(path, FOLDER)
    except OSError as error:
        log.warning("step %d: the page of its responses could not be written: %s", step, error)


def write_rollout_page(
    path: Path, step: int, groups: Sequence[ScoredGroup], *, num_groups: int, timeout_s: float
) -> Path:
    """Write the page of a step's groups and return its path.

    num_groups: number of groups whose responses are shown, the first ones.  timeout_s: of fetching a clip's frames.
    """
    rows = [row for scored in groups[:num_groups] for row in _rows(scored, timeout_s)]
    return write_page(path, f"Responses of step {step}", [_section(step, groups, num_groups)], rows)


def _rows(scored: ScoredGroup, timeout_s: float) -> Iterator[dict[str, Json]]:
    """Yield the responses of a group; the first one has the frames, the others name it.

    A response that was asked again has its rounds, each with its frames; those of the first round are with the first
    response alone.
    """
    item, rollouts = scored.group.item, scored.group.rollouts
    clips = _clips(scored.group, timeout_s)
    frames = [frame for clip in clips for frame in thumbnails_of_clip(clip.info, clip.frames)]
    for index, rollout in enumerate(rollouts):
        parts = _parts(scored, index)
        last, place = parts[-1]
        answered = _answered(last, place)
        scores = _scores(last, place)
        row = page_row(
            replace(answered, row_id=rollout.rollout_id),
            group=item.source or item.prompt_id.partition(":")[0],
            frames=() if index else frames,
            frames_of=rollouts[0].rollout_id if index else "",
            scores=scores,
            score=_score(item.task, scores),
        )
        if len(parts) > 1:
            looks = [one for one in scored.later if one.sample_index == index]
            row |= page_rounds(
                [
                    _shown_round(part, place, look, [] if index and not look else _clips(part.group, timeout_s))
                    for (part, place), look in zip(parts, (None, *looks), strict=True)
                ]
            )
        yield row


def _parts(scored: ScoredGroup, index: int) -> list[tuple[ScoredGroup, int]]:
    """Return the rounds of a response, each as a group and the response's place in it."""
    later = [(one.scored, 0) for one in scored.later if one.sample_index == index]
    return [(scored.first or scored, index), *later]


def _answered(scored: ScoredGroup, index: int) -> Answered:
    item, rollout = scored.group.item, scored.group.rollouts[index]
    return Answered(
        row_id=rollout.rollout_id,
        task=item.task,
        question=item.question,
        options=item.options,
        truth=item.truth,
        labels={**item.labels, "finish_reason": rollout.finish_reason, "tokens": rollout.response_ids.size},
        texts=(rollout.text,),
        reason=scored.reasons[index],
        verdicts=scored.evidence[index],
    )


def _scores(scored: ScoredGroup, index: int) -> dict[str, float]:
    if not scored.is_valid[index]:
        return {}
    names = dict(zip(scored.score_names, scored.scores[index].tolist(), strict=True))
    return {"reward": float(scored.rewards[index]), **names}


def _score(task: str, scores: Mapping[str, float]) -> float | None:
    return scores.get(task_named(task).correctness, scores.get("reward"))


def _shown_round(scored: ScoredGroup, index: int, look: LaterRound | None, clips: Sequence[Clip]) -> ShownRound:
    """Return a round as the page has it. look: None for the first one."""
    group, scores = scored.group, _scores(scored, index)
    answer = with_cost(answer_of(group))
    whole = whole_of(group.item.media, [clip.info for clip in group.clips]) if look is None else None
    told = {"clue": look.clue, "reason": look.reason} if look else {"whole": whole.to_json() if whole else None}
    score = _score(group.item.task, scores)
    return ShownRound(
        row=_answered(scored, index),
        answer=replace(answer, look={**answer.look, **told}),
        asked=group.item,
        strips=strips_of_clips(clips, ROUND_FRAMES // 2),
        scores=scores,
        score=math.nan if score is None else score,
    )


def _clips(group: RolloutGroup, timeout_s: float) -> list[Clip]:
    """Return a group's clips, [] if their frames are lost: they are not decoded again for a page."""
    import ray
    from ray.exceptions import GetTimeoutError, ObjectLostError

    found: list[Clip] = []
    for clip in group.clips:
        try:
            is_stored = isinstance(clip.frames, ray.ObjectRef)
            frames = ray.get(clip.frames, timeout=timeout_s) if is_stored else clip.frames
        except (ObjectLostError, GetTimeoutError) as error:
            log.warning("%s: its page has no frames: %s", group.item.prompt_id, str(error).partition("\n")[0])
            return []
        found.append(Clip(info=clip.info, frames=frames))
    return found


def _section(step: int, groups: Sequence[ScoredGroup], num_groups: int) -> Section:
    valid = [scored for scored in groups if scored.is_valid.any()]
    values: dict[str, list[np.ndarray]] = {}
    for scored in valid:
        values.setdefault("reward", []).append(scored.rewards[scored.is_valid])
        for column, name in enumerate(scored.score_names):
            values.setdefault(name, []).append(scored.scores[scored.is_valid, column])
    table = [(name, *_summary(np.concatenate(parts))) for name, parts in values.items()]
    num_responses = sum(len(scored.group.rollouts) for scored in groups)
    facts = [
        ("step", str(step)),
        ("groups", str(len(groups))),
        ("responses", str(num_responses)),
        ("not scored", str(num_responses - sum(int(scored.is_valid.sum()) for scored in groups))),
        ("groups shown", str(min(num_groups, len(groups)))),
    ]
    columns = ["score", "mean", "lowest", "highest"]
    return Section(title="Step", facts=facts, tables=[Table(title="All responses", columns=columns, rows=table)])


def _summary(values: np.ndarray) -> tuple[float, float, float]:
    return float(np.nanmean(values)), float(np.nanmin(values)), float(np.nanmax(values))

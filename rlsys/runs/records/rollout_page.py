"""The page of a training step: its sampled responses with frames, spans, scores and the judge's verdicts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rlsys.config.run import RunConfig
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.pages.page import Section, Table, write_page
from rlsys.evaluation.pages.rows import page_row
from rlsys.evaluation.pages.thumbnails import Thumbnail, thumbnails_of_clip
from rlsys.tasks.table import task_named
from rlsys.tracking.tracker import Tracker
from rlsys.types import Json, RolloutGroup, ScoredGroup

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
    """Yield the responses of a group; the first one has the frames, the others name it."""
    item, rollouts = scored.group.item, scored.group.rollouts
    correctness = task_named(item.task).correctness
    frames = _frames(scored.group, timeout_s)
    for index, rollout in enumerate(rollouts):
        scores: dict[str, float] = {}
        if scored.is_valid[index]:
            names = dict(zip(scored.score_names, scored.scores[index].tolist(), strict=True))
            scores = {"reward": float(scored.rewards[index]), **names}
        answered = Answered(
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
        yield page_row(
            answered,
            group=item.source or item.prompt_id.partition(":")[0],
            frames=() if index else frames,
            frames_of=rollouts[0].rollout_id if index else "",
            scores=scores,
            score=scores.get(correctness, scores.get("reward")),
        )


def _frames(group: RolloutGroup, timeout_s: float) -> list[Thumbnail]:
    """Return thumbnails of a group's clips, [] if their frames are lost: they are not decoded again for a page."""
    import ray
    from ray.exceptions import GetTimeoutError, ObjectLostError

    found: list[Thumbnail] = []
    for clip in group.clips:
        try:
            is_stored = isinstance(clip.frames, ray.ObjectRef)
            frames = ray.get(clip.frames, timeout=timeout_s) if is_stored else clip.frames
        except (ObjectLostError, GetTimeoutError) as error:
            log.warning("%s: its page has no frames: %s", group.item.prompt_id, str(error).partition("\n")[0])
            return []
        found += thumbnails_of_clip(clip.info, frames)
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

"""Answers to the rows of the data sets of an evaluation, kept on disk as they come."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlsys.config.data import Source, resolved
from rlsys.config.evaluation import Control
from rlsys.config.run import ConfigError, RunConfig
from rlsys.data.annotations.annotations import Annotations, load_annotations
from rlsys.data.video.budgets import largest_clip_tokens
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.answers import Answer, AnswersFile
from rlsys.evaluation.modes import Mode, modes_of
from rlsys.evaluation.responders import Responder, collect_answers
from rlsys.types import PromptItem

log = logging.getLogger(__name__)

BYTES_PER_TOKEN = 28 * 28 * 2 * 3
"""Bytes of the frames that one visual token shows: 28 x 28 pixels of two frames in RGB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedSet:
    """A data set with what was answered to its rows, by mode.

    source: its files and budgets.  num_rows: of its whole file.  items: the rows that were asked, by id.
    protocols: names of those that score it, () for those of its format.
    """

    name: str
    source: Source
    protocols: tuple[str, ...]
    num_rows: int
    items: Mapping[str, PromptItem]
    answered: Mapping[str, Sequence[Answered]]
    answers: Mapping[str, Mapping[str, Answer]]


def answer_sets(
    config: RunConfig,
    chosen: Sequence[ChosenSet],
    out: Path,
    model: Mapping[str, str],
    open_model: Callable[[], AbstractContextManager[Responder]],
    controls: Sequence[Control],
) -> list[EvaluatedSet]:
    """Answer all rows of the sets that have no answer in `out` yet, and return the sets with all their answers.

    Answers are in `out/answers/SET/MODE.jsonl`. model: what identifies the model that answers, by name; answers of
    another one are refused. open_model: starts it, if any answer is missing.
    """
    loaded = [_load(one) for one in chosen]
    with ExitStack() as resources:
        plans = []
        for one, rows in zip(chosen, loaded, strict=True):
            for mode in _modes(config, one, rows, controls):
                path = out / "answers" / one.name / f"{mode.name}.jsonl"
                identity = {**model, **_identity(config, one, mode)}
                plans.append((one, rows, mode, resources.enter_context(AnswersFile(path, identity))))
        if any(len(mode.rows) > len(file.answers) for _, _, mode, file in plans):
            with open_model() as responder, _progress() as progress:
                for one, _, mode, file in plans:
                    _collect(config, responder, mode, file, progress, f"{one.name}, {mode.name}")
    return [
        EvaluatedSet(
            name=one.name,
            source=one.source,
            protocols=one.protocols,
            num_rows=rows.num_queries,
            items={item.prompt_id: item for item in rows.items},
            answers={mode.name: file.answers for each, _, mode, file in plans if each is one},
            answered={
                mode.name: answered_rows(rows, mode, file.answers) for each, _, mode, file in plans if each is one
            },
        )
        for one, rows in zip(chosen, loaded, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class ChosenSet:
    """A set of `evaluation.sets` with all its settings."""

    name: str
    source: Source
    protocols: tuple[str, ...]
    num_prompts: int


def chosen_sets(config: RunConfig, names: Sequence[str] = ()) -> list[ChosenSet]:
    """Return the sets of the config that have these names, all without names. Raises ConfigError for an unknown one."""
    given = config.evaluation.sets
    if not given:
        raise ConfigError("evaluation.sets is empty, so there is nothing to evaluate; list a data set with its files.")
    found = [
        ChosenSet(
            name=one.given_name,
            source=resolved(config.data, one, f"evaluation.sets.{index}.videos and data.videos are"),
            protocols=one.protocols,
            num_prompts=one.num_prompts,
        )
        for index, one in enumerate(given)
    ]
    if unknown := [name for name in names if name not in {one.name for one in found}]:
        raise ConfigError(
            f"--datasets: {', '.join(unknown)} is not among evaluation.sets: {', '.join(one.name for one in found)}."
        )
    return [one for one in found if not names or one.name in names]


def _load(one: ChosenSet) -> Annotations:
    source = one.source
    rows = load_annotations(
        source.annotations,
        videos=source.videos,
        data=source.data,
        keep="published",
        name=source.name,
        split=source.split,
        task=source.task,
    )
    log.info("%s: %d rows, %d of them cannot be asked", one.name, rows.num_queries, len(rows.unanswerable))
    if not rows.items:
        raise ConfigError(
            f"{source.annotations}: none of its {rows.num_queries} rows can be asked, the first because "
            f"{rows.unanswerable[0].reason if rows.unanswerable else 'the file is empty'}."
        )
    return rows


def _modes(config: RunConfig, one: ChosenSet, rows: Annotations, controls: Sequence[Control]) -> Iterator[Mode]:
    evaluation = config.evaluation
    return modes_of(
        rows.items[: one.num_prompts or None],
        seed=config.seed,
        max_tokens=config.rollout.max_tokens,
        num_samples=evaluation.num_samples,
        controls=controls,
        control_prompts=evaluation.control_prompts,
    )


def _identity(config: RunConfig, one: ChosenSet, mode: Mode) -> dict[str, str]:
    """Return what the answers depend on beside the model, by name."""
    data = one.source.data
    budgets = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels", "think", "prompt_style")
    return {
        "rows": f"{data.format} {hashlib.sha256(one.source.annotations.read_bytes()).hexdigest()[:16]}",
        "clips and prompts": ", ".join(f"{name}={getattr(data, name)}" for name in budgets),
        "sampling": f"{mode.name}, max_tokens={config.rollout.max_tokens}, seed={config.seed}, "
        f"samples={mode.rows[0][1].num_samples if mode.rows else 0}",
    }


def _collect(
    config: RunConfig, responder: Responder, mode: Mode, file: AnswersFile, progress: Progress, title: str
) -> None:
    bar = progress.add_task(title, total=len(mode.rows), completed=len(file.answers))
    num_samples = mode.rows[0][1].num_samples if mode.rows else 1
    at_once = _at_once(config, num_samples)
    collect_answers(
        responder,
        mode.rows,
        file,
        at_once=at_once,
        ahead=config.data.decode_ahead,
        note=lambda _: progress.advance(bar),
    )
    problems = [answer for answer in file.answers.values() if answer.problem]
    log.info("%s: %d answers, %d rows without one", title, len(file.answers), len(problems))


def _at_once(config: RunConfig, num_samples: int) -> int:
    """Return how many rows are in flight: what fills all engines, as far as the clips in flight fit the clip cache."""
    endpoint = config.evaluation.endpoint
    if endpoint.url is not None:
        return endpoint.concurrency
    fits = config.data.cache_bytes // (largest_clip_tokens(config.data) * BYTES_PER_TOKEN)
    fill = -(-config.rollout.num_actors * config.rollout.max_num_seqs // num_samples)
    return max(config.rollout.num_actors, min(fill, fits))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    )


def answered_rows(rows: Annotations, mode: Mode, answers: Mapping[str, Answer]) -> list[Answered]:
    """Return the rows that `mode` asks, in the file's order, with their answers.

    In the modes that ask all rows the unanswerable ones follow, without texts, so that they count as wrong.
    """
    found = [
        Answered(
            row_id=item.prompt_id,
            task=item.task,
            question=item.question,
            options=item.options,
            truth=item.truth,
            labels=item.labels,
            texts=answers[item.prompt_id].texts,
            reason=answers[item.prompt_id].problem,
        )
        for item, _ in mode.rows
    ]
    asked_all = mode.name in ("greedy", "sampled") and len(mode.rows) == len(rows.items)
    return found + [
        Answered(
            row_id=row.prompt_id,
            task=row.task,
            question=row.question,
            options=row.options,
            truth=row.truth,
            labels=row.labels,
            reason=row.reason,
        )
        for row in (rows.unanswerable if asked_all else ())
    ]

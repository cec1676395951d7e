"""Answers to the rows of the data sets of an evaluation, kept on disk as they come."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlsys.config.data import DataConfig, Source, resolved
from rlsys.config.evaluation import Control, EvaluationSet
from rlsys.config.run import ConfigError, RunConfig
from rlsys.data.annotations.annotations import Annotations, load_annotations
from rlsys.data.annotations.media import with_patches
from rlsys.data.video.budgets import MERGED, largest_clip_tokens, patch_bytes
from rlsys.evaluation.answered import Answered, unasked
from rlsys.evaluation.answering.answers import Answer, AnswersFile
from rlsys.evaluation.answering.modes import Mode, ModeName, modes_of
from rlsys.evaluation.answering.responders import Responder
from rlsys.evaluation.evaluated import EvaluatedSet
from rlsys.evaluation.predictions import read_predictions
from rlsys.evaluation.protocols.table import PROTOCOLS
from rlsys.models.model_config import patch_shape
from rlsys.perception.choose import later_data
from rlsys.runs.evaluating.equal_tokens import with_largest_look
from rlsys.runs.evaluating.rounds import OneRound, SetRounds, set_rounds
from rlsys.types import PatchShape, PromptItem

log = logging.getLogger(__name__)


def answer_sets(
    config: RunConfig,
    chosen: Sequence[ChosenSet],
    out: Path,
    model: Mapping[str, str],
    open_model: Callable[[], AbstractContextManager[Responder]],
    controls: Sequence[Control],
    *,
    shows_progress: bool = True,
) -> list[EvaluatedSet]:
    """Answer all rows of the sets that have no answer in `out` yet, and return the sets with all their answers.

    Answers are in `out/answers/SET/MODE.jsonl`. model: what identifies the model that answers, by name; answers of
    another one are refused. open_model: starts it, if any answer is missing.
    Raises AnswersDiffer for answers in `out` of another model, other rows or another setting.
    """
    with ExitStack() as resources:
        plans: list[_Plan] = []
        for one in chosen:
            for mode in _modes(config, one, controls):
                folder = out / "answers" / one.name
                identity = {**model, **_identity(config, one, mode)}
                if mode.name == "greedy" and config.perception.rounds > 1:
                    plans.append((one, set_rounds(config, mode, folder, identity, controls, resources)))
                else:
                    file = resources.enter_context(AnswersFile(folder / f"{mode.name}.jsonl", identity))
                    plans.append((one, OneRound(mode=mode, file=file)))
        if any(not how.is_complete for _, how in plans):
            with open_model() as responder, _progress(shows_progress) as progress:
                for one, how in plans:
                    _collect(config, responder, one, how, progress)
        found = [(one, *mode) for one, how in plans for mode in how.modes()]
    return [
        one.evaluated(
            {name: answered_rows(one.rows, mode, answers) for each, name, mode, answers in found if each is one},
            {name: answers for each, name, mode, answers in found if each is one},
        )
        for one in chosen
    ]


def predicted_sets(chosen: Sequence[ChosenSet], predictions: Path) -> list[EvaluatedSet]:
    """Return the only chosen set with the texts of a file of predictions; what does not fit is logged.

    Raises ConfigError for several sets, PredictionsError for a file that cannot be read.
    """
    if len(chosen) != 1:
        raise ConfigError(
            f"--predictions {predictions} has the answers to one data set; choose it with --datasets: "
            f"{', '.join(one.name for one in chosen)}."
        )
    (one,) = chosen
    found = read_predictions(predictions, all_rows(one.rows))
    for line in found.lines():
        log.info("%s: %s", one.name, line)
    rows: Sequence[Answered] = found.answered
    if one.num_prompts:  # those that a model would be asked if all videos were there
        rows = [row for row in rows if row.truth is not None][: one.num_prompts]
    answered: dict[ModeName, Sequence[Answered]] = {"greedy": rows}
    if any(len(row.texts) > 1 for row in rows):
        answered["sampled"] = rows
    return [one.evaluated(answered, {"greedy": {}})]


def annotations_digest(annotations: Path) -> str:
    """Return the SHA-256 of an annotation file; of a folder, that of the names and sizes of its files."""
    if annotations.is_file():
        return hashlib.sha256(annotations.read_bytes()).hexdigest()
    files = sorted(path for path in annotations.rglob("*") if path.is_file())
    listed = "".join(f"{file.relative_to(annotations)}:{file.stat().st_size}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class ChosenSet:
    """A set of `evaluation.sets` with all its settings and its rows. digest: of its annotations."""

    name: str
    source: Source
    digest: str
    protocols: tuple[str, ...]
    num_prompts: int
    rows: Annotations

    @property
    def asked(self) -> tuple[PromptItem, ...]:
        """The rows that are asked."""
        return self.rows.items[: self.num_prompts or None]

    def evaluated(
        self, answered: Mapping[ModeName, Sequence[Answered]], answers: Mapping[ModeName, Mapping[str, Answer]]
    ) -> EvaluatedSet:
        """Return the set with answers to its rows."""
        return EvaluatedSet(
            name=self.name,
            source=self.source,
            digest=self.digest,
            protocols=self.protocols,
            num_rows=self.rows.num_queries,
            items={item.prompt_id: item for item in self.rows.items},
            answered=answered,
            answers=answers,
        )

    def unanswered(self) -> EvaluatedSet:
        """Return the set without any answer, which has every metric that it can have."""
        return self.evaluated({"greedy": all_rows(self.rows)}, {"greedy": {}})


def chosen_sets(config: RunConfig, names: Sequence[str] = (), *, needs_videos: bool = True) -> list[ChosenSet]:
    """Return the sets of the config that have these names, all without names, with their rows.

    needs_videos: whether rows whose video is missing cannot be used. Raises ConfigError for an unknown name or
    protocol, a set without a folder of videos, and one of whose rows none can be used.
    """
    given = {one.given_name: one for one in config.evaluation.sets}
    if not given:
        raise ConfigError("evaluation.sets is empty, so there is nothing to evaluate; list a data set with its files.")
    if unknown := [name for name in names if name not in given]:
        raise ConfigError(f"--datasets: {', '.join(unknown)} is not among evaluation.sets: {', '.join(given)}.")
    data = config.data
    if not needs_videos and data.videos is None:
        data = data.model_copy(update={"videos": Path()})
    shape = patch_shape(config.model.path)
    return [_chosen(data, one, needs_videos, shape) for name, one in given.items() if not names or name in names]


def _chosen(data: DataConfig, given: EvaluationSet, needs_videos: bool, shape: PatchShape) -> ChosenSet:
    where = f"evaluation.sets, {given.given_name}"
    if unknown := [name for name in given.protocols if name not in PROTOCOLS]:
        raise ConfigError(
            f"{where}: no protocol is named {', '.join(unknown)}; docs/evaluation.md lists them: "
            f"{', '.join(PROTOCOLS)}."
        )
    source = resolved(data, given, f"{where}: its videos and data.videos are")
    rows = _load(source, needs_videos=needs_videos)
    return ChosenSet(
        name=source.name,
        source=source,
        digest=annotations_digest(source.annotations),
        protocols=given.protocols,
        num_prompts=given.num_prompts,
        rows=replace(rows, items=with_patches(rows.items, shape)),
    )


def _load(source: Source, *, needs_videos: bool) -> Annotations:
    rows = load_annotations(
        source.annotations,
        # without a model they are only shown, where they are
        videos=source.videos if needs_videos or source.videos.is_dir() else Path(),
        data=source.data,
        keep="published",
        name=source.name,
        split=source.split,
        task=source.task,
    )
    if needs_videos:
        log.info("%s: %d rows, %d of them cannot be asked", source.name, rows.num_queries, len(rows.unanswerable))
    if not rows.num_queries or (needs_videos and not rows.items):
        raise ConfigError(
            f"{source.annotations}: none of its {rows.num_queries} rows can be asked, the first because "
            f"{rows.unanswerable[0].reason if rows.unanswerable else 'the file is empty'}."
        )
    return rows


def _modes(config: RunConfig, one: ChosenSet, controls: Sequence[Control]) -> Iterator[Mode]:
    evaluation = config.evaluation
    return modes_of(
        one.asked,
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
    how = {"split": one.source.split, "task": one.source.task, "columns": dict(data.columns) or None}
    return {
        "rows": f"{data.format} {one.digest[:16]}" + "".join(f", {name} {how[name]}" for name in how if how[name]),
        "clips and prompts": ", ".join(f"{name}={getattr(data, name)}" for name in budgets),
        "sampling": f"{mode.name}, max_tokens={config.rollout.max_tokens}, seed={config.seed}, "
        f"samples={mode.rows[0][1].num_samples if mode.rows else 0}",
    }


_Plan = tuple[ChosenSet, OneRound | SetRounds]


def _collect(
    config: RunConfig, responder: Responder, one: ChosenSet, how: OneRound | SetRounds, progress: Progress
) -> None:
    rows = how.mode.rows
    title = f"{one.name}, {how.mode.name}"
    bar = progress.add_task(title, total=len(rows), completed=how.num_answered)
    num_samples = rows[0][1].num_samples if rows else 1
    how.collect(
        responder,
        note=lambda _: progress.advance(bar),
        at_once=_at_once(config, one.source.data, num_samples),
        ahead=config.data.decode_ahead,
    )
    for name, _, answers in how.modes():
        problems = [answer for answer in answers.values() if answer.problem]
        log.info("%s, %s: %d answers, %d rows without one", one.name, name, len(answers), len(problems))


def _at_once(config: RunConfig, data: DataConfig, num_samples: int) -> int:
    """Return how many rows are in flight: what fills all engines, as far as the clips in flight fit the clip cache."""
    endpoint = config.evaluation.endpoint
    if endpoint.url is not None:
        return endpoint.concurrency
    shape = patch_shape(config.model.path)
    perception = with_largest_look(config).perception
    largest = max(largest_clip_tokens(one, shape) for one in (data, later_data(data, perception)))
    fits = config.data.cache_bytes // (largest * MERGED**2 * patch_bytes(shape))
    fill = -(-config.rollout.num_actors * config.rollout.max_num_seqs // num_samples)
    return max(config.rollout.num_actors, min(fill, fits))


def _progress(is_shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not is_shown,
    )


def answered_rows(rows: Annotations, mode: Mode, answers: Mapping[str, Answer]) -> list[Answered]:
    """Return the rows that `mode` asks, in the file's order, with their answers.

    Where all rows are asked, those that cannot be asked are among them, without texts, so that they count as wrong.
    """
    asked = {item.prompt_id for item, _ in mode.rows}
    asks_all = mode.name in ("greedy", "sampled") and len(asked) == len(rows.items)
    known = {item.prompt_id for item in rows.items}
    return [
        replace(row, texts=answers[row.row_id].texts, reason=answers[row.row_id].problem)
        if row.row_id in asked
        else row
        for row in all_rows(rows)
        if row.row_id in asked or (asks_all and row.row_id not in known)
    ]


def all_rows(rows: Annotations) -> list[Answered]:
    """Return all rows of a file in its order, without answers."""
    found = [unasked(item) for item in rows.items]
    for row in rows.unanswerable:  # in the order of the file, so each finds its place
        found.insert(row.place, unasked(row))
    return found

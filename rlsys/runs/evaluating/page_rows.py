"""The rows of an evaluation on its page: some of them with the frames that the model was shown, round by round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from rlsys.config.run import RunConfig
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.answering.answers import Answer
from rlsys.evaluation.answering.modes import evenly_spaced
from rlsys.evaluation.answering.rounds import asked_in_rounds
from rlsys.evaluation.evaluated import EvaluatedSet, scored
from rlsys.evaluation.pages.rounds import ShownRound, page_rounds
from rlsys.evaluation.pages.rows import page_row
from rlsys.evaluation.pages.thumbnails import Strip, Thumbnail, thumbnails, thumbnails_of_rounds
from rlsys.evaluation.protocols.protocol import Protocol_
from rlsys.evaluation.rounds import round_names
from rlsys.perception.choose import first_item, next_turn_of
from rlsys.types import Json, PromptItem

AskedByRow = Mapping[str, Sequence[PromptItem | None]]
Scores = Mapping[str, float]


def page_rows(config: RunConfig, one: EvaluatedSet) -> Iterator[dict[str, Json]]:
    """Yield all rows of a set as a page takes them; `evaluation.page_rows` of them have their frames.

    A row that was asked in several rounds has the frames, the clue, the response and the score of each.
    """
    greedy = one.answered["greedy"]
    answerable = [row for row in greedy if row.row_id in one.items and row.texts]
    shown = [answerable[index] for index in evenly_spaced(len(answerable), config.evaluation.page_rows)]
    asked = _asked_in_rounds(config, one, shown)
    strips, frames = _pictures(config, one, shown, asked)
    for task in one.tasks():
        protocol = one.protocols_of(task)[0]
        by_round = [
            {row.row_id: (row, scores) for row, scores in scored(one.answered[name], protocol)}
            for name in round_names(one.answered)
        ]
        for row, scores in scored([row for row in greedy if row.task == task], protocol):
            name = row.row_id
            score = scores[protocol.row_score]
            page = page_row(row, group=one.name, frames=frames.get(name, []), scores=scores, score=score)
            if name in asked:
                found = [one_round[name] for one_round in by_round]
                page |= page_rounds(list(_shown_rounds(one, protocol, name, asked[name], strips[name], found)))
            yield page


def _asked_in_rounds(config: RunConfig, one: EvaluatedSet, shown: Sequence[Answered]) -> AskedByRow:
    """Return what each round asked, by row, of rows that were asked in more than one."""
    names = round_names(one.answered)
    if not names:
        return {}
    turn = next_turn_of(config.perception, config.answers.reading)
    first = partial(first_item, perception=config.perception)
    found = {
        row.row_id: asked_in_rounds(one.items[row.row_id], _answers_of(one, row.row_id), turn, first) for row in shown
    }
    return {name: asked for name, asked in found.items() if sum(item is not None for item in asked) > 1}


def _answers_of(one: EvaluatedSet, row_id: str) -> list[Answer]:
    return [one.answers[name][row_id] for name in round_names(one.answered)]


def _pictures(
    config: RunConfig, one: EvaluatedSet, shown: Sequence[Answered], asked: AskedByRow
) -> tuple[Mapping[str, list[list[Strip]]], Mapping[str, list[Thumbnail]]]:
    """Return the strips of rows with several rounds, of the rounds that were asked, and the frames of the others."""
    workers, timeout_s = config.data.decode_workers, config.data.decode_timeout_s
    strips = thumbnails_of_rounds(
        [[item.media for item in rounds if item is not None] for rounds in asked.values()],
        workers=workers,
        timeout_s=timeout_s,
    )
    once = [row.row_id for row in shown if row.row_id not in asked]
    frames = thumbnails([one.items[name].media for name in once], workers=workers, timeout_s=timeout_s)
    return dict(zip(asked, strips, strict=True)), dict(zip(once, frames, strict=True))


def _shown_rounds(
    one: EvaluatedSet,
    protocol: Protocol_,
    row_id: str,
    asked: Sequence[PromptItem | None],
    strips: Sequence[Sequence[Strip]],
    found: Sequence[tuple[Answered, Scores]],
) -> Iterator[ShownRound]:
    drawn = iter(strips)
    for item, answer, (row, scores) in zip(asked, _answers_of(one, row_id), found, strict=True):
        yield ShownRound(
            row=row,
            answer=answer,
            asked=item,
            strips=() if item is None else next(drawn, ()),
            scores=scores,
            score=scores[protocol.row_score],
        )

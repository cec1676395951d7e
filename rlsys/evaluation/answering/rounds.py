"""Rows that are answered round by round: what the next round shows is decided by the answer before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from itertools import islice

from rlsys.data.video.budgets import MERGED
from rlsys.errors import RowUnusable, UserError
from rlsys.evaluation.answering.answers import Answer, AnswersFile
from rlsys.evaluation.answering.responders import POLL_S, Responder, RowRefused
from rlsys.perception.clues import Clue
from rlsys.perception.controls import one_round
from rlsys.perception.media import WholeClip, whole_of
from rlsys.perception.turns import NextTurn, Round, Show, Stop, item_of
from rlsys.types import Json, PromptItem, Sampling

Rows = Sequence[tuple[PromptItem, Sampling]]
SecondLook = Callable[[PromptItem, WholeClip | None, Sequence[Round]], Show | None]
"""What a control shows in place of the second round, None for a row that it cannot be made for."""


@dataclass(eq=False)
class _Trajectory:
    """A row on its way through its rounds. shown: what the round that is being answered shows; None for the first."""

    item: PromptItem
    sampling: Sampling
    shown: Show | None = None


class Rounds:
    """The rounds of the rows of a set, each kept in a file of its own.

    files: of round 1, 2, …; every row is in each of them in the end: a row that stops early with the answer that it
    stopped with.  first: the row as its first round asks it.
    """

    def __init__(
        self,
        rows: Rows,
        files: Sequence[AnswersFile],
        next_turn: NextTurn,
        first: Callable[[PromptItem], PromptItem] = lambda item: item,
    ) -> None:
        self.rows, self.files = rows, files
        self._next_turn, self._first = next_turn, first

    @property
    def is_complete(self) -> bool:
        """Whether every row has an answer in every round."""
        return all(len(file.answers) >= len(self.rows) for file in self.files)

    def collect(
        self, responder: Responder, *, at_once: int, ahead: int, note: Callable[[Answer], None] = lambda _: None
    ) -> None:
        """Ask every row in every round that has no answer yet; a row's next round starts as soon as its last one ends.

        at_once: number of rows in flight.  ahead: number of further rows whose clips are decoded meanwhile.
        note: called with the last answer of each row. Rows that cannot be answered, and those that an endpoint
        refuses, are as in `collect_answers`; in a later round they keep the answer before, with the reason.
        Raises UserError if all rows are refused in their first round.
        """
        todo = [_Trajectory(item, sampling) for item, sampling in self.rows if not self._is_done(item)]
        flow = _Flow(self, responder, todo, note)
        num_refused = flow.run(at_once, ahead)
        if todo and num_refused == len(todo):
            last = self.files[0].answers[todo[-1].item.prompt_id]
            raise UserError(f"all {len(todo)} rows were refused, the last one with: {last.problem}")

    def second_looks(self, look: SecondLook, row_ids: Collection[str]) -> Rows:
        """Return rows of these ids as a control: as the second round asks them, with the part that `look` shows.

        Needs the answers of the first round.
        """
        found = []
        for item, sampling in self.rows:
            if item.prompt_id not in row_ids:
                continue
            first = self.files[0].answers[item.prompt_id]
            if first.texts and (shown := look(item, _whole_of(first), [_round_of(first)])) is not None:
                found.append((item_of(item, shown), sampling))
        return found

    def as_one_round(self, number: int, row_ids: Collection[str]) -> Rows:
        """Return rows of these ids asked once, each with the visual tokens of its first `number` rounds together.

        Rows that no later round was asked of are not among them. Needs the answers of those rounds.
        """
        found = []
        for item, sampling in self.rows:
            if item.prompt_id not in row_ids:
                continue
            answers = [file.answers[item.prompt_id] for file in self.files[:number]]
            tokens = [(answer.look or {}).get("visual_tokens", 0) for answer in answers]
            larger = one_round(item, _whole_of(answers[0]), tokens[0], sum(tokens)) if answers[0].texts else None
            if larger is not None:
                found.append((larger, sampling))
        return found

    def first_of(self, one: _Trajectory) -> PromptItem | None:
        """Return what the row's first round asks; None if it was answered in an earlier evaluation."""
        return None if one.item.prompt_id in self.files[0].answers else self._first(one.item)

    def _is_done(self, item: PromptItem) -> bool:
        return item.prompt_id in self.files[-1].answers

    def advance(self, one: _Trajectory) -> PromptItem | None:
        """Return what the row is asked next, None if all its rounds are answered now."""
        row_id = one.item.prompt_id
        past = [file.answers[row_id] for file in self.files if row_id in file.answers]
        if not past:
            one.shown = None
            return self._first(one.item)
        if len(past) == len(self.files):
            return None
        last = past[-1]
        if not last.texts or _stopped(last):
            self._fill(last, len(past), last.problem or _stopped(last))
            return None
        found = self._next_turn(one.item, _whole_of(past[0]), [_round_of(answer) for answer in past])
        if isinstance(found, Stop):
            self._fill(last, len(past), found.reason)
            return None
        one.shown = found
        return item_of(one.item, found)

    def add(self, one: _Trajectory, future: Future[Answer]) -> bool:
        """Add the answer of a round; return whether the row was refused in its first round."""
        row_id = one.item.prompt_id
        past = [file.answers[row_id] for file in self.files if row_id in file.answers]
        try:
            answer = future.result()
        except RowUnusable as error:
            is_kept = not isinstance(error, RowRefused)
            if past:
                self._fill(past[-1], len(past), f"round {len(past) + 1} could not be shown: {error}", is_kept=is_kept)
                return False
            failed = Answer(row_id=row_id, texts=(), problem=str(error))
            for file in self.files:
                file.add(failed, is_kept=is_kept)
            return not is_kept
        self.files[len(past)].add(replace(answer, look=_look(one, answer)))
        return False

    def _fill(self, last: Answer, first: int, reason: str, *, is_kept: bool = True) -> None:
        """Give the rounds from index `first` on the row's last answer, which cost nothing more."""
        look = {**(last.look or {}), "stopped": reason, "visual_tokens": 0, "decode_s": 0.0}
        same = replace(last, look=look, prompt_tokens=0, num_frames=0, seconds=0.0)
        for file in self.files[first:]:
            file.add(same, is_kept=is_kept)


class _Flow:
    """The rows of `Rounds.collect` in flight."""

    def __init__(
        self, rounds: Rounds, responder: Responder, rows: Sequence[_Trajectory], note: Callable[[Answer], None]
    ) -> None:
        self._rounds, self._responder, self._note = rounds, responder, note
        self._rows = rows
        self._starting, self._coming = iter(rows), iter(rows)
        self._in_flight: dict[Future[Answer], _Trajectory] = {}

    def run(self, at_once: int, ahead: int) -> int:
        """Return once all rows have all their rounds, with the number of rows that were refused."""
        num_refused = 0
        self._coming = iter(self._rows[at_once:])
        self._prefetch(ahead)
        for one in islice(self._starting, at_once):
            self._go_on(one, ahead)
        try:
            while self._in_flight:
                done, _ = wait(self._in_flight, timeout=POLL_S, return_when=FIRST_COMPLETED)
                if not done:
                    self._responder.check()
                for future in done:
                    one = self._in_flight.pop(future)
                    num_refused += self._rounds.add(one, future)
                    self._go_on(one, ahead)
        finally:
            for future in self._in_flight:
                future.cancel()
        return num_refused

    def _go_on(self, one: _Trajectory | None, ahead: int) -> None:
        """Ask the row's next round; where it has none, the first one of a new row."""
        while one is not None:
            asked = self._rounds.advance(one)
            if asked is not None:
                self._in_flight[self._responder.answer(asked, one.sampling)] = one
                return
            self._note(self._rounds.files[-1].answers[one.item.prompt_id])
            one = next(self._starting, None)
            self._prefetch(min(ahead, 1))

    def _prefetch(self, count: int) -> None:
        for one in islice(self._coming, count):
            if (item := self._rounds.first_of(one)) is not None:
                self._responder.prefetch(item)


def asked_in_rounds(
    item: PromptItem,
    answers: Sequence[Answer],
    next_turn: NextTurn,
    first: Callable[[PromptItem], PromptItem] = lambda item: item,
) -> list[PromptItem | None]:
    """Return what each round asked of a row, None for a round before which it had stopped.

    answers: to the row, one for each round.  next_turn, first: those of the evaluation, which decide the same again.
    """
    asked: list[PromptItem | None] = [first(item)]
    past = [_round_of(answers[0])]
    for answer in answers[1:]:
        found = None if _stopped(answer) else next_turn(item, _whole_of(answers[0]), past)
        asked.append(item_of(item, found) if isinstance(found, Show) else None)
        past.append(_round_of(answer))
    return asked


def with_cost(answer: Answer) -> Answer:
    """Return an answer with what a single look cost, as the rounds of `Rounds` have it."""
    return replace(answer, look=_cost(answer))


def _look(one: _Trajectory, answer: Answer) -> Json:
    """Return what the file keeps of a round: its clue, why it was shown, and what it cost."""
    clue = one.shown.clue if one.shown is not None else None
    look = {
        "clue": None if clue is None else clue.to_json(),
        "reason": "" if one.shown is None else one.shown.reason,
        **_cost(answer),
    }
    if one.shown is None and answer.shown is not None:
        whole = whole_of(one.item.media, answer.shown.clips)
        if whole is not None:
            look["whole"] = whole.to_json()
    return look


def _cost(answer: Answer) -> dict[str, float]:
    if answer.shown is None:
        return {"visual_tokens": 0, "decode_s": 0.0}
    grids = [clip.grid_thw for clip in answer.shown.clips]
    return {
        "visual_tokens": sum(time * height * width for time, height, width in grids) // MERGED**2,
        "decode_s": answer.shown.decode_s,
    }


def _stopped(answer: Answer) -> str:
    return (answer.look or {}).get("stopped", "")


def _round_of(answer: Answer) -> Round:
    look = answer.look or {}
    clue = look.get("clue")
    return Round(
        text=answer.texts[0],
        clue=None if clue is None else Clue.from_json(clue),
        reason=look.get("reason", ""),
        confidence=answer.confidence,
    )


def _whole_of(first: Answer) -> WholeClip | None:
    found = (first.look or {}).get("whole")
    return None if found is None else WholeClip.from_json(found)

"""Answers from the run's own actors, and the loop that collects answers from any responder into a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import Protocol

from rlsys.errors import RowUnusable, UserError
from rlsys.evaluation.answering.answers import Answer, AnswersFile, answer_of
from rlsys.loop.producer import Answerer
from rlsys.types import PromptItem, RolloutGroup, Sampling


class RowRefused(RowUnusable):
    """An endpoint refuses the request for a row."""


POLL_S = 1.0
"""Seconds between two checks whether the awaited answers can still arrive."""


class Responder(Protocol):
    """A source of answers.

    The future of `answer` raises RowUnusable for a row that cannot be answered, and any other error to end the
    evaluation. `prefetch` decodes an item's clips ahead. `check` raises an error if no answer can arrive any more.
    """

    def answer(self, item: PromptItem, sampling: Sampling) -> Future[Answer]: ...

    def prefetch(self, item: PromptItem) -> None: ...

    def check(self) -> None: ...


class ActorResponder:
    """Answers of the rollout actors, from the same clips and prompts as in training."""

    def __init__(self, answerer: Answerer, check: Callable[[], None]) -> None:
        self._answerer, self.check = answerer, check

    def answer(self, item: PromptItem, sampling: Sampling) -> Future[Answer]:
        """See `Responder`."""
        answer: Future[Answer] = Future()
        group = self._answerer.answer(item, sampling)

        def pass_on(done: Future[RolloutGroup]) -> None:
            if done.cancelled():
                answer.cancel()
            elif error := done.exception():
                answer.set_exception(error)
            else:
                answer.set_result(answer_of(done.result()))

        group.add_done_callback(pass_on)
        return answer

    def prefetch(self, item: PromptItem) -> None:
        """See `Responder`."""
        self._answerer.prefetch(item)


def collect_answers(
    responder: Responder,
    rows: Sequence[tuple[PromptItem, Sampling]],
    file: AnswersFile,
    *,
    at_once: int,
    ahead: int,
    note: Callable[[Answer], None] = lambda _: None,
    finish: Callable[[Answer], Answer] = lambda answer: answer,
) -> None:
    """Add an answer for each row that `file` does not have yet.

    at_once: number of rows in flight.  ahead: number of further rows whose clips are decoded meanwhile.
    note: called with each new answer.  finish: makes what is kept of an answer.
    A row that cannot be answered is added without texts and with the reason; one that an endpoint refuses stays out of
    the file, so that it is asked again the next time. Raises UserError if all rows are refused. Any other error ends
    the collection; what was answered stays in the file.
    """
    todo = [row for row in rows if row[0].prompt_id not in file.answers]
    waiting = _prefetched(responder, todo, at_once, ahead)
    in_flight: dict[Future[Answer], PromptItem] = {}
    refused: list[Answer] = []

    def admit(count: int) -> None:
        for item, sampling in islice(waiting, count):
            in_flight[responder.answer(item, sampling)] = item

    admit(at_once)
    try:
        while in_flight:
            done, _ = wait(in_flight, timeout=POLL_S, return_when=FIRST_COMPLETED)
            if not done:
                responder.check()
            for future in done:
                answer, is_refused = _result(future, in_flight.pop(future))
                refused += [answer] if is_refused else []
                file.add(finish(answer), is_kept=not is_refused)
                note(answer)
            admit(len(done))
    finally:
        for future in in_flight:
            future.cancel()
    if todo and len(refused) == len(todo):
        raise UserError(f"all {len(todo)} rows were refused, the last one with: {refused[-1].problem}")


def _result(future: Future[Answer], item: PromptItem) -> tuple[Answer, bool]:
    """Return the answer, and whether the endpoint refused the request for it."""
    try:
        return future.result(), False
    except RowUnusable as error:
        return Answer(row_id=item.prompt_id, texts=(), problem=str(error)), isinstance(error, RowRefused)


def _prefetched(
    responder: Responder, rows: Sequence[tuple[PromptItem, Sampling]], at_once: int, ahead: int
) -> Iterator[tuple[PromptItem, Sampling]]:
    """Yield the rows; the clips of the next `ahead` of them, behind those in flight, are decoded meanwhile."""
    coming: Iterable[tuple[PromptItem, Sampling]] = iter(rows[at_once:])
    for index, row in enumerate(rows):
        if ahead:
            for item, _ in islice(coming, ahead if index == at_once - 1 else int(index >= at_once)):
                responder.prefetch(item)
        yield row

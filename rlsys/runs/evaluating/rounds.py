"""The rounds of an evaluation with `perception.rounds` above 1, and their controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlsys.config.evaluation import Control
from rlsys.config.run import RunConfig
from rlsys.evaluation.answering.answers import Answer, AnswersFile
from rlsys.evaluation.answering.modes import Mode, ModeName, evenly_spaced
from rlsys.evaluation.answering.responders import Responder, collect_answers
from rlsys.evaluation.answering.rounds import Rounds, Rows, SecondLook, with_cost
from rlsys.evaluation.rounds import equal_tokens_name
from rlsys.perception.choose import first_item, next_turn_of
from rlsys.perception.controls import oracle_window, random_window

Note = Callable[[Answer], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class OneRound:
    """One way of answering the rows of a set once."""

    mode: Mode
    file: AnswersFile

    @property
    def num_answered(self) -> int:
        """Number of rows that have an answer."""
        return len(self.file.answers)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to ask."""
        return self.num_answered >= len(self.mode.rows)

    def collect(self, responder: Responder, note: Note, *, at_once: int, ahead: int) -> None:
        """Answer what is left."""
        collect_answers(responder, self.mode.rows, self.file, at_once=at_once, ahead=ahead, note=note)

    def modes(self) -> list[tuple[ModeName, Mode, Mapping[str, Answer]]]:
        """Return the one (name, mode, answers)."""
        return [(self.mode.name, self.mode, self.file.answers)]


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundsControl:
    """A control of several rounds. rows: what it asks, once the rounds are answered."""

    file: AnswersFile
    rows: Callable[[], Rows]


@dataclass(frozen=True, kw_only=True, eq=False)
class SetRounds:
    """The rounds of one set with their controls, by name."""

    mode: Mode
    rounds: Rounds
    controls: Mapping[ModeName, RoundsControl]

    @property
    def num_answered(self) -> int:
        """Number of rows that have an answer in every round."""
        return len(self.rounds.files[-1].answers)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to ask."""
        return self.rounds.is_complete and all(
            len(one.rows()) <= len(one.file.answers) for one in self.controls.values()
        )

    def collect(self, responder: Responder, note: Note, *, at_once: int, ahead: int) -> None:
        """Answer what is left."""
        self.rounds.collect(responder, at_once=at_once, ahead=ahead, note=note)
        for one in self.controls.values():
            collect_answers(responder, one.rows(), one.file, at_once=at_once, ahead=ahead, finish=with_cost)

    def modes(self) -> list[tuple[ModeName, Mode, Mapping[str, Answer]]]:
        """Return (name, mode, answers) of each round, of "greedy", which is the last one, and of each control."""
        found: list[tuple[ModeName, Mode, Mapping[str, Answer]]] = [
            (f"round_{number}", self.mode, file.answers) for number, file in enumerate(self.rounds.files, start=1)
        ]
        found.append(("greedy", self.mode, self.rounds.files[-1].answers))
        for name, one in self.controls.items():
            found.append((name, Mode(name=name, rows=tuple(one.rows())), one.file.answers))
        return found


def set_rounds(
    config: RunConfig,
    mode: Mode,
    folder: Path,
    identity: Mapping[str, str],
    controls: Sequence[Control],
    resources: ExitStack,
) -> SetRounds:
    """Return the rounds of a set's greedy answers, whose files are opened in `resources`.

    folder: of the set's answers.  identity: what they depend on beside the section `perception`.
    """
    perception, reading = config.perception, config.answers.reading
    # more rounds continue an evaluation of fewer, but a prompt with requests says whether another round follows
    named = perception.model_dump_json(exclude={"rounds"} if perception.turn == "look_again" else set())
    settings = {**identity, "perception": f"{named}, answers.reading={reading}"}

    def opened(name: str) -> AnswersFile:
        return resources.enter_context(AnswersFile(folder / f"{name}.jsonl", settings))

    looks: dict[str, SecondLook] = {
        "random_window": partial(random_window, perception=perception, reading=reading, seed=config.seed),
        "oracle_window": partial(oracle_window, perception=perception),
    }
    rows = mode.rows
    some = evenly_spaced(len(rows), config.evaluation.control_prompts or len(rows))
    row_ids = frozenset(rows[index][0].prompt_id for index in some)
    rounds = Rounds(
        rows,
        [opened(f"round_{number}") for number in range(1, perception.rounds + 1)],
        next_turn_of(perception, reading),
        partial(first_item, perception=perception),
    )
    found = {
        name: RoundsControl(file=opened(name), rows=partial(rounds.second_looks, look, row_ids))
        for name, look in looks.items()
        if name in controls
    }
    if "one_round_equal_tokens" in controls:
        for number in range(2, perception.rounds + 1):
            name = equal_tokens_name(number)
            found[name] = RoundsControl(file=opened(name), rows=partial(rounds.as_one_round, number, row_ids))
    return SetRounds(mode=mode, rounds=rounds, controls=found)

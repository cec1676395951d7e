"""Answers are kept row by row: a killed evaluation continues, and no row is asked twice."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from rlsys.errors import RowUnusable, UserError
from rlsys.evaluation.answering.answers import Answer, AnswersFile, answer_of
from rlsys.evaluation.answering.modes import Mode, evenly_spaced, modes_of
from rlsys.evaluation.answering.responders import collect_answers
from rlsys.types import ImageSpec, PromptItem, Sampling
from tests.support.factories import make_group

IDENTITY = {"model": "abc", "rows": "1"}


def item(index: int, picture: str | None = None) -> PromptItem:
    media = (ImageSpec(uri=picture or f"{index}.png", min_pixels=784, max_pixels=7840),)
    return PromptItem(
        prompt_id=f"set:{index}", task="multiple_choice", question="?", options=(), media=media, truth="(A)"
    )


def rows_of(items: list[PromptItem]) -> tuple[tuple[PromptItem, Sampling], ...]:
    (mode,) = modes_of(items, seed=0, max_tokens=8, num_samples=1, controls=(), control_prompts=0)
    return mode.rows


class Scripted:
    """A responder that answers each row at once, but for the faults that it is given."""

    def __init__(self, faults: dict[str, Exception] | None = None) -> None:
        self.faults, self.asked, self.prefetched = faults or {}, list[str](), list[str]()

    def answer(self, item: PromptItem, sampling: Sampling) -> Future[Answer]:
        self.asked.append(item.prompt_id)
        future: Future[Answer] = Future()
        if item.prompt_id in self.faults:
            future.set_exception(self.faults[item.prompt_id])
        else:
            future.set_result(Answer(row_id=item.prompt_id, texts=(f"seed {sampling.seed}",)))
        return future

    def prefetch(self, item: PromptItem) -> None:
        self.prefetched.append(item.prompt_id)

    def check(self) -> None:
        pass


def test_a_file_keeps_how_sure_the_model_was(tmp_path: Path) -> None:
    group = make_group("set:0", num_rollouts=1)
    group.rollouts[0].response_logprobs[:] = np.log([0.9, 0.8, 0.3])
    answer = answer_of(group)
    assert answer.confidence == pytest.approx(0.6)  # the cube root of 0.216
    with AnswersFile(tmp_path / "answers.jsonl", IDENTITY) as file:
        file.add(answer)
    with AnswersFile(tmp_path / "answers.jsonl", IDENTITY) as file:
        assert file.answers["set:0"].confidence == answer.confidence


def test_a_killed_evaluation_continues_and_asks_no_row_twice(tmp_path: Path) -> None:
    rows, path = rows_of([item(index) for index in range(10)]), tmp_path / "answers.jsonl"
    broken = Scripted({"set:6": ConnectionError("gone")})
    with AnswersFile(path, IDENTITY) as file, pytest.raises(ConnectionError):
        collect_answers(broken, rows, file, at_once=1, ahead=2)
    with path.open("a") as half:
        half.write('{"row_id": "set:6", "te')  # the line of a process that was killed while it wrote
    second = Scripted()
    with AnswersFile(path, IDENTITY) as file:
        assert len(file.answers) == 6
        collect_answers(second, rows, file, at_once=4, ahead=2)
        assert sorted(file.answers) == [f"set:{index}" for index in range(10)]
    assert sorted(second.asked) == [f"set:{index}" for index in range(6, 10)]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert "identity" in lines[0]
    assert sorted(line["row_id"] for line in lines[1:]) == [f"set:{index}" for index in range(10)]
    with AnswersFile(path, IDENTITY) as file:
        assert file.answers["set:9"].texts == (f"seed {rows[9][1].seed}",)


def test_answers_of_another_model_are_not_continued(tmp_path: Path) -> None:
    with AnswersFile(tmp_path / "a.jsonl", IDENTITY):
        pass
    with (
        pytest.raises(UserError, match="model: was abc, is xyz"),
        AnswersFile(tmp_path / "a.jsonl", {**IDENTITY, "model": "xyz"}),
    ):
        pass


@pytest.mark.parametrize(
    "text", ["no json\n", "[]\n", '{"identity": 3}\n', '{"identity": {"model": "abc", "rows": "1"}}\n{"row": 1}\n']
)
def test_a_file_that_is_none_of_answers_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"a\.jsonl"), AnswersFile(tmp_path / "a.jsonl", IDENTITY):
        pass


def test_a_row_that_cannot_be_answered_is_kept_with_its_reason(tmp_path: Path) -> None:
    with AnswersFile(tmp_path / "a.jsonl", IDENTITY) as file:
        responder = Scripted({"set:1": RowUnusable("a broken clip")})
        collect_answers(responder, rows_of([item(0), item(1), item(2)]), file, at_once=2, ahead=0)
        assert file.answers["set:1"] == Answer(row_id="set:1", texts=(), problem="a broken clip")
        assert len(file.answers) == 3


@pytest.mark.parametrize(("at_once", "ahead"), [(1, 0), (1, 3), (4, 2), (20, 2)])
def test_every_row_behind_those_in_flight_is_decoded_ahead_once(tmp_path: Path, at_once: int, ahead: int) -> None:
    responder = Scripted()
    with AnswersFile(tmp_path / "a.jsonl", IDENTITY) as file:
        collect_answers(responder, rows_of([item(index) for index in range(9)]), file, at_once=at_once, ahead=ahead)
    behind = [f"set:{index}" for index in range(min(at_once, 9), 9)]
    assert responder.prefetched == (behind if ahead else [])


def modes(items: list[PromptItem], **settings: object) -> dict[str, Mode]:
    given = {"seed": 0, "max_tokens": 8, "num_samples": 1, "controls": (), "control_prompts": 0, **settings}
    return {mode.name: mode for mode in modes_of(items, **given)}  # type: ignore[arg-type]


def test_greedy_asks_every_row_once_and_sampling_needs_several_samples() -> None:
    items = [item(index) for index in range(5)]
    assert list(modes(items)) == ["greedy"]
    found = modes(items, num_samples=4)
    assert [(one.temperature, one.num_samples) for _, one in found["greedy"].rows] == [(0.0, 1)] * 5
    assert [(one.temperature, one.num_samples) for _, one in found["sampled"].rows] == [(1.0, 4)] * 5
    assert len({one.seed for _, one in found["sampled"].rows}) == 5


def test_controls_show_another_video_or_none_and_keep_the_question() -> None:
    items = [item(index, picture=f"{index // 2}.png") for index in range(8)]
    found = modes(items, controls=("other_video", "text_only"), control_prompts=4)
    asked = [one.prompt_id for one, _ in found["other_video"].rows]
    assert asked == ["set:0", "set:2", "set:4", "set:6"] == [one.prompt_id for one, _ in found["text_only"].rows]
    by_id = {one.prompt_id: one for one in items}
    for one, sampling in found["other_video"].rows:
        assert one.media != by_id[one.prompt_id].media
        assert one.question == by_id[one.prompt_id].question
        assert sampling.num_samples == 1
    assert all(one.media == () for one, _ in found["text_only"].rows)


def test_rows_that_all_show_one_video_have_no_control_with_another() -> None:
    items = [item(index, picture="same.png") for index in range(4)]
    assert modes(items, controls=("other_video",))["other_video"].rows == ()


def test_seeds_do_not_depend_on_how_many_rows_are_asked() -> None:
    items = [item(index) for index in range(6)]
    few, many = modes(items[:3], num_samples=2), modes(items, num_samples=2)
    assert few["sampled"].rows == many["sampled"].rows[:3]


def test_rows_of_controls_are_evenly_spaced() -> None:
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, 10) == [0, 1, 2]
    assert evenly_spaced(0, 4) == []

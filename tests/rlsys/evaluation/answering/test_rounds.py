"""Rows answered round by round by a scripted model: resuming, stopping and failing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rlsys.config.perception import PerceptionConfig
from rlsys.errors import RowUnusable, UserError
from rlsys.evaluation.answered import unasked
from rlsys.evaluation.answering.answers import Answer, AnswersFile, Shown
from rlsys.evaluation.answering.responders import RowRefused
from rlsys.evaluation.answering.rounds import Rounds
from rlsys.evaluation.protocols.table import PROTOCOLS
from rlsys.evaluation.rounds import points_of, rounds_of, write_rounds_curve
from rlsys.perception.controls import oracle_window
from rlsys.perception.turns import NextTurn, look_again
from rlsys.types import ClipInfo, PromptItem, Sampling, VideoSpec

LENGTH_S, TRUTH = 20.0, [5.0, 7.0]
SAMPLING = Sampling(num_samples=1, temperature=0.0, top_p=1.0, max_tokens=8, seed=0)


def row(index: int) -> PromptItem:
    spec = VideoSpec(
        uri=f"{index}.mp4", fps=1.0, min_frames=4, max_frames=20, min_pixels=784, max_pixels=784, total_pixels=20 * 784
    )
    return PromptItem(
        prompt_id=f"rows:{index}", task="temporal_grounding", question="When?", options=(), media=(spec,), truth=TRUTH
    )


def clip_of(spec: VideoSpec) -> ClipInfo:
    start_s, end_s = spec.window_s or (0.0, LENGTH_S)
    num_frames = spec.max_frames
    return ClipInfo(
        kind="video",
        digest=str(spec),
        times_s=np.linspace(start_s, end_s, num_frames, endpoint=False),
        grid_thw=(num_frames // 2, 2, 2),
        second_per_grid_s=2 * (end_s - start_s) / num_frames,
        duration_s=LENGTH_S,
        num_bytes=num_frames * 784 * 3,
        source_fps=25.0,
    )


class Scripted:
    """Answers by what it is shown. say: (item, number of the row's rounds so far) -> text, or raises."""

    def __init__(self, say: Callable[[PromptItem, int], str]) -> None:
        self._say = say
        self.asked: list[PromptItem] = []
        self.prefetched: list[str] = []

    def answer(self, item: PromptItem, sampling: Sampling) -> Future[Answer]:
        rounds = sum(one.prompt_id == item.prompt_id for one in self.asked)
        self.asked.append(item)
        future: Future[Answer] = Future()
        clips = tuple(clip_of(spec) for spec in item.media if isinstance(spec, VideoSpec))
        try:
            text = self._say(item, rounds)
        except Exception as error:  # noqa: BLE001 - handed on, as a real responder does
            future.set_exception(error)
        else:
            num_frames = sum(clip.times_s.size for clip in clips)
            future.set_result(
                Answer(
                    row_id=item.prompt_id,
                    texts=(text,),
                    finish_reasons=("stop",),
                    num_frames=num_frames,
                    seconds=1.0,
                    shown=Shown(clips=clips, decode_s=0.5),
                )
            )
        return future

    def prefetch(self, item: PromptItem) -> None:
        self.prefetched.append(item.prompt_id)

    def check(self) -> None:
        raise AssertionError("every answer is there at once")


def turn(rounds: int, **settings: object) -> NextTurn:
    return partial(look_again, perception=PerceptionConfig(rounds=rounds, **settings), reading="paper")


def opened(
    resources: ExitStack, folder: Path, num_rounds: int, rows: Sequence[PromptItem], next_turn: NextTurn
) -> Rounds:
    files = [
        resources.enter_context(AnswersFile(folder / f"round_{number}.jsonl", {"model": "scripted"}))
        for number in range(1, num_rounds + 1)
    ]
    return Rounds([(item, SAMPLING) for item in rows], files, next_turn)


def nearer(item: PromptItem, rounds: int) -> str:
    """Point to 4..12 s after an even look, and to the true period once it is shown closely."""
    return "<answer>4.0 to 12.0</answer>" if not item.media_texts else "<answer>5.0 to 7.0</answer>"


def test_each_round_shows_what_the_answer_before_pointed_to(tmp_path: Path) -> None:
    rows, model = [row(index) for index in range(5)], Scripted(nearer)
    with ExitStack() as resources:
        rounds = opened(resources, tmp_path, 3, rows, turn(3))
        rounds.collect(model, at_once=2, ahead=2)
        assert rounds.is_complete
        texts = [file.answers["rows:4"].texts[0] for file in rounds.files]
        looks = [file.answers["rows:4"].look for file in rounds.files]
    assert texts == ["<answer>4.0 to 12.0</answer>", "<answer>5.0 to 7.0</answer>", "<answer>5.0 to 7.0</answer>"]
    assert [look["clue"] and look["clue"]["periods"] for look in looks] == [None, [[4.0, 12.0]], [[5.0, 7.0]]]
    assert looks[0]["whole"] == [0.0, 20.0, 25.0, 20]
    assert [look["visual_tokens"] for look in looks] == [10, 10, 10], "every round has the budget of the first"
    assert len(model.asked) == 15
    assert model.prefetched == ["rows:2", "rows:3", "rows:4"], "rows in flight need no reading ahead"
    second = next(item for item in model.asked if item.media_texts)
    assert second.media_texts[1] == "From 4.0 to 12.0 seconds:"


@pytest.mark.parametrize("kept", range(10))
def test_a_killed_evaluation_continues_with_the_rounds_that_are_missing(tmp_path: Path, kept: int) -> None:
    rows = [row(index) for index in range(3)]
    whole, part = tmp_path / "whole", tmp_path / "part"
    with ExitStack() as resources:
        opened(resources, whole, 3, rows, turn(3)).collect(Scripted(nearer), at_once=1, ahead=0)

    def dies(item: PromptItem, rounds: int) -> str:
        if len(first.asked) > kept:
            raise RuntimeError("killed")
        return nearer(item, rounds)

    first, second = Scripted(dies), Scripted(nearer)
    with ExitStack() as resources:
        if kept < 9:
            with pytest.raises(RuntimeError):
                opened(resources, part, 3, rows, turn(3)).collect(first, at_once=1, ahead=0)
        else:
            opened(resources, part, 3, rows, turn(3)).collect(first, at_once=1, ahead=0)
    with ExitStack() as resources:
        opened(resources, part, 3, rows, turn(3)).collect(second, at_once=1, ahead=0)
    assert len(second.asked) == 9 - kept
    for number in (1, 2, 3):
        assert (part / f"round_{number}.jsonl").read_text() == (whole / f"round_{number}.jsonl").read_text()


def test_a_row_that_stops_keeps_its_answer_at_no_cost_and_says_why(tmp_path: Path) -> None:
    model = Scripted(lambda item, rounds: "<answer>4.0 to 12.0</answer>")
    with ExitStack() as resources:
        rounds = opened(resources, tmp_path, 4, [row(0)], turn(4, stop=("clue_stable",)))
        rounds.collect(model, at_once=1, ahead=0)
        last = rounds.files[3].answers["rows:0"]
    assert len(model.asked) == 2
    assert last.texts == ("<answer>4.0 to 12.0</answer>",)
    assert (last.num_frames, last.seconds, last.look["visual_tokens"]) == (0, 0.0, 0)
    assert "stable" in last.look["stopped"]


def test_a_later_round_that_cannot_be_shown_keeps_the_answer_before(tmp_path: Path) -> None:
    def fails(item: PromptItem, rounds: int) -> str:
        if item.media_texts:
            raise RowUnusable("no frame of 4 s can be decoded")
        return nearer(item, rounds)

    with ExitStack() as resources:
        rounds = opened(resources, tmp_path, 2, [row(0)], turn(2))
        rounds.collect(Scripted(fails), at_once=1, ahead=0)
        last = rounds.files[1].answers["rows:0"]
    assert last.texts == ("<answer>4.0 to 12.0</answer>",)
    assert last.look["stopped"] == "round 2 could not be shown: no frame of 4 s can be decoded"


def test_a_row_that_cannot_be_asked_has_no_answer_in_any_round(tmp_path: Path) -> None:
    def fails(item: PromptItem, rounds: int) -> str:
        if item.prompt_id == "rows:1":
            raise RowUnusable("the file has 0 bytes")
        return nearer(item, rounds)

    with ExitStack() as resources:
        rounds = opened(resources, tmp_path, 2, [row(0), row(1)], turn(2))
        rounds.collect(Scripted(fails), at_once=2, ahead=0)
        assert [file.answers["rows:1"].problem for file in rounds.files] == ["the file has 0 bytes"] * 2
        oracle = partial(oracle_window, perception=PerceptionConfig(rounds=2))
        assert [item.prompt_id for item, _ in rounds.second_looks(oracle, {"rows:0", "rows:1"})] == ["rows:0"]
        assert not rounds.second_looks(oracle, {"rows:1"})


def test_refused_rows_are_asked_again_the_next_time(tmp_path: Path) -> None:
    def refuses(item: PromptItem, rounds: int) -> str:
        raise RowRefused("no")

    for _ in range(2):
        with ExitStack() as resources, pytest.raises(UserError, match="all 1 rows were refused"):
            opened(resources, tmp_path, 2, [row(0)], turn(2)).collect(Scripted(refuses), at_once=1, ahead=0)


def test_figures_of_rounds_count_tokens_and_rows_that_became_better_and_worse(tmp_path: Path) -> None:
    def mixed(item: PromptItem, rounds: int) -> str:
        if item.prompt_id == "rows:1" and item.media_texts:
            return "<answer>15.0 to 16.0</answer>"
        return nearer(item, rounds)

    rows = [row(0), row(1)]
    with ExitStack() as resources:
        rounds = opened(resources, tmp_path, 2, rows, turn(2))
        rounds.collect(Scripted(mixed), at_once=2, ahead=0)
        answers = {f"round_{number}": file.answers for number, file in enumerate(rounds.files, start=1)}
    answered = {
        name: [
            type(found)(**{**vars(found), "texts": by_row[found.row_id].texts})
            for found in (unasked(item) for item in rows)
        ]
        for name, by_row in answers.items()
    }
    protocol = PROTOCOLS["charades_sta/paper"]
    found = rounds_of(answered, answers, "temporal_grounding", protocol)
    first, second = found["by_round"]
    assert first["metrics"]["miou"] == pytest.approx(0.25)
    assert second["metrics"]["miou"] == pytest.approx(0.5)
    assert (second["num_better"], second["num_worse"]) == (1, 1)
    assert second["worse"] == [{"row": "rows:1", "before": 0.25, "after": 0.0}]
    assert (first["visual_tokens"], second["total_visual_tokens"], second["frames"]) == (10, 20, 20)
    figures = {"primary": "miou", "rounds": found}
    assert points_of(figures) == {"model": [(10, pytest.approx(0.25)), (20, pytest.approx(0.5))]}
    assert write_rounds_curve(tmp_path / "a.png", "rows", figures).stat().st_size > 1000
    assert rounds_of({"greedy": answered["round_1"]}, {}, "temporal_grounding", protocol) == {}

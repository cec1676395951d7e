from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from actors.errors import PromptQuarantined
from rlsys.config.run import parse
from rlsys.data.video.errors import ClipError
from rlsys.errors import LearnerLost
from rlsys.evaluation.metrics import answer_metrics, best_constant_interval, iou_metrics
from rlsys.evaluation.runner import evaluate, with_shuffled_videos
from rlsys.types import PromptItem, Sampling, ScoredGroup, VideoSpec
from tests.support.factories import make_group, make_item, make_scored

CONFIG = {
    "output_dir": "out",
    "model": {"path": "model"},
    "train": {"prompts_per_step": 2},
    "data": {"decode_ahead": 1},
    "rollout": {"group_size": 4},
    "evaluation": {"num_samples": 4},
}


def test_recall_counts_ious_at_or_above_the_threshold() -> None:
    got = iou_metrics(np.array([0.0, 0.3, 0.5, 0.6, 1.0]))
    assert got == pytest.approx({"miou": 0.48, "r_at_0.3": 0.8, "r_at_0.5": 0.6, "r_at_0.7": 0.2})


def test_metrics_of_no_answers_are_an_error_and_not_nan() -> None:
    with pytest.raises(ValueError, match="no scored answers"):
        iou_metrics(np.array([]))


def test_answers_that_could_not_be_scored_are_excluded_and_counted() -> None:
    groups = [
        make_scored(make_group(), [1, 0, 1, 1], [True, True, False, True]),
        make_scored(make_group(), [0, 0, 0, 0]),
    ]
    got = answer_metrics(groups)
    assert got["miou"] == pytest.approx(2 / 7)
    assert (got["num_responses"], got["failed_frac"]) == (7, pytest.approx(1 / 8))


def test_the_best_constant_interval_beats_every_other_on_the_grid() -> None:
    items = [make_item(truth=[1.0, 2.0]), make_item(truth=[1.0, 3.0])]
    interval, ious = best_constant_interval(items)
    assert interval == (1.0, 2.0)  # 1 and 1/2; [1, 3] gives 1/2 and 1 as well, and comes later
    np.testing.assert_allclose(ious, [1.0, 0.5])


def test_shuffling_gives_every_question_another_video_and_keeps_its_true_answer() -> None:
    def video(name: str) -> VideoSpec:
        return VideoSpec(
            uri=name, fps=2, min_frames=4, max_frames=8, min_pixels=784, max_pixels=784, total_pixels=10**6
        )

    items = [
        replace(make_item(f"f:{row}", truth=[row, row + 1]), media=(video(f"{row // 2}.mp4"),)) for row in range(10)
    ]
    shuffled = with_shuffled_videos(items)
    assert all(a.media != b.media and a.truth == b.truth for a, b in zip(items, shuffled, strict=True))
    assert sorted(i.media[0].uri for i in shuffled) == sorted(i.media[0].uri for i in items)


def test_an_evaluation_answers_all_prompts_with_a_bounded_number_in_flight() -> None:
    class Source:
        """A source whose groups are created when their result is awaited."""

        def __init__(self) -> None:
            self.in_flight = self.most = 0
            self.started: list[str] = []

        def start(self, item: PromptItem, sampling: Sampling) -> Future[ScoredGroup]:
            self.started.append(item.prompt_id)
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            source = self

            class Answer(Future[ScoredGroup]):
                def result(self, timeout: float | None = None) -> ScoredGroup:
                    source.in_flight -= 1
                    return make_scored(make_group(item.prompt_id), [0, 1, 1, 1])

            return Answer()

    source = Source()
    items = [make_item(f"file:{row}") for row in range(20)]
    found = evaluate(source, items, parse(CONFIG, source="test"))
    assert found["sampled"]["num_responses"] == found["greedy"]["num_responses"] == 80
    assert source.started == 2 * [item.prompt_id for item in items]
    # greedy decoding samples one response per prompt: (2 + 1) x 4 prompts at once
    assert source.most == 12


def test_an_evaluation_whose_groups_cannot_arrive_ends_with_the_reason_and_cancels_them() -> None:
    class Silent:
        def __init__(self) -> None:
            self.started: list[Future[ScoredGroup]] = []

        def start(self, item: PromptItem, sampling: Sampling) -> Future[ScoredGroup]:
            self.started.append(Future())
            return self.started[-1]

    def check() -> None:
        raise LearnerLost("the weights are gone.")

    source = Silent()
    with pytest.raises(LearnerLost, match="gone"):
        evaluate(source, [make_item("file:0"), make_item("file:1")], parse(CONFIG, source="test"), check)
    assert [future.cancelled() for future in source.started] == [True, True]


class WithBadRows:
    """A source that fails on the rows in `bad`, each with its error, and answers the others."""

    def __init__(self, bad: dict[str, Exception]) -> None:
        self._bad = bad

    def start(self, item: PromptItem, sampling: Sampling) -> Future[ScoredGroup]:
        answer: Future[ScoredGroup] = Future()
        if item.prompt_id in self._bad:
            answer.set_exception(self._bad[item.prompt_id])
        else:
            answer.set_result(make_scored(make_group(item.prompt_id), [1, 0, 1, 1]))
        return answer


BAD = {
    "file:0": ClipError("a.mp4", "truncated", "it ends early"),
    "file:2": PromptQuarantined("file:2 ended two actors."),
}


def test_unusable_rows_are_skipped_in_an_evaluation_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    items = [make_item(f"file:{row}") for row in range(4)]
    found = evaluate(WithBadRows(BAD), items, parse(CONFIG, source="test"))
    for decoding in ("greedy", "sampled"):
        assert (found[decoding]["rows_left_out"], found[decoding]["num_responses"]) == (2, 8)
        assert found[decoding]["miou"] == 0.75
    assert "a.mp4" in caplog.text and "ended two actors" in caplog.text
    with pytest.raises(PromptQuarantined, match="ended two actors"):
        evaluate(WithBadRows(BAD), [items[0], items[2]], parse(CONFIG, source="test"))


def test_a_bad_clip_stops_an_evaluation_if_the_config_says_so() -> None:
    config = parse({**CONFIG, "data": {"on_bad_clip": "stop"}}, source="test")
    with pytest.raises(ClipError, match="a.mp4"):
        evaluate(WithBadRows(BAD), [make_item("file:1"), make_item("file:0")], config)

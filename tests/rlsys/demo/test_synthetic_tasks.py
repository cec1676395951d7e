from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward_servers.judging.embedding import SentenceEmbedder
from reward_servers.schema import ScoreRow
from reward_servers.scorers.scorers import rule_scores
from rlsys.config.run import DataConfig, ScoreSettings
from rlsys.data.annotations.annotations import load_annotations
from rlsys.data.annotations.media import video_spec
from rlsys.data.video.decode import decode
from rlsys.demo.synthetic import COLOURS, SyntheticSet, draw_dataset
from rlsys.demo.synthetic import demonstration_text as grounding_demonstration
from rlsys.demo.synthetic_tasks import ROWS, demonstration_text, draw_mixture
from rlsys.tasks.answers import Caption
from rlsys.tasks.geometry import mean_box_iou
from rlsys.tasks.table import TASKS, default_names, expected_answer, judged_scores
from rlsys.types import PromptItem

DATA = DataConfig(fps=2.0, min_frames=8, max_frames=8, min_pixels=784, max_pixels=7056)
NUM_CLIPS = 40
SIZE = 56


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return draw_mixture(tmp_path_factory.mktemp("mixture"), num_clips=NUM_CLIPS, seed=1)


@pytest.fixture(scope="module")
def rows(drawn: SyntheticSet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in drawn.annotations.read_text().splitlines()]


def by_task(rows: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    return rows[list(ROWS).index(task) :: len(ROWS)]


def item_of(row: dict[str, Any], task: str) -> PromptItem:
    truths = {
        "multiple_choice": lambda: row["answer"],
        "grounded_qa": lambda: {"answer": row["answer"], "glue": row["clue"]},
        "captioning": lambda: {"caption": row["caption"], "events": row["events"]},
    }
    return PromptItem(
        prompt_id="annotations:0",
        task=task,
        question=row["question"],
        options=tuple(row.get("options", ())),
        media=(),
        truth=truths.get(task, lambda: row["clue"])(),
    )


def items(rows: list[dict[str, Any]], task: str) -> list[PromptItem]:
    return [item_of(row, task) for row in by_task(rows, task)]


def in_colour(frame: np.ndarray, colour: str) -> np.ndarray:
    """Return the pixels that are closer to `colour` than to the grey background and other colours, bool [H, W]."""
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names] + [[level] * 3 for level in (96, 120, 145)])
    nearest = np.linalg.norm(frame[:, :, None].astype(float) - palette, axis=3).argmin(axis=2)
    return np.asarray(nearest == names.index(colour))


def frames_of(drawn: SyntheticSet, row: dict[str, Any]) -> np.ndarray:
    clip = decode(video_spec(str(drawn.videos / row["video"]), DATA))
    assert clip.info.times_s.tolist() == [0.5 * index for index in range(8)]
    return clip.frames


def test_every_clip_has_one_row_of_each_task_and_rows_are_routed_by_their_annotations(
    rows: list[dict[str, Any]],
) -> None:
    assert len(rows) == NUM_CLIPS * len(ROWS)
    carried = {
        "temporal_grounding": {"clue"},
        "tracking": {"clue"},
        "multiple_choice": {"options", "answer"},
        "grounded_qa": {"options", "answer", "clue"},
        "captioning": {"caption", "events"},
    }
    for task, keys in carried.items():
        found = by_task(rows, task)
        assert len({row["video"] for row in found}) == NUM_CLIPS
        assert all(set(row) == {"video", "duration", "question"} | keys for row in found)


def test_the_same_seed_gives_the_same_bytes_and_a_larger_set_begins_with_the_smaller(
    drawn: SyntheticSet, tmp_path: Path
) -> None:
    again = draw_mixture(tmp_path / "again", num_clips=4, seed=1)
    for path in sorted(again.videos.iterdir()):
        assert path.read_bytes() == (drawn.videos / path.name).read_bytes()
    lines = again.annotations.read_text().splitlines()
    assert lines == drawn.annotations.read_text().splitlines()[: len(lines)]
    other = draw_mixture(tmp_path / "other", num_clips=1, seed=2)
    assert (other.videos / "00000.mp4").read_bytes() != (drawn.videos / "00000.mp4").read_bytes()


def test_tracked_boxes_lie_around_the_pixels_of_the_object_on_each_of_the_eight_frames(
    drawn: SyntheticSet, rows: list[dict[str, Any]]
) -> None:
    for row in by_task(rows, "tracking"):
        colour = row["question"].removeprefix("Where is the ").split()[0]
        assert len(row["clue"]) == 8
        for frame, box in zip(frames_of(drawn, row), row["clue"], strict=True):
            ys, xs = np.nonzero(in_colour(frame, colour))
            seen = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / SIZE
            # soft edges and the apex of a triangle are lost to the nearest-colour rule: up to three pixels
            assert np.abs(seen - box).max() <= 3.5 / SIZE, (row["video"], seen, box)


def test_the_other_object_is_on_screen_exactly_when_both_grounding_rows_say(
    drawn: SyntheticSet, rows: list[dict[str, Any]]
) -> None:
    for row, grounded in zip(by_task(rows, "temporal_grounding"), by_task(rows, "grounded_qa"), strict=True):
        assert grounded["clue"] == [row["clue"]]
        start_s, end_s = row["clue"]
        assert 0 <= start_s < end_s <= row["duration"] == 4.0
        assert 1.0 <= end_s - start_s <= 3.0
        colour = next(name for name in COLOURS if name in row["question"])
        is_seen = [in_colour(frame, colour).mean() > 0.03 for frame in frames_of(drawn, row)]
        assert is_seen == [start_s <= 0.5 * index < end_s for index in range(8)]


def test_the_caption_names_the_two_objects_that_the_other_rows_ask_about(rows: list[dict[str, Any]]) -> None:
    for row, tracked, grounded in zip(
        by_task(rows, "captioning"), by_task(rows, "tracking"), by_task(rows, "temporal_grounding"), strict=True
    ):
        mover = tracked["question"].removeprefix("Where is the ").rstrip("?").split()
        guest = grounded["question"].removeprefix("When does the ").removesuffix(" appear?").split()
        assert row["events"] == [f"Something {mover[0]} moves.", f"Something {guest[0]} appears."]
        assert row["caption"] == " ".join(row["events"])
        assert mover[0] != guest[0]
        assert mover[1] != guest[1]


@pytest.mark.parametrize("task", ["multiple_choice", "grounded_qa"])
def test_the_right_option_is_the_colour_that_the_caption_confirms(rows: list[dict[str, Any]], task: str) -> None:
    for row, described in zip(by_task(rows, task), by_task(rows, "captioning"), strict=True):
        assert row["options"] == ["(A) red", "(B) green", "(C) blue", "(D) yellow"]
        right = next(option[4:] for option in row["options"] if option.startswith(row["answer"]))
        verb = "appears" if "appears" in row["question"] else "moves"
        assert f"Something {right} {verb}." in described["events"]
    assert {row["answer"] for row in by_task(rows, task)} == {"(A)", "(B)", "(C)", "(D)"}


def test_the_file_is_routed_by_its_annotations_without_a_dirty_row(
    drawn: SyntheticSet, rows: list[dict[str, Any]]
) -> None:
    loaded = load_annotations(drawn.annotations, videos=drawn.videos, data=DATA.model_copy(update={"format": "vtts"}))
    assert loaded.dirty == ()
    assert [item.task for item in loaded.items] == list(ROWS) * NUM_CLIPS
    assert [item.truth for item in loaded.items[:5]] == [
        item_of(row, task).truth for row, task in zip(rows, ROWS, strict=False)
    ]
    clips = [{item.media for item in loaded.items[at : at + 5]} for at in range(0, len(rows), 5)]
    assert all(len(specs) == 1 for specs in clips)  # one decode serves all five rows of a clip


def test_sentences_of_different_captions_are_far_apart_for_the_embedding_judge() -> None:
    """Sentences of different captions are below the demo's threshold of 0.85, so they are different events."""
    right = [f"Something {colour} {verb}." for colour in COLOURS for verb in ("moves", "appears")]
    vectors = SentenceEmbedder().embed([*right, *(text.replace("moves", "is moving") for text in right[::2])])
    similarity = vectors[: len(right)] @ vectors.T
    assert (similarity[:, : len(right)] - np.eye(len(right))).max() < 0.82
    assert min(similarity[2 * index, len(right) + index] for index in range(len(COLOURS))) > 0.86


def test_standing_still_and_the_mean_box_are_poor_answers_to_tracking(rows: list[dict[str, Any]]) -> None:
    truths = [row["clue"] for row in by_task(rows, "tracking")]
    still = np.mean([mean_box_iou([truth[0]] * 8, truth) for truth in truths])
    constant = np.mean([mean_box_iou(np.mean(truths, axis=0).tolist(), truth) for truth in truths])
    assert still < 0.5
    assert constant < 0.2


def test_correct_demonstrations_have_the_correct_format_and_full_scores(rows: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(0)
    for task in ROWS:
        for row, item in zip(by_task(rows, task), items(rows, task), strict=True):
            text = demonstration_text(item, rng, 0.0)
            expected = expected_answer(item.truth, item.options, TASKS[task].read_truth(item.truth))
            assert TASKS[task].is_well_formed(text, think=True, reading="strict", expected=expected), text
            names = tuple(name for name in default_names(task) if name not in judged_scores(task))
            scored = rule_scores(
                ScoreRow(rollout_id="0", task=task, text=text, truth=item.truth),
                names,
                ScoreSettings(),
            )
            assert scored.status == "ok", scored.reason
            # corners are written to the nearest 0.05, so boxes are nearly right
            least = {"iou": 0.75} if task == "tracking" else {}
            assert all(value >= least.get(name, 1.0) for name, value in scored.scores.items()), (text, scored.scores)
            if task == "captioning":
                assert TASKS[task].parse(text)["answer"] == Caption(text=row["caption"])


@pytest.mark.parametrize("task", list(ROWS))
def test_a_share_of_demonstrations_is_malformed_in_two_ways(rows: list[dict[str, Any]], task: str) -> None:
    item, rng = items(rows, task)[0], np.random.default_rng(0)
    texts = [demonstration_text(item, rng, 0.25) for _ in range(1000)]
    without_think = sum("<think>" not in text for text in texts)
    without_answer = sum("<answer>" not in text for text in texts)
    assert without_think == pytest.approx(125, abs=35)
    assert without_answer == pytest.approx(125, abs=35)
    assert not any("<think>" not in text and "<answer>" not in text for text in texts)


def test_grounding_demonstrations_are_those_of_the_grounding_demo(rows: list[dict[str, Any]]) -> None:
    item = items(rows, "temporal_grounding")[0]
    ours, theirs = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(20):
        assert demonstration_text(item, ours, 0.25) == grounding_demonstration(item, theirs, 0.25)


def test_the_grounding_set_is_drawn_byte_for_byte_as_before(tmp_path: Path) -> None:
    """The published numbers of the grounding demo are those of exactly these clips and annotations."""
    found = draw_dataset(tmp_path, num_clips=3, seed=1000)
    digest = hashlib.sha256(found.annotations.read_bytes()).hexdigest()
    assert digest == "275ad17a99096f9f7802564baaaa5cae43a31b97620722185bd39ff20d373350"


@pytest.mark.parametrize(
    ("task", "question", "truth"),
    [
        ("tracking", "the dog", [[0.1, 0.1, 0.2, 0.2]] * 8),
        ("multiple_choice", "Who opens the door?", "(A)"),
        ("grounded_qa", "Who opens the door?", {"answer": "(C)", "glue": [[0.0, 1.0]]}),
        ("captioning", "Describe it.", {"caption": "A man walks."}),
        ("numeric_qa", "How many?", 3.0),
    ],
)
def test_questions_of_other_data_have_no_demonstration(task: str, question: str, truth: Any) -> None:
    foreign = PromptItem(
        prompt_id="x:0", task=task, question=question, options=("(A) a man", "(B) a dog"), media=(), truth=truth
    )
    with pytest.raises(ValueError, match="x:0: .* not a question of the synthetic data set"):
        demonstration_text(foreign, np.random.default_rng(0), 0.0)


@pytest.mark.parametrize(
    ("knob", "message"), [({"num_clips": 0}, "num_clips=0"), ({"source_fps": (5,)}, "even numbers")]
)
def test_arguments_that_would_break_the_annotations_are_refused(
    tmp_path: Path, knob: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_mixture(tmp_path, **({"num_clips": 1, "seed": 0} | knob))

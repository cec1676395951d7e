from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import load_annotations
from rlsys.data.video.decode import decode
from rlsys.demo.synthetic import COLOURS, SHAPES, SyntheticSet, demonstration_text, draw_dataset
from rlsys.tasks.answers import last_block
from rlsys.tasks.table import TASKS
from rlsys.types import PromptItem

DATA = DataConfig(fps=2.0, min_frames=4, max_frames=12, min_pixels=784, max_pixels=7056)
NUM_CLIPS = 40


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return draw_dataset(tmp_path_factory.mktemp("drawn"), num_clips=NUM_CLIPS, seed=1)


@pytest.fixture(scope="module")
def items(drawn: SyntheticSet) -> tuple[PromptItem, ...]:
    return load_annotations(drawn.annotations, videos=drawn.videos, data=DATA).items


def test_every_clip_has_two_queries_inside_it_on_the_half_second_grid(drawn: SyntheticSet) -> None:
    rows = json.loads(drawn.annotations.read_text())
    assert len(rows) == NUM_CLIPS
    assert {row["duration"] for row in rows.values()} == {4.0, 5.0, 6.0}
    for row in rows.values():
        assert len(set(row["sentences"])) == len(row["timestamps"]) == 2
        for start_s, end_s in row["timestamps"]:
            assert 0 <= start_s < end_s <= row["duration"]
            assert 1.0 <= end_s - start_s <= 3.0
            assert (start_s * 2).is_integer()
            assert (end_s * 2).is_integer()


def test_source_frame_rates_vary(drawn: SyntheticSet) -> None:
    rates = {cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) for path in drawn.videos.iterdir()}
    assert rates == {4.0, 6.0, 8.0, 10.0}


def test_the_same_seed_gives_the_same_bytes_and_a_larger_set_begins_with_the_smaller(
    drawn: SyntheticSet, tmp_path: Path
) -> None:
    again = draw_dataset(tmp_path / "again", num_clips=5, seed=1)
    for path in sorted(again.videos.iterdir()):
        assert path.read_bytes() == (drawn.videos / path.name).read_bytes()
    other = draw_dataset(tmp_path / "other", num_clips=1, seed=2)
    assert (other.videos / "00000.mp4").read_bytes() != (drawn.videos / "00000.mp4").read_bytes()


def colour_area(frame: np.ndarray, colour: str) -> float:
    """Return the share of pixels that are closer to `colour` than to the grey background and the other colours."""
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names] + [[level] * 3 for level in (96, 120, 145)])
    nearest = np.linalg.norm(frame[:, :, None].astype(float) - palette, axis=3).argmin(axis=2)
    return float((nearest == names.index(colour)).mean())


def test_decoded_frames_show_the_object_exactly_when_the_annotation_says(items: tuple[PromptItem, ...]) -> None:
    for item in items:
        clip = decode(item.media[0])
        assert clip.frames.shape[1:] == (56, 56, 3)
        assert clip.info.second_per_grid_s == 1.0
        colour = next(name for name in COLOURS if name in item.question)
        areas = [colour_area(frame, colour) for frame in clip.frames]
        start_s, end_s = item.truth
        is_shown = (clip.info.times_s >= start_s) & (clip.info.times_s < end_s)
        assert [area > 0.03 for area in areas] == is_shown.tolist(), (item.prompt_id, areas)


def test_shapes_differ_in_how_much_of_their_box_they_fill(items: tuple[PromptItem, ...]) -> None:
    fill: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for item, other in zip(items[::2], items[1::2], strict=True):
        if item.truth[0] >= other.truth[1] or other.truth[0] >= item.truth[1]:  # alone on screen
            shape = next(name for name in SHAPES if name in item.question)
            clip = decode(item.media[0])
            frame = clip.frames[int(np.searchsorted(clip.info.times_s, item.truth[0]))].astype(int)
            mask = frame.max(axis=2) - frame.min(axis=2) > 60
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            fill[shape].append(mask.sum() / (np.ptp(rows) + 1) / (np.ptp(columns) + 1))
    assert np.mean(fill["square"]) > 0.93
    assert 0.72 < np.mean(fill["circle"]) < 0.86  # pi / 4 = 0.785
    assert np.mean(fill["triangle"]) < 0.64


def test_demonstrations_are_correct_and_a_share_is_malformed_in_two_ways(items: tuple[PromptItem, ...]) -> None:
    item = items[0]
    rng = np.random.default_rng(0)
    right = demonstration_text(item, rng, 0.0)
    colour, shape = item.question.split()[3:5]
    start_s, end_s = item.truth
    assert right == f"<think>{colour} {shape}</think><answer>{start_s:.1f} to {end_s:.1f}</answer>"
    task = TASKS["temporal_grounding"]
    assert task.is_well_formed(right, think=True)
    texts = [demonstration_text(item, rng, 0.25) for _ in range(2000)]
    malformed = [text for text in texts if not task.is_well_formed(text, think=True)]
    assert len(malformed) == pytest.approx(500, abs=60)
    without_think = [text for text in malformed if "<think>" not in text]
    assert len(without_think) == pytest.approx(250, abs=45)
    assert all(last_block(text, "answer") is None for text in malformed if "<think>" in text)


def test_questions_of_other_data_have_no_demonstration(items: tuple[PromptItem, ...]) -> None:
    foreign = PromptItem(
        prompt_id="x:0", task="temporal_grounding", question="a person walks", options=(), media=(), truth=[0.0, 1.0]
    )
    with pytest.raises(ValueError, match="does not ask for a synthetic object"):
        demonstration_text(foreign, np.random.default_rng(0), 0.0)


@pytest.mark.parametrize(
    ("knob", "message"),
    [
        ({"durations_s": (5.2,)}, "multiples of 0.5 s"),
        ({"source_fps": (5,)}, "even numbers"),
        ({"num_objects": 4}, "num_objects=4"),
        ({"num_clips": 0}, "num_clips=0"),
    ],
)
def test_arguments_that_would_break_the_annotations_are_refused(tmp_path: Path, knob: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_dataset(tmp_path, **({"num_clips": 1, "seed": 0} | knob))

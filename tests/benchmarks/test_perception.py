"""Clips of the benchmark of rounds: what its questions claim is on the frames, and what a look sees of it."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks import perception
from rlsys.demo.synthetic import COLOURS
from rlsys.types import PromptItem

WHITE = 230
"""Grey level from which on a pixel of an encoded frame counts as the bar's."""


def frames_of(path: Path) -> np.ndarray:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return np.stack(frames).astype(int)


@pytest.mark.parametrize("seed", range(5))
def test_the_bar_is_shown_in_the_annotated_period_and_the_flash_for_a_second_of_it(tmp_path: Path, seed: int) -> None:
    row = perception.draw_clip(tmp_path / "clip.mp4", np.random.default_rng(seed))
    frames = frames_of(tmp_path / "clip.mp4")
    times_s = np.arange(len(frames)) / perception.SOURCE_FPS
    ((start_s, end_s),) = row["clue"]
    assert len(frames) == perception.DURATION_S * perception.SOURCE_FPS == row["duration"] * perception.SOURCE_FPS
    assert perception.SHORTEST_S <= end_s - start_s <= perception.LONGEST_S and end_s <= perception.DURATION_S

    has_bar = (frames[:, :, : perception.BAR_PX // 2].mean(axis=(1, 2, 3))) > WHITE
    np.testing.assert_array_equal(has_bar, (times_s >= start_s) & (times_s < end_s))

    right = frames[:, :, perception.BAR_PX + 2 :]
    has_flash = (right.max(axis=3) - right.min(axis=3)).max(axis=(1, 2)) > 60  # the rest is grey
    assert has_flash.sum() == perception.FLASH_S * perception.SOURCE_FPS
    assert (has_bar | ~has_flash).all()
    letter = row["answer"]
    (colour,) = (option.removeprefix(f"{letter} ") for option in row["options"] if option.startswith(letter))
    shown = right[has_flash.argmax()].reshape(-1, 3)
    most_vivid = shown[(shown.max(axis=1) - shown.min(axis=1)).argmax()]
    nearest = min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - most_vivid).sum())
    assert nearest == colour


def test_a_coarse_answer_is_off_by_less_than_the_spacing_of_frames() -> None:
    item = PromptItem(
        prompt_id="a",
        task="grounded_qa",
        question=perception.QUESTION,
        media=(),
        truth={"answer": "(B)", "glue": ((20.0, 29.0),)},
        options=("(A) red", "(B) green"),
    )
    rng = np.random.default_rng(0)
    text = "<think>green</think><answer>(B)</answer><glue>[(20.0, 29.0)]</glue>"
    drawn = {perception.coarse(item, text, rng) for _ in range(200)}
    periods = []
    for one in drawn:
        head, _, glue = one.partition("<glue>")
        assert head == "<think>green</think><answer>(B)</answer>"
        periods.append([float(edge) for edge in glue.removesuffix(")]</glue>").removeprefix("[(").split(", ")])
    off = np.abs(np.array(periods) - [20.0, 29.0])
    assert off.max() <= perception.SPACING_S and off.max(axis=0).min() > perception.SPACING_S / 2
    assert (np.diff(periods, axis=1) > 0).all()


def test_the_table_has_the_median_of_the_seeds() -> None:
    sampled = {"accuracy": 0.75, "miou": 0.25}

    def of_seed(value: float) -> dict[str, Any]:
        points = [{"total_visual_tokens": 32.0, "metrics": {"accuracy": value, "miou": value / 2}}]
        return {"cold_start": {"by_round": points, "controls": {}}, "sampled": {"before": sampled, "after": sampled}}

    lines = list(perception.table({"0": of_seed(0.25), "1": of_seed(0.75), "2": of_seed(0.5)}))
    assert "| cold start | round 1 | 32 | 0.500 | 0.250 0.750 0.500 | 0.250 |" in lines
    assert any("sampled" in line and "0.750 0.750 0.750 | 0.250 |" in line for line in lines)

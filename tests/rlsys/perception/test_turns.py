from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlsys.config.perception import PerceptionConfig
from rlsys.data.video.frames import select_frames
from rlsys.perception.choose import first_item, largest_items, next_turn_of
from rlsys.perception.clues import Clue, clue_iou, clue_of, true_clue
from rlsys.perception.controls import largest_one_round, one_round, oracle_window, random_window
from rlsys.perception.media import WholeClip, frame_budget, whole_clip
from rlsys.perception.turns import (
    MAX_CARRIED_CHARS,
    Round,
    Show,
    Stop,
    carried,
    item_of,
    look_again,
    seconds,
    shown_after,
)
from rlsys.perception.zoom import zoom
from rlsys.types import ClipInfo, ImageSpec, PromptItem, VideoSpec

WHOLE = WholeClip(start_s=0.0, length_s=20.0, source_fps=25.0, num_frames=16)
VIDEO = VideoSpec(
    uri="a.mp4", fps=2.0, min_frames=4, max_frames=16, min_pixels=784, max_pixels=7056, total_pixels=16 * 784
)
IMAGE = ImageSpec(uri="a.png", min_pixels=784, max_pixels=7840)
PERIOD = "<think>it is early</think><answer>4.0 to 8.0</answer>"


def grounding(**changes: Any) -> PromptItem:
    fields: dict[str, Any] = {
        "prompt_id": "f:0",
        "task": "temporal_grounding",
        "question": "a door opens",
        "options": (),
        "media": (VIDEO,),
        "truth": [5.0, 7.0],
    }
    return PromptItem(**(fields | changes))


def image_qa(**changes: Any) -> PromptItem:
    truth = {"answer": "(B)", "box": [100, 50, 200, 100], "width": 400, "height": 200}
    fields: dict[str, Any] = {"task": "spatial_qa", "media": (IMAGE,), "options": ("(A) x", "(B) y"), "truth": truth}
    return grounding(**(fields | changes))


def looked(item: PromptItem, *texts: str | Round, whole: WholeClip | None = WHOLE, **settings: Any) -> Show | Stop:
    rounds = [one if isinstance(one, Round) else Round(text=one) for one in texts]
    perception = PerceptionConfig(**({"rounds": 3} | settings))
    return look_again(item, whole, rounds, perception=perception, reading="paper")


def shown(found: Show | Stop) -> Show:
    assert isinstance(found, Show), found
    return found


def test_a_second_look_has_segments_with_their_own_rates_told_before_them() -> None:
    found = shown(looked(grounding(), PERIOD))
    assert found.media_texts == ("From 0.0 to 4.0 seconds:", "From 4.0 to 8.0 seconds:", "From 8.0 to 20.0 seconds:")
    specs = [spec for spec in found.media if isinstance(spec, VideoSpec)]
    assert [spec.window_s for spec in specs] == [(0.0, 4.0), (4.0, 8.0), (8.0, 20.0)]
    assert [(spec.min_frames, spec.max_frames, spec.fps) for spec in specs] == [(2, 2, 0.5), (8, 8, 2.0), (6, 6, 0.5)]
    assert sum(spec.total_pixels for spec in specs) == VIDEO.total_pixels
    assert found.clue == Clue(periods=((4.0, 8.0),)) and not found.reason
    assert "20.0 seconds" in found.note and "4.0 to 8.0 seconds" in found.note
    item = item_of(grounding(), found)
    assert (item.question, item.truth, item.prompt_id) == ("a door opens", [5.0, 7.0], "f:0")


def test_the_frames_of_the_segments_are_at_the_times_of_a_table_computed_by_hand() -> None:
    """The clip lies at 100 to 120 s of its file, which has 25 frames per second."""
    whole = replace(WHOLE, start_s=100.0)
    found = shown(looked(grounding(), PERIOD, whole=whole))
    file_times = np.arange(0, 200 * 25) / 25
    times, spacings = [], []
    for spec in found.media:
        assert isinstance(spec, VideoSpec)
        assert spec.start_s == 100.0, "time stamps count from the start of the row's own clip too"
        indices, spacing_s = select_frames(file_times, 200.0, spec)
        times.append((file_times[indices] - 100).round(2).tolist())
        spacings.append(spacing_s)
    assert times == [
        [0.0, 2.0],
        [4.0, 4.48, 5.0, 5.48, 6.0, 6.48, 7.0, 7.48],  # a frame every 0.04 s: the one on display at 4.5 is of 4.48
        [8.0, 10.0, 12.0, 14.0, 16.0, 18.0],
    ]
    assert spacings == [2.0, 0.5, 2.0]
    assert found.media_texts[0] == "From 0.0 to 4.0 seconds:", "times count from the start of the row's own clip"


def test_a_row_of_a_part_of_a_file_starts_at_its_window() -> None:
    info = ClipInfo(
        kind="video",
        digest="0",
        times_s=np.arange(8) * 2.5 + 99.96,
        grid_thw=(4, 4, 4),
        second_per_grid_s=5.0,
        duration_s=110.0,
        num_bytes=0,
        start_s=100.0,
        source_fps=25.0,
    )
    spec = replace(VIDEO, window_s=(100.0, 120.0))
    assert whole_clip(spec, info) == WholeClip(start_s=100.0, length_s=10.0, source_fps=25.0, num_frames=8)
    late = whole_clip(VIDEO, replace(info, start_s=0.0))
    assert (late.start_s, late.length_s) == (0.0, 110.0), "a file's times count from its start, not its first picture"


@pytest.mark.parametrize(("settings", "expected"), [({}, 16), ({"max_frames": 8}, 8), ({"max_frames": 64}, 40)])
def test_a_later_round_has_the_frames_of_an_even_look_within_its_budgets(
    settings: dict[str, Any], expected: int
) -> None:
    spec = replace(VIDEO, total_pixels=10**6)
    assert frame_budget(spec, WHOLE, PerceptionConfig(**settings)) == expected


def test_a_response_without_a_clue_looks_evenly_again_and_says_so() -> None:
    found = shown(looked(grounding(), "no idea"))
    assert found == Show(media=(VIDEO,), reason="round 1 has no readable clue: looked evenly again")
    assert item_of(grounding(), found).media == grounding().media


def test_a_response_without_a_clue_keeps_the_one_before_and_says_so() -> None:
    clue = Clue(periods=((4.0, 8.0),))
    found = shown(looked(grounding(), Round(text=PERIOD), Round(text="no idea", clue=clue)))
    assert found.clue == clue
    assert len(found.media) == 3
    assert found.reason == "round 2 has no readable clue: the clue before was kept"


def test_a_clue_behind_the_end_looks_evenly_again_and_says_so() -> None:
    found = shown(looked(grounding(), "<answer>40.0 to 50.0</answer>"))
    assert found.media == (VIDEO,)
    assert "no period inside the clip of 20 s" in found.reason


@pytest.mark.parametrize(
    ("item", "rounds", "settings", "reason"),
    [
        (grounding(), [PERIOD] * 3, {}, "rounds used up"),
        (grounding(media=(VIDEO, VIDEO)), [PERIOD], {}, "2 media"),
        (grounding(task="multiple_choice", truth="(A)"), ["<answer>(A)</answer>"], {}, "no period or box"),
        (grounding(), [PERIOD, PERIOD], {"stop": ("answer_repeated",)}, "the answer is the one before"),
        (
            grounding(),
            [PERIOD, Round(text="<answer>4.0 to 8.1</answer>", clue=Clue(periods=((4.0, 8.0),)))],
            {"stop": ("clue_stable",)},
            "stable (IoU 0.98",
        ),
    ],
)
def test_a_row_stops_with_a_reason(
    item: PromptItem, rounds: list[str | Round], settings: dict[str, Any], reason: str
) -> None:
    found = looked(item, *rounds, **settings)
    assert isinstance(found, Stop) and reason in found.reason


def test_neither_another_clue_nor_another_answer_stops_a_row() -> None:
    rounds = (PERIOD, Round(text="<answer>10.0 to 12.0</answer>", clue=Clue(periods=((4.0, 8.0),))))
    assert isinstance(looked(grounding(), *rounds, stop=("clue_stable", "answer_repeated")), Show)


@pytest.mark.parametrize(("confidence", "kind"), [(0.79, Show), (0.8, Stop), (1.0, Stop)])
def test_a_repeated_answer_ends_a_row_only_if_the_model_is_sure_of_it(confidence: float, kind: type) -> None:
    rounds = (Round(text=PERIOD, confidence=0.1), Round(text=PERIOD, confidence=confidence))
    assert isinstance(looked(grounding(), *rounds, stop=("answer_repeated",), min_confidence=0.8), kind)


def test_the_confidence_of_a_response_reaches_the_turn_after_it() -> None:
    turn = next_turn_of(PerceptionConfig(rounds=3, stop=("answer_repeated",), min_confidence=0.8), "paper")
    assert isinstance(shown_after(grounding(), WHOLE, [(PERIOD, 0.9), (PERIOD, 0.7)], turn), Show)
    assert isinstance(shown_after(grounding(), WHOLE, [(PERIOD, 0.7), (PERIOD, 0.9)], turn), Stop)


def test_the_answer_is_carried_over_only_where_the_config_says_so() -> None:
    text = "<answer>(B)</answer><glue>[(4.0, 8.0)]</glue>"
    item = grounding(task="grounded_qa", options=("(A) x", "(B) y"), truth={"answer": "(B)", "glue": [[4.0, 8.0]]})
    assert "(B)" not in shown(looked(item, text)).note
    assert shown(looked(item, text, carry="clue_and_answer")).note.endswith("It answered: (B)")


def test_a_carried_answer_is_short_and_has_no_special_tokens() -> None:
    assert carried("<answer>4 <|video_pad|> <|im_start to 5</answer>") == "4 im_start to 5"
    assert len(carried(f"<answer>{'word ' * 200}</answer>")) <= MAX_CARRIED_CHARS
    assert carried("nothing") == ""


def test_a_box_in_an_image_is_shown_enlarged_beside_the_whole() -> None:
    text = "<answer>(B)</answer><box>[100, 50, 200, 100]</box>"
    found = shown(looked(image_qa(), text, whole=None, margin=0.0))
    assert found.media == (IMAGE, replace(IMAGE, crop=(0.25, 0.25, 0.5, 0.5)))
    assert found.media_texts == ("", "The part of the image inside [100, 50, 200, 100], enlarged:")


def test_a_box_outside_the_image_shows_the_image_again_and_says_so() -> None:
    found = shown(looked(image_qa(), "<answer>(B)</answer><box>[500, 50, 600, 100]</box>", whole=None))
    assert found.media == (IMAGE,) and found.reason == "no box of the clue is inside the image"


def test_periods_and_a_box_show_each_period_whole_and_cut_out() -> None:
    item = grounding(
        task="spatiotemporal_qa",
        options=("(A) x", "(B) y"),
        truth={"answer": "(B)", "glue": [[4.0, 8.0]], "box": [0.2, 0.2, 0.4, 0.4]},
    )
    text = "<answer>(B)</answer><glue>[(4.0, 8.0)]</glue><box>[0.2, 0.2, 0.4, 0.4]</box>"
    found = shown(looked(item, text, margin=0.0))
    specs = [spec for spec in found.media if isinstance(spec, VideoSpec)]
    assert [(spec.window_s, spec.max_frames, spec.crop) for spec in specs] == [
        ((0.0, 4.0), 2, None),
        ((4.0, 8.0), 4, None),
        ((4.0, 8.0), 4, (0.2, 0.2, 0.4, 0.4)),
        ((8.0, 20.0), 6, None),
    ]
    assert found.media_texts[2] == "From 4.0 to 8.0 seconds, the part inside [0.20, 0.20, 0.40, 0.40], enlarged:"


def test_a_box_without_periods_shows_the_whole_video_and_its_part() -> None:
    item = image_qa(media=(VIDEO,))
    found = shown(looked(item, "<answer>(B)</answer><box>[100, 50, 200, 100]</box>", margin=0.0))
    specs = [spec for spec in found.media if isinstance(spec, VideoSpec)]
    assert [(spec.window_s, spec.max_frames, spec.crop) for spec in specs] == [
        ((0.0, 20.0), 8, None),
        ((0.0, 20.0), 8, (0.25, 0.25, 0.5, 0.5)),
    ]


def test_terse_prompts_have_terse_texts() -> None:
    found = shown(looked(grounding(style="terse"), PERIOD))
    assert found.media_texts == ("0.0 to 4.0:", "4.0 to 8.0:", "8.0 to 20.0:")
    assert found.note == "4.0 to 8.0 seconds"


@pytest.mark.parametrize(("value", "text"), [(12.0, "12.0"), (12.34, "12.34"), (0.999, "1.0"), (7.5, "7.5")])
def test_seconds_are_short_and_exact_to_a_hundredth(value: float, text: str) -> None:
    assert seconds(value) == text


def test_clues_agree_by_the_lower_of_both_ious() -> None:
    one = Clue(periods=((0.0, 4.0),), boxes=((0.0, 0.0, 1.0, 1.0),))
    assert clue_iou(one, one) == 1.0
    assert clue_iou(Clue(periods=((2.0, 4.0),), boxes=one.boxes), one) == pytest.approx(0.5)
    assert clue_iou(Clue(periods=one.periods), one) == 0.0


def test_a_clue_survives_json() -> None:
    clue = Clue(periods=((1.0, 2.5),), boxes=((0.0, 0.1, 0.2, 0.3),))
    assert Clue.from_json(clue.to_json()) == clue
    assert WholeClip.from_json(WHOLE.to_json()) == WHOLE


def test_boxes_of_a_clue_are_fractions_whatever_the_rows_unit() -> None:
    assert true_clue(image_qa()) == Clue(boxes=((0.25, 0.25, 0.5, 0.5),))
    assert clue_of(image_qa(), "<answer>(B)</answer><box>[200, 50, 100, 100]</box>", "paper") is None, "reversed"


def test_a_random_window_is_as_long_as_the_clue_and_repeatable() -> None:
    perception = PerceptionConfig(rounds=2)
    looks = [
        random_window(
            grounding(prompt_id=f"f:{row}"),
            WHOLE,
            [Round(text=PERIOD)],
            perception=perception,
            reading="paper",
            seed=0,
        )
        for row in (0, 1, 0)
    ]
    clues = [one.clue for one in looks if one is not None and one.clue is not None]
    assert clues[0] == clues[2] != clues[1]
    for clue in clues:
        ((start, end),) = clue.periods
        assert end - start == pytest.approx(4.0) and start >= 0.0 and end <= 20.0


def test_an_oracle_window_is_the_annotation() -> None:
    found = oracle_window(grounding(), WHOLE, [Round(text="")], perception=PerceptionConfig(rounds=2))
    assert found is not None and found.clue == Clue(periods=((5.0, 7.0),))


def test_a_control_needs_a_clue() -> None:
    perception = PerceptionConfig(rounds=2)
    assert random_window(grounding(), WHOLE, [Round(text="")], perception=perception, reading="paper", seed=0) is None
    item = grounding(task="multiple_choice", truth="(A)")
    assert oracle_window(item, WHOLE, [Round(text="")], perception=perception) is None


def test_one_round_with_the_tokens_of_three_has_three_times_the_frames_at_the_same_size() -> None:
    row = grounding()
    found = one_round(row, WHOLE, 100, 300)
    assert found is not None and not found.media_texts
    (spec,) = found.media
    assert isinstance(spec, VideoSpec)
    assert spec.min_frames == spec.max_frames == 3 * WHOLE.num_frames
    assert spec.fps == pytest.approx(3 * WHOLE.num_frames / WHOLE.length_s)
    assert spec.total_pixels // spec.max_frames == VIDEO.total_pixels // WHOLE.num_frames
    assert one_round(row, WHOLE, 100, 100) is None, "no later round was asked"
    largest = largest_one_round(row, PerceptionConfig(rounds=3))
    assert largest is not None and largest.media[0].max_frames == 3 * VIDEO.max_frames


def test_one_round_of_an_image_is_scaled_to_the_tokens_of_all() -> None:
    found = one_round(image_qa(), None, 4, 12)
    assert found is not None
    (spec,) = found.media
    assert isinstance(spec, ImageSpec)
    assert spec.min_pixels == spec.max_pixels == 12 * 28 * 28


def zoomed(item: PromptItem, text: str, whole: WholeClip | None = WHOLE, rounds: int = 3) -> Show | Stop:
    return zoom(item, whole, [Round(text=text)], perception=PerceptionConfig(rounds=rounds, turn="zoom", margin=0.0))


def test_a_requested_period_is_shown_behind_the_whole_clip() -> None:
    found = shown(zoomed(grounding(), "<zoom>12.0 to 18.0</zoom>"))
    assert found.media[0] == VIDEO
    part = found.media[1]
    assert isinstance(part, VideoSpec) and part.window_s == (12.0, 18.0) and part.max_frames == 16
    assert found.media_texts == ("", "Enlarged, 12.0 to 18.0 seconds:")
    assert "<zoom>" in found.note, "another round may request again"
    assert "<zoom>" not in shown(zoomed(grounding(), "<zoom>12.0 to 18.0</zoom>", rounds=2)).note


def test_a_requested_box_is_cut_out_of_image_and_video() -> None:
    request = "<zoom>[100, 50, 200, 100]</zoom>"
    assert shown(zoomed(image_qa(), request, None)).media == (IMAGE, replace(IMAGE, crop=(0.25, 0.25, 0.5, 0.5)))
    part = shown(zoomed(image_qa(media=(VIDEO,)), request)).media[1]
    assert isinstance(part, VideoSpec) and part.crop == (0.25, 0.25, 0.5, 0.5) and part.window_s == (0.0, 20.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<answer>1.0 to 2.0</answer>", "no part was requested"),
        ("<zoom>there</zoom>", "names no part"),
        ("<zoom>40.0 to 50.0</zoom>", "names no part"),
        ("<zoom>[0.5, 0.5, 0.4, 0.4]</zoom>", "names no part"),
    ],
)
def test_a_response_without_a_usable_request_stops(text: str, reason: str) -> None:
    found = zoomed(grounding(), text)
    assert isinstance(found, Stop) and reason in found.reason


def test_the_first_round_is_told_of_requests_only_where_they_can_be_made() -> None:
    item = grounding()
    assert first_item(item, PerceptionConfig(turn="zoom")) is item, "one round"
    assert first_item(item, PerceptionConfig(rounds=2)) is item, "look_again"
    assert "<zoom>12.54 to 17.83</zoom>" in first_item(item, PerceptionConfig(rounds=2, turn="zoom")).note
    assert "video" not in first_item(image_qa(), PerceptionConfig(rounds=2, turn="zoom")).note


@pytest.mark.parametrize("turn", ["look_again", "zoom"])
def test_the_function_that_a_config_names_is_used(turn: str) -> None:
    perception = PerceptionConfig(rounds=2, turn=turn)
    found = next_turn_of(perception, "paper")(grounding(), WHOLE, [Round(text=f"<zoom>1.0 to 9.0</zoom>{PERIOD}")])
    assert shown(found).clue == Clue(periods=((1.0, 9.0) if turn == "zoom" else (4.0, 8.0),))


def test_the_largest_prompt_has_as_many_parts_as_a_clue_can_make() -> None:
    (largest,) = largest_items(grounding(), PerceptionConfig(rounds=2, max_periods=3))
    assert len(largest.media) == 7
    assert not list(largest_items(grounding(), PerceptionConfig()))
    assert not list(largest_items(grounding(task="multiple_choice", truth="(A)"), PerceptionConfig(rounds=2)))
    assert len(list(largest_items(grounding(), PerceptionConfig(rounds=2, turn="zoom")))) == 2

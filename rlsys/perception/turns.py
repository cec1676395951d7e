"""The rounds of a row, and the function that decides what the next one shows.

A rollout may take several turns. What a turn shows is decided by a pure function of the row and of the rounds so far,
a `NextTurn`: `look_again` here, `rlsys.perception.zoom.zoom` as a second one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rlsys.config.answers import Reading
from rlsys.config.perception import PerceptionConfig
from rlsys.perception.clues import Clue, answer_of, box_unit, clue_iou, clue_of, points_somewhere
from rlsys.perception.crop import crop_around
from rlsys.perception.media import (
    WholeClip,
    frame_budget,
    image_specs,
    segment_spec,
    with_budgets,
    with_crops,
)
from rlsys.perception.selection import Segment, select_segments
from rlsys.tasks.answers import last_block
from rlsys.tasks.geometry import Box, TimeSpan
from rlsys.types import ImageSpec, MediaSpec, PromptItem, VideoSpec

MAX_CARRIED_CHARS = 200
"""Length at which a carried answer is cut off."""
_SPECIAL = re.compile(r"<\|[^|]*\|>|<\|")


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of a row: what it showed and what the model answered.

    text: the response.  clue: that it was shown around; None for an even look at the whole.
    reason: why it was shown as it was, where that is not what the response before asked for; "" otherwise.
    confidence: geometric mean of the probabilities of the response's tokens; 1 for a text that was not sampled.
    """

    text: str
    clue: Clue | None = None
    reason: str = ""
    confidence: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Show:
    """What the next round shows. media, media_texts, note: as in `PromptItem`.  clue, reason: as in `Round`."""

    media: tuple[MediaSpec, ...]
    media_texts: tuple[str, ...] = ()
    note: str = ""
    clue: Clue | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """The end of a row's rounds, and why."""

    reason: str


NextTurn = Callable[[PromptItem, WholeClip | None, Sequence[Round]], Show | Stop]
"""(row, what the first look told of its clip, rounds so far) -> what the next round shows.

The row is the one of the annotation file; the last round has the response to react to. The clip is None for a row that
shows an image, or several media. Such a function must be pure: a rollout is repeated from its responses.
"""


def item_of(item: PromptItem, shown: Show) -> PromptItem:
    """Return the row with what a later round shows of it; its question, its truth and its id stay the same."""
    return replace(item, media=shown.media, media_texts=shown.media_texts, note=shown.note)


def shown_after(
    item: PromptItem, whole: WholeClip | None, responses: Sequence[tuple[str, float]], next_turn: NextTurn
) -> Show | Stop:
    """Return what follows these responses of a row, one for each round, all of which but the last were followed by one.

    whole: what the first look told of the clip.  responses: (text, confidence) of each, see `Round`.
    Raises ValueError if the rounds stop before the last response.
    """
    rounds: list[Round] = []
    shown: Show | Stop | None = None
    for text, confidence in responses:
        if isinstance(shown, Stop):
            raise ValueError(f"{item.prompt_id}: no round follows round {len(rounds)}: {shown.reason}")
        clue, reason = (None, "") if shown is None else (shown.clue, shown.reason)
        rounds.append(Round(text=text, clue=clue, reason=reason, confidence=confidence))
        shown = next_turn(item, whole, rounds)
    if shown is None:
        raise ValueError(f"{item.prompt_id}: a round follows a response, and none was given.")
    return shown


def look_again(
    item: PromptItem,
    whole: WholeClip | None,
    rounds: Sequence[Round],
    *,
    perception: PerceptionConfig,
    reading: Reading,
) -> Show | Stop:
    """Look again at the periods and boxes of the last response.

    A response without a readable clue keeps the clue of the round before; without one, the clip is looked at evenly
    again; both with the reason. Source: VTTS, appendix, and the code released with VideoChat-R1.5.
    """
    if why := cannot_look(item, len(rounds), perception):
        return Stop(reason=why)
    last = rounds[-1]
    found = clue_of(item, last.text, reading)
    if found is not None and last.clue is not None and "clue_stable" in perception.stop:
        agreement = clue_iou(found, last.clue)
        if agreement >= perception.stable_iou:
            return Stop(reason=f"the clue is stable (IoU {agreement:.2f} with the one before)")
    is_sure = last.confidence >= perception.min_confidence
    if "answer_repeated" in perception.stop and is_sure and is_repeated(item, rounds, reading):
        return Stop(reason="the answer is the one before")
    answer = carried(last.text) if perception.carry == "clue_and_answer" else ""
    if found is None:
        kept = "looked evenly again" if last.clue is None else "the clue before was kept"
        return replace(
            show_clue(item, whole, last.clue, perception, answer),
            reason=f"round {len(rounds)} has no readable clue: {kept}",
        )
    return show_clue(item, whole, found, perception, answer)


def cannot_look(item: PromptItem, num_rounds: int, perception: PerceptionConfig) -> str:
    """Return why a row is not looked at again after this number of rounds; "" if it can be."""
    if num_rounds >= perception.rounds:
        return "rounds used up"
    if len(item.media) != 1:
        return f"the row shows {len(item.media)} media, and a clue does not say of which"
    if not points_somewhere(item.task):
        return f"{item.task} is answered with no period or box to look at"
    return ""


def is_repeated(item: PromptItem, rounds: Sequence[Round], reading: Reading) -> bool:
    """Return whether the last two responses have the same answer, which can be read."""
    if len(rounds) < 2:
        return False
    before, last = (answer_of(item, one.text, reading).get("answer") for one in rounds[-2:])
    return last is not None and before == last


def show_clue(
    item: PromptItem, whole: WholeClip | None, clue: Clue | None, perception: PerceptionConfig, answer: str = ""
) -> Show:
    """Return a look around a clue; one at the whole evenly, with the reason, where there is nothing to look at.

    answer: of the round before, which the prompt repeats; "" for none.
    """
    (spec,) = item.media
    even = Show(media=(with_budgets(spec, perception) if isinstance(spec, VideoSpec) else spec,))
    if clue is None:
        return even
    crop = crop_around(clue.boxes, perception.margin)
    if isinstance(spec, ImageSpec):
        if crop is None:
            return replace(even, reason="no box of the clue is inside the image")
        return _show_image(item, spec, clue, crop, perception, answer)
    if whole is None:
        raise ValueError(f"{item.prompt_id}: a later look at a video needs what the first told of it; give `whole`.")
    budget = frame_budget(spec, whole, perception)
    if clue.periods:
        selection = select_segments(clue.periods, whole.length_s, budget, whole.source_fps, perception)
        if not selection.segments:
            return replace(even, reason=selection.reason)
        segments = selection.segments
    elif crop is None:
        return replace(even, reason="no box of the clue is inside the picture")
    else:
        segments = (Segment(start_s=0.0, end_s=whole.length_s, num_frames=budget, is_key=True),)
    return _show_segments(item, whole, segments, clue, crop, perception, answer)


def _show_image(
    item: PromptItem, spec: ImageSpec, clue: Clue, crop: Box, perception: PerceptionConfig, answer: str
) -> Show:
    part = f"{box_text(item, crop)}"
    if item.style == "terse":
        texts = ("", f"{part}:")
        note = ""
    else:
        texts = ("", f"The part of the image inside {part}, enlarged:")
        note = "Boxes refer to the whole image, which is the first one."
    # nothing is said before the whole image, so that its part of the prompt is that of the first round
    return Show(
        media=image_specs(spec, crop, perception),
        media_texts=texts,
        note=_joined(item, note, clue, answer),
        clue=clue,
    )


def _show_segments(
    item: PromptItem,
    whole: WholeClip,
    segments: Sequence[Segment],
    clue: Clue,
    crop: Box | None,
    perception: PerceptionConfig,
    answer: str,
) -> Show:
    (spec,) = item.media
    if not isinstance(spec, VideoSpec):
        raise TypeError(f"{item.prompt_id}: segments are of a video, not of {type(spec).__name__}.")
    budget = with_budgets(spec, perception)
    pixels = budget.total_pixels // max(1, sum(segment.num_frames for segment in segments))
    parts = [(segment, False) for segment in segments] if crop is None else with_crops(segments)
    media = tuple(segment_spec(budget, whole, segment, pixels, crop if is_cut else None) for segment, is_cut in parts)
    terse = item.style == "terse"
    texts = []
    for segment, is_cut in parts:
        where = f"{seconds(segment.start_s)} to {seconds(segment.end_s)}"
        inside = box_text(item, crop) if crop is not None and is_cut else ""
        if terse:
            texts.append(f"{where} {inside}:" if inside else f"{where}:")
        else:
            texts.append(f"From {where} seconds" + (f", the part inside {inside}, enlarged:" if inside else ":"))
    note = (
        f"These are parts of one video of {seconds(whole.length_s)} seconds, in the order of time. Times count from "
        "the start of the whole video." + (" Boxes refer to its whole picture." if crop is not None else "")
    )
    return Show(
        media=media, media_texts=tuple(texts), note=_joined(item, "" if terse else note, clue, answer), clue=clue
    )


def _joined(item: PromptItem, note: str, clue: Clue, answer: str) -> str:
    """Return the note with what the round before pointed to and, where it is carried over, what it answered."""
    pointed = ", ".join([*(spoken(span) for span in clue.periods), *(box_text(item, box) for box in clue.boxes)])
    if item.style == "terse":
        return " ".join(part for part in (note, pointed, answer) if part)
    said = f"An earlier look pointed to {pointed}."
    return " ".join(part for part in (note, said, f"It answered: {answer}" if answer else "") if part)


def carried(text: str) -> str:
    """Return what a response answered, as a later prompt repeats it; "" if it has no answer.

    Names of special tokens are taken out: the tokenizer would read them as tokens.
    """
    found = last_block(text, "answer") or ""
    return " ".join(_SPECIAL.sub(" ", found).split())[:MAX_CARRIED_CHARS]


def spoken(span: TimeSpan) -> str:
    """Return a period in words."""
    return f"{seconds(span[0])} to {seconds(span[1])} seconds"


def seconds(value: float) -> str:
    """Return seconds with one decimal, or with two where one would not be exact."""
    text = f"{value:.2f}"
    return text[:-1] if text.endswith("0") else text


def box_text(item: PromptItem, box: Box) -> str:
    """Return a box in fractions as the row's prompt and truth write boxes."""
    width, height = box_unit(item)
    corners = [corner * side for corner, side in zip(box, (width, height, width, height), strict=True)]
    digits = 2 if (width, height) == (1.0, 1.0) else 0
    return "[" + ", ".join(f"{corner:.{digits}f}" for corner in corners) + "]"

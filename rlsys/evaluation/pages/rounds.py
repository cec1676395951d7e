"""Turn the rounds of a row into what a page shows: the frames, the clue, the response and the score of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.answering.answers import Answer
from rlsys.evaluation.pages.rows import answered_places
from rlsys.evaluation.pages.thumbnails import Strip
from rlsys.types import Json, PromptItem


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownRound:
    """One round of a row.

    row: with the text of this round.  answer: with its cost, its clue and why it was shown as it was.
    asked: what it asked; None if the row had stopped.  strips: of the media of `asked`, [] if they cannot be decoded.
    scores: by name.  score: the one of the row.
    """

    row: Answered
    answer: Answer
    asked: PromptItem | None
    strips: Sequence[Strip]
    scores: Mapping[str, float]
    score: float


def page_rounds(rounds: Sequence[ShownRound]) -> dict[str, Json]:
    """Return what `page_row` has of a row with one round, for several: "rounds", and "pictures" that they share."""
    places: dict[str, int] = {}  # two rounds that show the same frame at the same size have equal pictures
    shown = [_page_round(number, one, places) for number, one in enumerate(rounds, start=1)]
    whole = (rounds[0].answer.look or {}).get("whole")
    return {"rounds": shown, "pictures": list(places), "length_s": whole[1] if whole else 0.0}


def _page_round(number: int, one: ShownRound, places: dict[str, int]) -> dict[str, Json]:
    look = one.answer.look or {}
    clue = look.get("clue") or {"periods": [], "boxes": []}
    is_asked = one.asked is not None
    return {
        "round": number,
        "stopped": "" if is_asked else look.get("stopped", ""),
        "reason": look.get("reason", "") if is_asked else "",
        "num_frames": one.answer.num_frames,
        "visual_tokens": look.get("visual_tokens", 0),
        "clue": {"spans": clue["periods"], "boxes": clue["boxes"]} if is_asked else {"spans": [], "boxes": []},
        **answered_places(one.row),
        "text": one.row.texts[0] if one.row.texts else "",
        "score": one.score if math.isfinite(one.score) else None,
        "scores": {name: value for name, value in one.scores.items() if math.isfinite(value)},
        "parts": [] if one.asked is None else _parts(one.asked, one.strips, places),
    }


def _parts(asked: PromptItem, strips: Sequence[Strip], places: dict[str, int]) -> list[dict[str, Json]]:
    """Return each medium with what the prompt says before it, and its frames as (time, place among the pictures)."""
    return [
        {
            "label": asked.media_texts[index] if asked.media_texts else "",
            "crop": asked.media[index].crop,
            "times": strip["times_s"],
            "frames": [
                [frame["time_s"] if strip["times_s"] else None, places.setdefault(frame["url"], len(places))]
                for frame in strip["frames"]
            ],
        }
        for index, strip in enumerate(strips)
    ]

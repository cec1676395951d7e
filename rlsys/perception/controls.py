"""Controls of a second look: what it is worth to look where the clue says, and what it could be worth."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

from rlsys.config.answers import Reading
from rlsys.config.perception import PerceptionConfig
from rlsys.data.video.frames import MERGED, TEMPORAL_PATCH
from rlsys.perception.clues import Clue, clue_of, true_clue
from rlsys.perception.media import WholeClip, with_budgets
from rlsys.perception.turns import Round, Show, cannot_look, show_clue
from rlsys.tasks.geometry import Box, TimeSpan, merge_spans
from rlsys.types import ImageSpec, PromptItem


def random_window(
    item: PromptItem,
    whole: WholeClip | None,
    rounds: Sequence[Round],
    *,
    perception: PerceptionConfig,
    reading: Reading,
    seed: int,
) -> Show | None:
    """Return a second look at random parts as large as those of the first response's clue; None without a clue.

    The parts depend on the seed and the row's id alone.
    """
    clue = None if cannot_look(item, 1, perception) else clue_of(item, rounds[0].text, reading)
    if clue is None:
        return None
    text = f"{seed}|{item.prompt_id}"
    drawn = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
    length_s = 0.0 if whole is None else whole.length_s
    return show_clue(
        item,
        whole,
        Clue(
            periods=_moved_periods(clue.periods, length_s, drawn), boxes=tuple(_moved(box, drawn) for box in clue.boxes)
        ),
        perception,
    )


def oracle_window(
    item: PromptItem, whole: WholeClip | None, rounds: Sequence[Round], *, perception: PerceptionConfig
) -> Show | None:
    """Return a second look at the true periods and boxes, which no model can do better than; None without them."""
    if not rounds or cannot_look(item, 1, perception):
        return None
    clue = true_clue(item)
    return None if clue is None else show_clue(item, whole, clue, perception)


def one_round(item: PromptItem, whole: WholeClip | None, first_tokens: int, tokens: int) -> PromptItem | None:
    """Return the row as a single even look with `tokens` visual tokens; None if its first round had no fewer.

    first_tokens: visual tokens of the first round. A video has more frames of the same size, as far as the file has
    them, and an image is scaled, unless the model has one size for all.
    """
    (spec,) = item.media if len(item.media) == 1 else (None,)
    if spec is None or tokens <= first_tokens:
        return None
    if isinstance(spec, ImageSpec):
        if spec.side_px:
            return None
        pixels = tokens * (MERGED * spec.patch_px) ** 2
        return replace(item, media=(replace(spec, min_pixels=pixels, max_pixels=pixels),))
    if whole is None:
        raise ValueError(f"{item.prompt_id}: a longer look at a video needs what the first told of it; give `whole`.")
    num_frames = TEMPORAL_PATCH * round(whole.num_frames * tokens / first_tokens / TEMPORAL_PATCH)
    return replace(
        item,
        media=(
            replace(
                spec,
                fps=num_frames / whole.length_s,
                min_frames=num_frames,
                max_frames=num_frames,
                total_pixels=spec.total_pixels // whole.num_frames * num_frames,
            ),
        ),
    )


def largest_one_round(item: PromptItem, perception: PerceptionConfig) -> PromptItem | None:
    """Return a row as the largest single look with the visual tokens of all rounds; None for several media."""
    if len(item.media) != 1:
        return None
    (spec,) = item.media
    later = (perception.rounds - 1) * (2 if perception.turn == "zoom" or isinstance(spec, ImageSpec) else 1)
    if isinstance(spec, ImageSpec):
        return replace(item, media=(replace(spec, max_pixels=(1 + later) * spec.max_pixels),))
    budget = with_budgets(spec, perception)
    larger = replace(
        spec,
        max_frames=spec.max_frames + later * budget.max_frames,
        total_pixels=spec.total_pixels + later * budget.total_pixels,
    )
    return replace(item, media=(larger,))


def _moved_periods(periods: Sequence[TimeSpan], length_s: float, drawn: random.Random) -> tuple[TimeSpan, ...]:
    found = []
    for start, end in merge_spans(periods):
        wide = min(end - start, length_s)
        begin = drawn.uniform(0.0, length_s - wide)
        found.append((begin, begin + wide))
    return tuple(found)


def _moved(box: Box, drawn: random.Random) -> Box:
    width, height = min(box[2] - box[0], 1.0), min(box[3] - box[1], 1.0)
    left, top = drawn.uniform(0.0, 1.0 - width), drawn.uniform(0.0, 1.0 - height)
    return left, top, left + width, top + height

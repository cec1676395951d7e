"""The function that a config names for the turns of a row, and the largest prompts that it can make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from rlsys.config.answers import Reading
from rlsys.config.data import DataConfig
from rlsys.config.perception import PerceptionConfig
from rlsys.perception.clues import CLUE_KINDS, PERIOD_KINDS, Clue
from rlsys.perception.media import WholeClip
from rlsys.perception.turns import MAX_CARRIED_CHARS, NextTurn, Round, Show, cannot_look, item_of, look_again, show_clue
from rlsys.perception.zoom import tool_note, zoom
from rlsys.tasks.table import task_named
from rlsys.types import ImageSpec, PromptItem, VideoSpec

LONG_S, DENSE_FPS = 10_000.0, 240.0
"""Length and rate of a clip whose parts have the longest texts and the most frames."""


def next_turn_of(perception: PerceptionConfig, reading: Reading) -> NextTurn:
    """Return the function that `perception.turn` names."""
    if perception.turn == "zoom":
        return partial(zoom, perception=perception)
    return partial(look_again, perception=perception, reading=reading)


def first_item(item: PromptItem, perception: PerceptionConfig) -> PromptItem:
    """Return the row as its first round asks it; unchanged but for what the prompt says of requests."""
    if perception.rounds == 1 or perception.turn != "zoom":
        return item
    return replace(item, note=tool_note(item))


def later_data(data: DataConfig, perception: PerceptionConfig) -> DataConfig:
    """Return section `data` with the budgets of later rounds."""
    changed = {"max_frames": perception.max_frames, "total_pixels": perception.total_pixels}
    return data.model_copy(update={name: value for name, value in changed.items() if value and perception.rounds > 1})


def largest_items(item: PromptItem, perception: PerceptionConfig) -> Iterator[PromptItem]:
    """Yield prompts of later rounds of the row that no other one exceeds in text and media; none for one round."""
    if perception.rounds == 1 or len(item.media) != 1:
        return
    (spec,) = item.media
    most = perception.max_frames or (spec.max_frames if isinstance(spec, VideoSpec) else 0)
    whole = (
        None
        if isinstance(spec, ImageSpec)
        else WholeClip(start_s=0.0, length_s=LONG_S, source_fps=DENSE_FPS, num_frames=most)
    )
    if perception.turn == "zoom":
        for request in ("[0.00, 0.00, 1.00, 1.00]", "1.11 to 9999.99"):
            rounds = [Round(text=f"<zoom>{request}</zoom>")]
            if isinstance(shown := zoom(item, whole, rounds, perception=perception), Show):
                yield item_of(item, shown)
        return
    if cannot_look(item, 1, perception):
        return
    kinds = CLUE_KINDS.intersection(task_named(item.task).blocks.values())
    step = LONG_S / (perception.max_periods + 1)
    periods = tuple((step * (k + 1) + 0.11, step * (k + 1) + 22.22) for k in range(perception.max_periods))
    clue = Clue(
        periods=periods if kinds & PERIOD_KINDS and whole is not None else (),
        boxes=((0.11, 0.11, 0.88, 0.88),) if "box" in kinds else (),
    )
    answer = "0 " * (MAX_CARRIED_CHARS // 2) if perception.carry == "clue_and_answer" else ""
    yield item_of(item, show_clue(item, whole, clue, perception, answer))

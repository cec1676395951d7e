"""Section `perception`: how often a model looks at a clip, and what a later look shows. See `docs/perception.md`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rlsys.config.part import Part

SelectionRule = Literal["share", "density"]
"""How many frames of a later round lie inside the clue, see `rlsys.perception.selection`."""


class PerceptionConfig(Part):
    """The settings of iterative perception: a model looks again where its own answer points."""

    rounds: int = Field(default=1, ge=1, le=16)
    """Largest number of rounds in which each row is asked; 1 asks once, as if this section did not exist. `1,2,3` is 3:
    every round is asked after those before it, and an evaluation has figures of each."""
    turn: Literal["look_again", "zoom"] = "look_again"
    """What a later round shows: the clip sampled anew around the periods and boxes of the response (look_again), or the
    clip with one enlarged part that the response requests by <zoom>…</zoom> (zoom)."""
    rule: SelectionRule = "share"
    """Number of frames inside the periods of the clue: `key_ratio` of all frames (share, the appendix of VTTS), or so
    many that they lie `density_ratio` times as close together as outside (density, its released code)."""
    key_ratio: float = Field(default=0.5, gt=0, lt=1)
    """Share of the frames of a round that lie inside the clue, under rule share."""
    density_ratio: float = Field(default=1.5, gt=0)
    """Frames per second inside the clue, divided by those outside, under rule density."""
    max_periods: int = Field(default=3, ge=1, le=16)
    """Largest number of periods of a clue that are shown apart; beyond it the nearest ones are merged."""
    max_frames: int | None = Field(default=None, ge=2)
    """Largest number of frames of a later round; even. null: the row's own, see `data.max_frames`."""
    total_pixels: int | None = Field(default=None, ge=28 * 28)
    """Largest height x width x frames of a later round; null: the row's own, see `data.total_pixels`."""
    margin: float = Field(default=0.1, ge=0, le=2)
    """Width that is added around a box on each side before it is cut out, as a share of the box's own side."""
    carry: Literal["clue", "clue_and_answer"] = "clue"
    """What the prompt of a later round repeats of the response before: its periods and boxes, or also its answer."""
    stop: tuple[Literal["clue_stable", "answer_repeated"], ...] = ()
    """When a row is not asked again before its rounds are used up: its clue overlaps the one before by an IoU of
    `stable_iou` (clue_stable), or its answer is the one before (answer_repeated)."""
    min_confidence: float = Field(default=0, ge=0, le=1)
    """Geometric mean of a response's token probabilities from which on answer_repeated ends a row; 0: always."""
    stable_iou: float = Field(default=0.9, gt=0, le=1)
    """IoU of two successive clues from which on they count as the same."""
    clue_coef: float = Field(default=0.5, ge=0)
    """In training: what the clue of a round counts beside its trajectory, both as advantages."""
    improvement_coef: float = Field(default=0.5, ge=0)
    """In training: what the gain in IoU over the clue of the round before adds to that of a clue."""

    @field_validator("rounds", mode="before")
    @classmethod
    def _is_the_last_of_a_list(cls, value: object) -> object:
        listed = value.split(",") if isinstance(value, str) else value
        if not isinstance(listed, list) or len(listed) < 2:
            return value
        if [str(one).strip() for one in listed] != [str(number + 1) for number in range(len(listed))]:
            raise ValueError(f"perception.rounds={value}: rounds follow each other from the first; write 1,2,3 or 3.")
        return len(listed)

    @model_validator(mode="after")
    def _has_a_repeated_answer(self) -> PerceptionConfig:
        if self.min_confidence and "answer_repeated" not in self.stop:
            raise ValueError(
                f"perception.min_confidence={self.min_confidence:g}: only a repeated answer is asked for it; add "
                "answer_repeated to perception.stop, or leave it 0."
            )
        return self

    @field_validator("max_frames")
    @classmethod
    def _is_even(cls, value: int | None) -> int | None:
        if value is not None and value % 2:
            raise ValueError(f"perception.max_frames={value}: models merge frames in pairs; use an even number.")
        return value

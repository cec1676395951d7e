"""The ways in which the rows of a data set are answered: greedy, sampled, and controls without what they are about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rlsys.config.evaluation import OF_ROUNDS, Control
from rlsys.loop.producer import sampling_seed
from rlsys.types import PromptItem, Sampling

ModeName = str
"""greedy, sampled, the name of a control, or round_1, round_2, … of rows that are answered round by round."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mode:
    """One way of answering. rows: the items to ask and how to sample each; ids are those of the set's own rows."""

    name: ModeName
    rows: tuple[tuple[PromptItem, Sampling], ...]


def modes_of(
    items: Sequence[PromptItem],
    *,
    seed: int,
    max_tokens: int,
    num_samples: int,
    controls: Sequence[Control],
    control_prompts: int,
) -> Iterator[Mode]:
    """Yield the modes of an evaluation; "sampled" only with more than one sample.

    Seeds depend on the run's seed and the row alone. control_prompts: number of rows for controls; 0 means all.
    """

    def rows_of(
        asked: Sequence[tuple[int, PromptItem]], temperature: float, count: int
    ) -> tuple[tuple[PromptItem, Sampling], ...]:
        return tuple(
            (
                item,
                Sampling(
                    num_samples=count,
                    temperature=temperature,
                    top_p=1.0,
                    max_tokens=max_tokens,
                    # negative, unlike the prompt indices of training, so that no seed of training is repeated
                    seed=sampling_seed(seed, -1 - index, item.prompt_id),
                ),
            )
            for index, item in asked
        )

    every = list(enumerate(items))
    yield Mode(name="greedy", rows=rows_of(every, 0.0, 1))
    if num_samples > 1:
        yield Mode(name="sampled", rows=rows_of(every, 1.0, num_samples))
    some = [every[index] for index in evenly_spaced(len(every), control_prompts or len(every))]
    for control in controls:
        if control in OF_ROUNDS:  # they show what the answers of rounds decide
            continue
        changed = [(index, item) for index, old in some if (item := _changed(control, items, index, old)) is not None]
        yield Mode(name=control, rows=rows_of(changed, 0.0, 1))


def evenly_spaced(size: int, count: int) -> list[int]:
    """Return up to `count` different indices below `size`, evenly spaced from 0."""
    count = min(size, count)
    return [index * size // count for index in range(count)]


def _changed(control: Control, items: Sequence[PromptItem], index: int, item: PromptItem) -> PromptItem | None:
    """Return the item without its media, or with those of another item; None if all have the same."""
    if control == "text_only":
        return replace(item, media=())
    half = len(items) // 2  # past the neighbouring rows, which share a video or a subject
    for step in range(len(items)):
        other = items[(index + half + step) % len(items)]
        if len(other.media) == len(item.media) and other.media != item.media and _kinds(other) == _kinds(item):
            return replace(item, media=other.media)
    return None


def _kinds(item: PromptItem) -> list[type]:
    return [type(spec) for spec in item.media]

"""The division of clips and the exchange of rows, without ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.sequence.clip_parts import clip_part, patches_of
from learner.sequence.routes import RoutePlan, plan_route
from tests.support.learner import make_clip


@pytest.mark.parametrize("num_frames", [2, 6, 13, 16])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_parts_of_a_clip_are_its_frames_in_order(num_frames: int, size: int) -> None:
    clip = make_clip(np.random.default_rng(num_frames), "video", num_frames)
    if num_frames % 2:  # the last patch repeats the last frame
        clip = make_clip(np.random.default_rng(1), "video", num_frames + 1)
        clip = type(clip)(info=clip.info, frames=clip.frames[:-1])
    parts = [part for index in range(size) if (part := clip_part(clip, size, index, frames_per_patch=2)) is not None]
    parts.sort(key=lambda part: int(part.info.digest.partition("[")[2].partition(":")[0]))
    assert np.array_equal(np.concatenate([part.frames for part in parts]), clip.frames)
    times = [part.info.grid_thw[0] for part in parts]
    assert sum(times) == clip.info.grid_thw[0]
    assert max(times) - min(times) <= 1
    assert all(part.info.grid_thw[1:] == clip.info.grid_thw[1:] for part in parts)
    assert len({part.info.digest for part in parts}) == len(parts)


def test_images_spread_over_the_ranks() -> None:
    rng = np.random.default_rng(0)
    found = [len(patches_of(make_clip(rng, "image").info, 4, 0)) for _ in range(200)]
    assert 30 <= sum(found) <= 70


ITEMS = st.integers(1, 5).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(
            st.tuples(st.integers(0, size - 1), st.integers(0, 3), st.integers(0, size - 1)), min_size=0, max_size=20
        ),
    )
)


@given(ITEMS)
def test_every_rank_receives_the_items_that_it_wants_in_their_order(
    case: tuple[int, list[tuple[int, int, int]]],
) -> None:
    size, items = case
    source, place, destination = np.array(items, np.int64).reshape(-1, 3).T
    plans = [plan_route(source, place, destination, size=size, index=index) for index in range(size)]
    rows = [[(rank, number) for number in range(4)] for rank in range(size)]
    sent = [chunks_of(plan, [have[index] for index in plan.send_index]) for plan, have in zip(plans, rows, strict=True)]
    for rank, plan in enumerate(plans):
        received = [item for other in range(size) for item in sent[other][rank]]
        assert tuple(len(sent[other][rank]) for other in range(size)) == plan.receives
        wanted = [(s, p) for s, p, d in items if d == rank]
        assert [received[index] for index in plan.restore] == wanted


def chunks_of(plan: RoutePlan, rows: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Return what a rank sends, by receiving rank."""
    assert len(rows) == sum(plan.sends)
    bounds = np.cumsum([0, *plan.sends])
    return [rows[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]

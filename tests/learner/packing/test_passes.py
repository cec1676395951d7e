from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.packing.cost import read_cost_model
from learner.packing.passes import Plan, plan_passes, split_row
from learner.packing.rows import Row
from rlsys.types import PatchShape
from tests.support.learner import cost_model, cut_of, make_clip, make_group, make_row

COST = cost_model()
SHAPES = st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(0, 40), min_size=1, max_size=5)), max_size=12)


def text_rows(shapes: Sequence[tuple[int, Sequence[int]]]) -> list[Row]:
    """Return one row for each (prompt tokens, tokens of each response)."""
    rng = np.random.default_rng(0)
    return [make_row(make_group(rng, str(i), (), sizes, num_text=prompt)) for i, (prompt, sizes) in enumerate(shapes)]


def lengths(plan: Plan) -> list[list[list[int]]]:
    return [[[row.num_tokens for row in rows] for rows in passes] for passes in plan]


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 4), st.integers(20, 120))
def test_every_response_is_computed_once_within_the_budget_and_ranks_make_equal_passes(
    shapes: list[tuple[int, list[int]]], num_ranks: int, budget: int
) -> None:
    rows = text_rows(shapes)
    plan = plan_passes(rows, num_ranks, budget, COST)
    parts = [row for passes in plan for computed in passes for row in computed]
    found = [response for row in parts for response in row.responses]
    assert sorted(map(id, found)) == sorted(id(response) for row in rows for response in row.responses)
    assert len({len(passes) for passes in plan}) == 1
    assert len(plan[0]) >= 1
    for computed in (computed for passes in plan for computed in passes):
        alone = len(computed) == 1 and sum(response.num_read > 0 for response in computed[0].responses) <= 1
        assert alone or sum(row.num_tokens for row in computed) <= budget
    by_prompt = {row.prompt_id: row for row in rows}
    for part in parts:
        whole = by_prompt[part.prompt_id]
        assert part is whole or whole.num_tokens > budget


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 4))
def test_ranks_differ_by_at_most_the_costliest_row(shapes: list[tuple[int, list[int]]], num_ranks: int) -> None:
    rows = text_rows(shapes)
    loads = [
        sum(COST.row(row) for computed in passes for row in computed)
        for passes in plan_passes(rows, num_ranks, 1000, COST)
    ]
    assert max(loads) - min(loads) <= max(map(COST.row, rows), default=0) + 1e-6


@settings(max_examples=40, deadline=None)
@given(SHAPES, st.integers(1, 4), st.integers(20, 120))
def test_equal_rows_give_the_same_plan(shapes: list[tuple[int, list[int]]], num_ranks: int, budget: int) -> None:
    plans = [plan_passes(text_rows(shapes), num_ranks, budget, COST) for _ in range(2)]
    names = [[[[row.prompt_id for row in rows] for rows in passes] for passes in plan] for plan in plans]
    assert names[0] == names[1]
    assert lengths(plans[0]) == lengths(plans[1])


def test_rows_go_to_the_first_pass_with_room_longest_first() -> None:
    # 70 opens a pass, 60 the next, 30 fills the first, 25 and 15 the second; then by cost
    rows = text_rows([(25, [1]), (70, [1]), (15, [1]), (30, [1]), (60, [1])])
    assert lengths(plan_passes(rows, 1, 100, COST)) == [[[70, 30], [60, 25, 15]]]


def test_ranks_are_balanced_by_cost_and_not_by_length() -> None:
    # attention alone: one row of 100 tokens has 5050 pairs, six of 40 have 4920
    attention = cost_model(mlp=0, hidden=1, kv_size=-1, vocabulary=0)
    rows = text_rows([(100, [1]), *[(40, [1])] * 6])
    plan = plan_passes(rows, 2, 1000, attention)
    assert sorted(map(sum, (passes[0] for passes in lengths(plan)))) == [100, 240]


def test_a_rank_without_rows_still_makes_its_pass() -> None:
    assert lengths(plan_passes(text_rows([(5, [1])]), 2, 100, COST)) == [[[5]], [[]]]


def test_a_group_over_the_budget_repeats_its_prompt() -> None:
    (row,) = text_rows([(40, [31, 11, 21, 1, 41])])
    parts = split_row(row, 80)
    # 40 tokens of room beside the prompt: 40 | 30 + 10 | 20 + 0, in the row's own order
    assert [[len(response.ids) for response in part.responses] for part in parts] == [[1, 41], [31, 11], [21]]
    assert all(part.prompt is row.prompt for part in parts)
    assert {id(response) for part in parts for response in part.responses} == set(map(id, row.responses))


def test_a_response_over_the_budget_has_a_pass_of_its_own() -> None:
    (row,) = text_rows([(40, [100, 5])])
    assert [[len(response.ids) for response in part.responses] for part in split_row(row, 60)] == [[100], [5]]


def test_cost_of_a_row_by_hand() -> None:
    (row,) = text_rows([(10, [4, 1])])
    # 13 tokens; linear layers 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256; 55 pairs in the prompt, 3 * 10 + 6 beyond;
    # a head of 128 x 384 at five tokens; three times that with the backward pass
    layers = 3 * (13 * (32768 + 16384 + 98304) + 2 * 91 * 128)
    assert COST.row(row) == 3 * (layers + 5 * 128 * 384)


def test_cost_of_a_clip_by_hand() -> None:
    rng = np.random.default_rng(0)
    clip = make_clip(rng, "video", 4, 10)  # 2 x 10 x 10 patches
    (row,) = text_rows([(10, [4])])
    shown = replace(row, clips=(clip,))
    # windows of 8 patches: 8 and 2 along each side, squared and summed 68
    linear = 200 * (4 * 64 * 64 + 3 * 64 * 128) + 200 * 1176 * 64
    merger = 50 * 256 * (256 + 128)
    windowed = cost_model(full_attention_blocks=0)
    assert windowed.row(shown) - windowed.row(row) == 3 * (linear + 2 * 2 * 68 * 68 * 64 + merger)
    assert COST.row(shown) - COST.row(row) == 3 * (linear + 2 * 2 * 100 * 100 * 64 + merger)
    frozen = cost_model(is_tower_frozen=True)
    assert frozen.row(shown) - frozen.row(row) == linear + 2 * 2 * 100 * 100 * 64 + merger


def test_cost_of_a_clip_in_a_tower_without_windows_and_gates_by_hand(qwen2_vl_dirs: Mapping[str, Path]) -> None:
    clip = make_clip(np.random.default_rng(0), "video", 4, 10)  # 2 x 10 x 10 patches
    (row,) = text_rows([(10, [4])])
    # two blocks, each with two matrices in its MLP, and all of a frame's 100 patches attend to each other
    linear = 2 * 200 * (4 * 64 * 64 + 2 * 64 * 128) + 200 * 1176 * 64
    merger = 50 * 256 * (256 + 192)
    cost = read_cost_model(qwen2_vl_dirs["bench"])
    assert cost.row(replace(row, clips=(clip,))) - cost.row(row) == 3 * (linear + 2 * 2 * 2 * 100 * 100 * 64 + merger)


def test_cost_of_frames_with_a_class_token_and_a_narrow_projector_by_hand(internvl_dirs: Mapping[str, Path]) -> None:
    folder = internvl_dirs["bench"]
    clip = make_clip(np.random.default_rng(0), "video", 6, patch=cut_of(folder).patch)  # 6 x 4 x 4 patches
    (row,) = text_rows([(10, [4])])
    # two blocks without gates; 17 tokens of a frame attend to each other; patches of 14 x 14 pixels of one frame
    linear = 2 * 96 * (4 * 64 * 64 + 2 * 64 * 128) + 96 * 588 * 64
    projector = 24 * (256 * 192 + 192 * 192)
    cost = read_cost_model(folder)
    assert cost.row(replace(row, clips=(clip,))) - cost.row(row) == 3 * (linear + 2 * 2 * 6 * 17**2 * 64 + projector)


def test_every_projector_and_all_query_heads_cost(qwen3_vl_dirs: Mapping[str, Path]) -> None:
    cost = read_cost_model(qwen3_vl_dirs["tiny"])
    clip = make_clip(np.random.default_rng(0), "video", 4, 10, PatchShape(px=16))  # 2 x 10 x 10 patches
    (row,) = text_rows([(10, [1])])
    # three blocks without gates, patches of 16 x 16 pixels; three projectors
    linear = 3 * 200 * (4 * 64 * 64 + 2 * 64 * 128) + 200 * 1536 * 64
    projectors = 3 * 50 * 256 * (256 + 128)
    attention = 3 * 2 * 2 * 100 * 100 * 64
    assert cost.row(replace(row, clips=(clip,))) - cost.row(row) == 3 * (linear + attention + projectors)
    # 10 tokens, 8 x 32 numbers of queries and 2 x 32 of keys in a layer of width 128; one target
    layer = 10 * (2 * 128 * 256 + 2 * 128 * 64 + 3 * 128 * 256) + 2 * 55 * 256
    assert cost.row(row) == 3 * (3 * layer + 128 * 384)


def test_only_the_experts_that_a_token_passes_cost(
    qwen3_vl_dirs: Mapping[str, Path], qwen3_vl_moe_dirs: Mapping[str, Path]
) -> None:
    (row,) = text_rows([(10, [1])])
    dense, mixed = (read_cost_model(dirs["tiny"]).row(row) for dirs in (qwen3_vl_dirs, qwen3_vl_moe_dirs))
    # three layers of width 128: two experts of 160 and a router over 4 in the place of an MLP of 256
    assert round(mixed - dense) == 3 * 3 * 10 * (3 * 128 * (2 * 160 - 256) + 4 * 128)


def test_sizes_are_those_of_the_checkpoint(tiny_model_dir: Path) -> None:
    assert read_cost_model(tiny_model_dir) == COST
    assert read_cost_model(tiny_model_dir, ("vision_tower",)) == cost_model(is_tower_frozen=True)

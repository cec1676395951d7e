from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fixtures_learner import cost_model, make_group, make_row
from hypothesis import given
from hypothesis import strategies as st

from learner.passes import Plan, plan_passes
from learner.rows import Row

COST = cost_model()
SHAPES = st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(0, 40), min_size=1, max_size=5)), max_size=12)


def text_rows(shapes: Sequence[tuple[int, Sequence[int]]]) -> list[Row]:
    """One row for each (prompt tokens, tokens of each response)."""
    rng = np.random.default_rng(0)
    return [make_row(make_group(rng, str(i), (), sizes, num_text=prompt)) for i, (prompt, sizes) in enumerate(shapes)]


def lengths(plan: Plan) -> list[list[list[int]]]:
    return [[[row.num_tokens for row in rows] for rows in passes] for passes in plan]


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

"""Assignment of rows to ranks and passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from learner.packing.cost import CostModel
from learner.packing.rows import Row

Plan = list[list[tuple[Row, ...]]]
"""The rows that are computed together, as `[rank][pass]`."""


def plan_passes(rows: Sequence[Row], num_ranks: int, micro_batch_tokens: int, cost: CostModel) -> Plan:
    """Return the rows, spread over ranks by cost and grouped into passes of at most `micro_batch_tokens` tokens.

    Within a rank a row goes to the first pass with room for it, longest first. A row that is longer than the budget is
    split into rows of the same prompt with some of its responses each (the same `Response` objects, which identify
    their row), on any rank; a single response that does not fit has a pass of its own.
    Every rank gets the same number of passes, costliest first because ranks wait for each other at each; missing ones
    are empty. The plan is a function of the inputs.
    """
    pieces = [piece for row in rows for piece in split_row(row, micro_batch_tokens)]
    costs = [cost.row(piece) for piece in pieces]
    parts: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    for index in sorted(range(len(pieces)), key=lambda index: (-costs[index], index)):
        rank = loads.index(min(loads))
        parts[rank].append(index)
        loads[rank] += costs[index]
    plan = [_passes(part, pieces, costs, micro_batch_tokens) for part in parts]
    num_passes = max(1, *(len(passes) for passes in plan))
    return [passes + [()] * (num_passes - len(passes)) for passes in plan]


def split_row(row: Row, micro_batch_tokens: int) -> list[Row]:
    """Return the row, or if it is longer than the budget, the rows into which first-fit splits it."""
    if row.num_tokens <= micro_batch_tokens:
        return [row]
    room = micro_batch_tokens - len(row.prompt.prompt_ids)
    parts: list[list[int]] = []
    left: list[int] = []
    for index in sorted(range(len(row.responses)), key=lambda index: (-row.responses[index].num_read, index)):
        size = row.responses[index].num_read
        found = next((number for number, free in enumerate(left) if size <= free), None)
        if found is None:
            found = len(parts)
            parts.append([])
            left.append(room)
        parts[found].append(index)
        left[found] -= size
    return [replace(row, responses=tuple(row.responses[index] for index in sorted(part))) for part in parts]


def _passes(
    part: Sequence[int], pieces: Sequence[Row], costs: Sequence[float], micro_batch_tokens: int
) -> list[tuple[Row, ...]]:
    """Return one rank's rows grouped into passes, first-fit decreasing by length."""
    passes: list[list[int]] = []
    left: list[int] = []
    for index in sorted(part, key=lambda index: (-pieces[index].num_tokens, index)):
        size = pieces[index].num_tokens
        found = next((number for number, free in enumerate(left) if size <= free), None)
        if found is None:
            passes.append([index])
            left.append(micro_batch_tokens - size)
        else:
            passes[found].append(index)
            left[found] -= size
    passes.sort(key=lambda indices: -sum(costs[index] for index in indices))
    return [tuple(pieces[index] for index in indices) for indices in passes]

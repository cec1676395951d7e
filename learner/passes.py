"""Which rank computes which rows, in which passes: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence

Plan = list[list[list[int]]]
"""[rank][pass] -> indices of the rows computed together."""


def plan_passes(lengths: Sequence[int], num_ranks: int, micro_batch_tokens: int) -> Plan:
    """Rows spread over ranks by length and grouped into passes of at most `micro_batch_tokens` padded tokens.

    lengths: tokens of each row. A row that is longer than the budget has a pass of its own.
    Every rank gets the same number of passes; the missing ones are empty. Equal inputs, equal plan.
    """
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    parts: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for index in longest_first:
        rank = loads.index(min(loads))
        parts[rank].append(index)
        loads[rank] += lengths[index]
    plan = [_passes(part, lengths, micro_batch_tokens) for part in parts]
    num_passes = max(1, *(len(passes) for passes in plan))
    return [passes + [[] for _ in range(num_passes - len(passes))] for passes in plan]


def _passes(longest_first: Sequence[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    passes: list[list[int]] = []
    for index in longest_first:
        # the first row of a pass is its longest, and the others are padded to it
        if passes and (len(passes[-1]) + 1) * lengths[passes[-1][0]] <= micro_batch_tokens:
            passes[-1].append(index)
        else:
            passes.append([index])
    return passes

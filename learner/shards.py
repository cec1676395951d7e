"""Which rank computes which groups, in which passes: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from learner.rows import Response, Row
from rlsys.types import RolloutGroup, TrainBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class RankShard:
    """One rank's part of a batch.

    micro_batches: rows of each forward pass; as many passes as every other rank makes, so some may be empty.
    num_loss_tokens: of the whole batch, over all ranks.
    """

    objective: Literal["grpo", "nll"]
    micro_batches: tuple[tuple[Row, ...], ...]
    num_loss_tokens: int


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


def split_batch(batch: TrainBatch, num_ranks: int, micro_batch_tokens: int) -> list[RankShard]:
    """The batch's trained rollouts, one shard per rank.

    Rollouts outside the loss are not computed at all. Raises ValueError where nothing is left, and
    where `num_loss_tokens` is not the number of trained tokens: the loss would be scaled wrongly.
    """
    rows = [
        row
        for group, advantages, is_trained in zip(batch.groups, batch.advantages, batch.is_trained, strict=True)
        if (row := group_row(group, advantages, is_trained)).num_targets
    ]
    num_tokens = sum(row.num_targets for row in rows)
    if num_tokens != batch.num_loss_tokens:
        raise ValueError(
            f"num_loss_tokens={batch.num_loss_tokens}, but the trained rollouts have {num_tokens} tokens; "
            "it must be their sum."
        )
    if num_tokens == 0:
        raise ValueError(f"none of the batch's {len(batch.groups)} groups has a trained token; leave the update out.")
    plan = plan_passes([row.num_tokens for row in rows], num_ranks, micro_batch_tokens)
    return [
        RankShard(
            objective=batch.objective,
            micro_batches=tuple(tuple(rows[index] for index in indices) for indices in passes),
            num_loss_tokens=num_tokens,
        )
        for passes in plan
    ]


def group_row(group: RolloutGroup, advantages: np.ndarray, is_trained: np.ndarray) -> Row:
    """The group's trained rollouts behind their prompt."""
    responses = tuple(
        Response(ids=rollout.response_ids, sampler_logprobs=rollout.response_logprobs, advantage=float(advantage))
        for rollout, advantage, trained in zip(group.rollouts, advantages, is_trained, strict=True)
        if trained
    )
    return Row(prompt_id=group.item.prompt_id, prompt=group.prompt, clips=group.clips, responses=responses)

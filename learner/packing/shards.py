"""Each rank's share of a batch in one optimiser update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from learner.packing.cost import CostModel
from learner.packing.passes import plan_passes
from learner.packing.rows import Response, Row
from rlsys.types import RolloutGroup, TrainBatch

LossMean = Literal["token", "sequence", "constant"]
OldLogprobs = Sequence[Sequence[np.ndarray]]


@dataclass(frozen=True, kw_only=True, eq=False)
class RankShard:
    """One rank's share of an update.

    micro_batches: rows of each forward pass; all ranks make the same number of passes, so some may be empty.
    ends_batch: whether it is the batch's last update, after which the learning rate changes.
    """

    objective: Literal["grpo", "nll"]
    micro_batches: tuple[tuple[Row, ...], ...]
    ends_batch: bool = True


def split_batch(
    batch: TrainBatch,
    num_ranks: int,
    micro_batch_tokens: int,
    cost: CostModel,
    *,
    loss_mean: LossMean = "token",
    max_tokens: int = 0,
    old_logprobs: OldLogprobs | None = None,
) -> list[RankShard]:
    """Return the batch's trained rollouts as one shard per rank; rollouts outside the loss are not computed.

    loss_mean, max_tokens: see `weighted`.  old_logprobs: see `Response`, as `[group][sample]`.
    Raises ValueError if the batch has no trained rollout.
    """
    olds = [None] * len(batch.groups) if old_logprobs is None else old_logprobs
    rows = [
        row
        for group, advantages, is_trained, old in zip(
            batch.groups, batch.advantages, batch.is_trained, olds, strict=True
        )
        if (row := group_row(group, advantages, is_trained, old)).num_targets
    ]
    if not rows:
        raise ValueError(f"none of the batch's {len(batch.groups)} groups has a trained token; skip the update.")
    plan = plan_passes(weighted(rows, loss_mean, max_tokens), num_ranks, micro_batch_tokens, cost)
    return [RankShard(objective=batch.objective, micro_batches=tuple(passes)) for passes in plan]


def weighted(rows: Sequence[Row], loss_mean: LossMean, max_tokens: int) -> list[Row]:
    """Return the rows of one update with each response's weight in the loss.

    "token": 1 / tokens of all responses (DAPO, arXiv:2503.14476, eq. 12).  "sequence": 1 / (responses x the
    response's own tokens) (GRPO, arXiv:2402.03300, eq. 3).  "constant": 1 / (responses x max_tokens)
    (Dr. GRPO, arXiv:2503.20783).
    """
    responses = [response for row in rows for response in row.responses if len(response.ids)]
    num_tokens = sum(len(response.ids) for response in responses)

    def weight(response: Response) -> float:
        if loss_mean == "token":
            return 1.0 / num_tokens
        return 1.0 / (len(responses) * (max_tokens if loss_mean == "constant" else max(1, len(response.ids))))

    return [
        replace(row, responses=tuple(replace(response, weight=weight(response)) for response in row.responses))
        for row in rows
    ]


def group_row(
    group: RolloutGroup,
    advantages: np.ndarray,
    is_trained: np.ndarray,
    old_logprobs: Sequence[np.ndarray] | None = None,
) -> Row:
    """Return the row of a group's prompt and its trained rollouts."""
    olds = [None] * len(group.rollouts) if old_logprobs is None else old_logprobs
    responses = tuple(
        Response(
            ids=rollout.response_ids,
            sampler_logprobs=rollout.response_logprobs,
            advantage=float(advantage),
            old_logprobs=old,
        )
        for rollout, advantage, trained, old in zip(group.rollouts, advantages, is_trained, olds, strict=True)
        if trained
    )
    return Row(prompt_id=group.item.prompt_id, prompt=group.prompt, clips=group.clips, responses=responses)

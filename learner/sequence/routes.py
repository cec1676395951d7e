"""Exchange of rows between the ranks of a sequence group, with gradients that take the way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutePlan:
    """One rank's part in an exchange.

    send_index: i64, which of its rows it sends, by receiving rank.  sends, receives: number of rows to and from each
    rank.  restore: i64, the place among the received rows of each row that it wants, in the order of the items.
    """

    send_index: np.ndarray
    sends: tuple[int, ...]
    receives: tuple[int, ...]
    restore: np.ndarray


def plan_route(source: np.ndarray, place: np.ndarray, destination: np.ndarray, *, size: int, index: int) -> RoutePlan:
    """Return the part of rank `index` of `size` ranks in the exchange of N items, which all ranks know.

    source: i64 [N], the rank that has each item.  place: i64 [N], its row there; rows may be sent several times.
    destination: i64 [N], the rank that wants it. Every rank receives its items in their order.
    """
    leaving, arriving = np.flatnonzero(source == index), np.flatnonzero(destination == index)
    by_destination = leaving[np.argsort(destination[leaving], kind="stable")]
    by_source = np.argsort(source[arriving], kind="stable")
    restore = np.empty(len(arriving), np.int64)
    restore[by_source] = np.arange(len(arriving))
    return RoutePlan(
        send_index=place[by_destination].astype(np.int64),
        sends=tuple(np.bincount(destination[leaving], minlength=size).tolist()),
        receives=tuple(np.bincount(source[arriving], minlength=size).tolist()),
        restore=restore,
    )


class Route:
    """An exchange of rows as a function of this rank's rows [n, width] to the rows that it wants [m, width].

    All ranks of the group must call it together, forward and backward.
    """

    def __init__(self, plan: RoutePlan, group: dist.ProcessGroup, device: torch.device) -> None:
        self._plan, self._group = plan, group
        self._send_index, self._restore = (
            torch.from_numpy(index).to(device) for index in (plan.send_index, plan.restore)
        )

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the wanted rows."""
        sent = rows.index_select(0, self._send_index)
        received = _Exchanged.apply(sent, self._plan.sends, self._plan.receives, self._group)
        return received.index_select(0, self._restore)


class _Exchanged(torch.autograd.Function):
    """All-to-all of rows; torch's own with gradients is deprecated."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        rows: torch.Tensor,
        sends: tuple[int, ...],
        receives: tuple[int, ...],
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        ctx.sends, ctx.receives, ctx.group = sends, receives, group
        return _exchanged(rows, sends, receives, group)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        return _exchanged(gradient, ctx.receives, ctx.sends, ctx.group), None, None, None


def _exchanged(
    rows: torch.Tensor, sends: tuple[int, ...], receives: tuple[int, ...], group: dist.ProcessGroup
) -> torch.Tensor:
    found = rows.new_empty((sum(receives), *rows.shape[1:]))
    dist.all_to_all_single(found, rows.contiguous(), list(receives), list(sends), group=group)
    return found


class Gathered(torch.autograd.Function):
    """The values of all ranks, f32 [size x n] of [n] each, in the order of the ranks.

    Every rank computes the same loss from them, so the gradient of a rank's own values is its slice, with no exchange.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, values: torch.Tensor, group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.start, ctx.size = dist.get_rank(group) * len(values), len(values)
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, values.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient[ctx.start : ctx.start + ctx.size], None

"""Agreement of ranks on problems, because a rank that raised alone would leave the others waiting in a collective."""

from __future__ import annotations

import torch
import torch.distributed as dist


def united(found: tuple[str, ...], device: torch.device) -> tuple[str, ...]:
    """Return on every rank the union of what all ranks found, sorted.

    This is a collective call. It transfers one number per rank if no rank found anything.
    """
    flag = torch.tensor([len(found)], dtype=torch.int64, device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if not flag.item():
        return ()
    gathered: list[tuple[str, ...]] = [()] * dist.get_world_size()
    dist.all_gather_object(gathered, found)
    return tuple(sorted({one for part in gathered for one in part}))

"""Checksums of parameters that ZeRO-3 divides among the ranks, without gathering them.

DeepSpeed gives rank r the r-th of equal parts of a parameter's numbers, the last ones padded. A tensor's checksum is
the sum of those of its parts at their places (`rlsys.weights.checksum`), so each rank reads only its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from learner.weights.weights_out import ExportedTensor, names_of
from rlsys.weights.checksum import Sums
from rlsys.weights.manifest import TensorEntry
from rlsys.weights.tensors import all_sums

OTHERWISE_GATHERED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "mics_shard_size")
"""Settings of DeepSpeed with which gathered numbers are not those of the parts, or a part is on several ranks."""


def have_sums(settings: Mapping[str, Any]) -> bool:
    """Return whether the parts' checksums add up. settings: `learner.deepspeed`."""
    return not any(settings.get("zero_optimization", {}).get(key) for key in OTHERWISE_GATHERED)


def identified_by_parts(exported: Mapping[str, ExportedTensor]) -> dict[str, TensorEntry]:
    """Return the manifest of tensors that are parameters, on every rank; every rank must call it."""
    tensors = list(names_of(exported))
    parts, starts = zip(*(_own_part(tensor.parameters[0]) for tensor in tensors), strict=True)
    own = [(sums.first, sums.second) for sums in all_sums(parts, starts)]
    ranks: list[list[tuple[int, int]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, own)
    totals = {
        tensor: sum((Sums(*sums) for sums in by_rank), Sums())
        for tensor, by_rank in zip(tensors, zip(*ranks, strict=True), strict=True)
    }
    return {name: TensorEntry(spec=tensor.spec, checksum=totals[tensor].hex) for name, tensor in exported.items()}


def _own_part(parameter: nn.Parameter) -> tuple[torch.Tensor, int]:
    """Return the numbers of this rank, without padding, and the place of their first byte."""
    part: torch.Tensor = parameter.ds_tensor.detach().view(-1)
    start = min(dist.get_rank() * part.numel(), parameter.ds_numel)
    return part[: parameter.ds_numel - start], start * part.element_size()

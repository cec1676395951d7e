"""Sums of workers' parts: they add up to the whole tensor's checksum, and only the right parts do."""

from __future__ import annotations

import pytest
import torch

from actors.weights import placed
from actors.weights.held import HeldPart, Shard
from actors.weights.placed import PlacedSums, are_whole, placed_sums
from rlsys.weights.manifest import TensorEntry, entry_of
from rlsys.weights.tensors import as_named


def sums_of_workers(
    tensor: torch.Tensor, dim: int, workers: list[list[tuple[int, int]]], spoiled: int | None = None
) -> tuple[list[PlacedSums], TensorEntry]:
    """Return what each worker answers that holds these pieces. spoiled: the worker with one wrong number."""
    entry, found = entry_of(as_named(tensor)), []
    for index, pieces in enumerate(workers):
        shard = Shard(dim=dim, pieces=tuple(pieces), is_whole=False)
        value = shard.of(tensor).clone()
        if index == spoiled:
            value.view(-1)[-1] += 1
        part = HeldPart(name="w", layer=torch.nn.Module(), shard=shard, value=value, unpacked=None)
        found.append(placed_sums(part, entry))
    return found, entry


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "dim", "workers"),
    [
        ((10, 3), 0, [[(0, 6)], [(6, 4)]]),
        ((7,), 0, [[(0, 4)], [(4, 3)]]),
        ((100, 3), 0, [[(0, 64)], [(64, 36)], [(100, 0)]]),  # rows of a vocabulary, with padding behind them
        ((5, 9), 1, [[(0, 5)], [(5, 4)]]),
        ((4, 6, 5), 1, [[(0, 3)], [(3, 3)]]),  # experts
        ((4, 6, 5), 2, [[(0, 2)], [(2, 3)]]),
        ((12, 3), 0, [[(0, 2), (8, 2)], [(2, 2), (8, 2)], [(4, 2), (10, 2)], [(6, 2), (10, 2)]]),  # shared heads
    ],
)
def test_parts_add_up_to_the_whole_and_one_wrong_number_is_found(
    shape: tuple[int, ...],
    dim: int,
    workers: list[list[tuple[int, int]]],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placed, "_BYTES", 64)  # several blocks of columns
    tensor = torch.randn(shape).to(dtype)
    assert are_whole(*sums_of_workers(tensor, dim, workers)) is True
    for spoiled, pieces in enumerate(workers):
        if any(size for _, size in pieces):
            assert are_whole(*sums_of_workers(tensor, dim, workers, spoiled)) is False


def test_parts_with_a_gap_or_an_overlap_say_nothing() -> None:
    tensor = torch.randn(8, 3)
    found, entry = sums_of_workers(tensor, 0, [[(0, 4)], [(4, 4)]])
    assert are_whole(found, entry) is True
    assert are_whole(found[1:], entry) is None
    assert are_whole(found[:1], entry) is False
    assert are_whole([*found, {}], entry) is None, "a worker that cannot read its part"
    overlapping, entry = sums_of_workers(tensor, 0, [[(0, 5)], [(4, 4)]])
    assert are_whole(overlapping, entry) is None


def test_what_is_not_in_the_tensors_dtype_has_no_sums() -> None:
    tensor = torch.randn(8, 3)
    shard = Shard(dim=0, pieces=((0, 4),), is_whole=False)
    entry = entry_of(as_named(tensor.bfloat16()))
    for value, unpacked in ((tensor[:4], None), (None, tensor[:4]), (tensor[:4].bfloat16(), tensor[:4])):
        part = HeldPart(name="w", layer=torch.nn.Module(), shard=shard, value=value, unpacked=unpacked)
        assert placed_sums(part, entry) == {}

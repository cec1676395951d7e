"""Deltas: exact for every bit pattern, never longer than what they replace, and refused where they do not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlsys.weights.broadcast import to_send
from rlsys.weights.delta import INDEX, VALUE, apply, carriers, changed_numbers, encode, num_bytes, num_numbers
from rlsys.weights.manifest import Bucket, Delta, NamedTensor, manifest_of
from rlsys.weights.tensors import as_named, as_tensor
from tests.support.transfers import named

RNG = np.random.default_rng(0)


def bfloat(size: int) -> torch.Tensor:
    return torch.from_numpy(RNG.standard_normal(size).astype(np.float32)).bfloat16()


def copy(tensor: NamedTensor) -> NamedTensor:
    return NamedTensor(spec=tensor.spec, data=tensor.data.copy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.4, 1.0])
def test_a_delta_makes_the_new_tensor_bit_for_bit(dtype: torch.dtype, share: float) -> None:
    old = bfloat(20_003).to(dtype)
    new = old.clone()
    where = torch.from_numpy(RNG.random(20_003) < share)
    new[where] *= -1.5
    before, after = {"w": as_named(old)}, {"w": as_named(new)}
    pieces, num_changed = encode(after, before)
    assert num_changed == int((old != new).sum())
    assert num_bytes(pieces) <= after["w"].spec.num_bytes
    made = apply(copy(before["w"]), pieces, "w")
    assert manifest_of({"w": made}) == manifest_of(after)


def test_values_that_are_equal_but_not_in_their_bits_are_sent() -> None:
    old = np.zeros(64, np.float32)
    new = old.copy()
    new[5] = -0.0
    new[9] = np.nan
    pieces, num_changed = encode({"w": named(new)}, {"w": named(old)})
    assert num_changed == 2
    assert pieces["w" + INDEX].data.view(np.int32).tolist() == [5, 9]
    assert manifest_of({"w": apply(named(old), pieces, "w")}) == manifest_of({"w": named(new)})
    # a NaN that stays is not sent again
    assert changed_numbers(named(new), named(new.copy())).size == 0


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2)])
def test_tensors_of_one_number_and_of_none_are_sent_too(shape: tuple[int, ...]) -> None:
    old, new = torch.zeros(shape), torch.full(shape, -0.0)
    pieces, num_changed = encode({"w": as_named(new)}, {"w": as_named(old)})
    assert (num_changed, num_bytes(pieces)) == (new.numel(), 4 * new.numel())
    found = as_tensor(as_named(new))
    assert found.shape == shape
    assert torch.equal(found, new)
    assert found.signbit().all()


def test_few_changes_are_pairs_many_the_whole_and_none_nothing() -> None:
    old = {name: named(np.zeros(300, np.float32)) for name in ("few", "many", "none")}
    new = {name: copy(tensor) for name, tensor in old.items()}
    new["few"].data.view(np.float32)[[7, 299]] = 1.0
    new["many"].data.view(np.float32)[:150] = 1.0  # pairs would take as much as the tensor
    pieces, num_changed = encode(new, old)
    assert list(pieces) == ["few" + INDEX, "few" + VALUE, "many"]
    assert (num_changed, num_bytes(pieces), num_numbers(new)) == (152, 2 * 8 + 1200, 900)


def test_a_tensor_with_two_names_is_sent_once_and_changes_under_both() -> None:
    old, new = named(np.zeros(50, np.float32)), named(np.zeros(50, np.float32))
    new.data.view(np.float32)[3] = 2.0
    pieces, num_changed = encode({"a": new, "b": new}, {"a": old, "b": old})
    assert (sorted(pieces), num_changed) == (["a" + INDEX, "a" + VALUE], 1)
    before, after = manifest_of({"a": old, "b": old}), manifest_of({"a": new, "b": new})
    sent = Bucket(names=tuple(pieces), num_bytes=8, stored=None)
    delta = Delta(base=before, entries=after, bucket=sent, manifest=manifest_of(pieces))
    assert carriers(delta) == {"a": "a", "b": "a"}


def test_a_position_outside_the_tensor_is_an_error() -> None:
    old, new = named(np.zeros(50, np.float32)), named(np.ones(50, np.float32))
    new.data.view(np.float32)[:49] = 0
    pieces, _ = encode({"w": new}, {"w": old})
    with pytest.raises(IndexError):
        apply(named(np.zeros(49, np.float32)), pieces, "w")


def test_a_bucket_is_broadcast_as_a_delta_if_every_receiver_that_wants_it_can_apply_that() -> None:
    assert to_send([[(0, True), (1, True)], [(1, False), (3, True)], []]) == [(0, True), (1, False), (3, True)]
    assert to_send([]) == []

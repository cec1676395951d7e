"""Manifests, digests and buckets of weights."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from rlsys.weights.checksum import sums_of
from rlsys.weights.manifest import (
    PIECE_BYTES,
    RunningDigest,
    TensorSpec,
    are_different,
    digest,
    digest_of,
    entry_of,
    manifest_of,
    plan_buckets,
)
from tests.support.transfers import named


def test_the_digest_is_that_of_the_sorted_lines_of_the_manifest() -> None:
    tensors = {"b": named(np.array([[1.0, 2.0]], np.float32)), "a": named(np.array([3], np.int8))}
    of_a, of_b = sums_of(tensors["a"].data).hex, sums_of(tensors["b"].data).hex
    lines = f"a|1|int8|{of_a}\nb|1,2|float32|{of_b}\n"
    assert digest(tensors) == f"sum128-{hashlib.sha256(lines.encode()).hexdigest()}"
    running = RunningDigest()
    for name in ("b", "a"):
        running.add(name, tensors[name])
    assert running.hexdigest() == digest(tensors)
    with pytest.raises(ValueError, match="a was added twice"):
        running.add("a", tensors["a"])


def test_a_new_digest_reads_only_changed_tensors() -> None:
    before = {name: named(np.full(4, value, np.float32)) for value, name in enumerate("abc")}
    after = {**before, "b": named(np.full(4, 9, np.float32))}
    assert digest_of({**manifest_of(before), "b": entry_of(after["b"])}) == digest(after) != digest(before)


def test_name_shape_dtype_and_bytes_each_change_the_digest() -> None:
    array = np.zeros((2, 3), np.float32)
    others = [{"y": named(array)}, {"x": named(array.T)}, {"x": named(array.view(np.int32))}, {"x": named(array + 1)}]
    assert len({digest({"x": named(array)}), *map(digest, others)}) == 5


def test_several_threads_give_the_same_digest() -> None:
    rng = np.random.default_rng(0)
    tensors = {str(index): named(rng.standard_normal((1 << 18) + 1)) for index in range(3)}
    tensors["large"] = named(rng.integers(0, 256, PIECE_BYTES + 5, dtype=np.uint8))
    tensors["empty"] = named(np.zeros(0, np.float32))
    tensors["again"] = tensors["0"]
    found = manifest_of(tensors, threads=4)
    assert found == manifest_of(tensors, threads=1)
    assert found == {name: entry_of(tensor) for name, tensor in tensors.items()}


def test_digests_of_another_scheme_say_nothing() -> None:
    one, other = digest({"x": named(np.zeros(1))}), digest({"x": named(np.ones(1))})
    assert are_different(one, other)
    assert not are_different(one, one)
    assert not are_different(one, "")
    assert not are_different(one, "9f" * 32)  # as rlsys 0.1 wrote them
    assert are_different("9e" * 32, "9f" * 32)


def test_buckets_are_filled_in_order_and_a_large_tensor_goes_alone() -> None:
    assert plan_buckets({"a": 3, "b": 4, "c": 3, "d": 20, "e": 1}, 7) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert plan_buckets({}, 7) == []


def test_sizes_of_specs() -> None:
    assert TensorSpec(shape=(3, 5), dtype="bfloat16").num_bytes == 30
    assert TensorSpec(shape=(), dtype="float32").num_bytes == 4

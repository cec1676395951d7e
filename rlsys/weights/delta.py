"""Deltas: what changed in a bucket since the version before, as an ordinary bucket of named tensors.

A tensor of which few numbers changed is sent as two: their positions (i32, C order) and their new values, bit for bit.
One of which many changed is sent whole, one of which none changed not at all. A receiver applies a delta to tensors
that it knows to be the base's, and checks the result against the version's manifest like whole tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rlsys.weights.manifest import Bucket, Delta, Manifest, NamedTensor, NamedTensors, TensorSpec

INDEX, VALUE = "#index", "#value"
"""Suffixes of the names under which positions and values of a tensor's changed numbers are sent."""
INDEX_BYTES = 4
MAX_INDEX = (1 << 31) - 1
_CHUNK = 1 << 20  # numbers that are compared at a time


def changed_numbers(new: NamedTensor, old: NamedTensor) -> np.ndarray:
    """Return the positions of the numbers whose bits differ, i64 [changed]. Both tensors have the same spec."""
    one, other = _words(new), _words(old)
    found = [
        np.flatnonzero(one[start : start + _CHUNK] != other[start : start + _CHUNK]) + start
        for start in range(0, one.size, _CHUNK)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def encode(new: NamedTensors, old: NamedTensors) -> tuple[dict[str, NamedTensor], int]:
    """Return the pieces that turn `old` into `new`, by name, and how many numbers changed.

    Both have the same names and specs. Of a tensor with several names the first one carries the pieces.
    """
    pieces: dict[str, NamedTensor] = {}
    num_changed = 0
    for name, tensor in _distinct(new).items():
        index = changed_numbers(tensor, old[name])
        num_changed += index.size
        width = _width(tensor.spec)
        if not index.size:
            continue
        if index.size * (INDEX_BYTES + width) >= tensor.spec.num_bytes or math.prod(tensor.spec.shape) > MAX_INDEX:
            pieces[name] = tensor
            continue
        where, values = index.astype(np.int32), _words(tensor)[index]
        of_index = TensorSpec(shape=index.shape, dtype="int32")
        pieces[name + INDEX] = NamedTensor(spec=of_index, data=where.view(np.uint8))
        pieces[name + VALUE] = NamedTensor(spec=replace(of_index, dtype=tensor.spec.dtype), data=values.view(np.uint8))
    return pieces, num_changed


def apply(base: NamedTensor, pieces: NamedTensors, name: str) -> NamedTensor:
    """Return the tensor that the pieces make of `base`, whose own bytes are changed unless a whole tensor came.

    Raises IndexError for a position outside the tensor.
    """
    if name in pieces:
        return pieces[name]
    if name + INDEX in pieces:
        _words(base)[pieces[name + INDEX].data.view(np.int32)] = _words(pieces[name + VALUE])
    return base


def carriers(delta: Delta) -> Mapping[str, str]:
    """Return for each name of the bucket the name that carries its tensor: of equal entries the first."""
    first: dict[object, str] = {}
    return {name: first.setdefault(delta.entries[name], name) for name in delta.entries}


def num_bytes(tensors: NamedTensors) -> int:
    """Return the size of distinct tensors in bytes."""
    return sum(tensor.spec.num_bytes for tensor in _distinct(tensors).values())


def num_numbers(tensors: NamedTensors) -> int:
    """Return how many numbers distinct tensors have."""
    return sum(math.prod(tensor.spec.shape) for tensor in _distinct(tensors).values())


def as_sent(bucket: Bucket, *, as_delta: bool) -> Bucket:
    """Return what is sent of a bucket: itself or its delta. Raises ValueError if it has none."""
    if not as_delta:
        return bucket
    if bucket.delta is None:
        raise ValueError(f"the bucket of {bucket.names[0]} has no delta; it can only be sent whole.")
    return bucket.delta.bucket


def with_pieces(manifest: Manifest, buckets: tuple[Bucket, ...]) -> Manifest:
    """Return a version's manifest together with those of all deltas; names of pieces are no tensor's."""
    found = dict(manifest)
    for bucket in buckets:
        if bucket.delta is not None:
            found |= bucket.delta.manifest
    return found


def _distinct(tensors: NamedTensors) -> dict[str, NamedTensor]:
    first = {id(tensor): name for name, tensor in reversed(list(tensors.items()))}
    return {name: tensors[name] for name in tensors if first[id(tensors[name])] == name}


def _width(spec: TensorSpec) -> int:
    return spec.num_bytes // max(1, math.prod(spec.shape))


def _words(tensor: NamedTensor) -> np.ndarray:
    """Return a tensor's numbers as integers of their width, whose bits are compared: a NaN may be equal."""
    width = _width(tensor.spec) or 1
    return tensor.data.view(f"u{width}")

"""Weights as named bytes: the one form in which they are compared, shipped and named.

Everything is numpy, because bfloat16 has no numpy dtype a tensor travels as its
raw bytes with its dtype's name beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Shape and dtype name ("float32", "bfloat16", ...) of one tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedTensor:
    """A tensor as raw bytes: data is u8 [num_bytes], C order."""

    spec: TensorSpec
    data: np.ndarray


class RunningDigest:
    """`digest` of tensors that come one at a time, in the order of their names."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._last = ""

    def add(self, name: str, tensor: NamedTensor) -> None:
        """Take in one tensor. Raises ValueError where its name does not come after the one before."""
        if name <= self._last:
            raise ValueError(f"{name} after {self._last}: tensors are digested in the order of their names.")
        self._last = name
        spec = tensor.spec
        self._sha.update(f"{name}|{','.join(map(str, spec.shape))}|{spec.dtype}|".encode())
        self._sha.update(np.ascontiguousarray(tensor.data).data)

    def hexdigest(self) -> str:
        """Of everything that was added."""
        return self._sha.hexdigest()


def digest(tensors: Mapping[str, NamedTensor]) -> str:
    """SHA-256 (hex) over names, shapes, dtypes and bytes, in the order of the names."""
    running = RunningDigest()
    for name in sorted(tensors):
        running.add(name, tensors[name])
    return running.hexdigest()


def differences(expected: Mapping[str, TensorSpec], got: Mapping[str, TensorSpec]) -> list[str]:
    """One line for each name, shape or dtype in which `got` departs from `expected`; [] when none."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - got.keys())]
    lines += [f"{name}: not a weight of this model" for name in sorted(got.keys() - expected.keys())]
    for name in sorted(expected.keys() & got.keys()):
        want, have = expected[name], got[name]
        if want != have:
            lines.append(f"{name}: expected {want.dtype}{list(want.shape)}, got {have.dtype}{list(have.shape)}")
    return lines

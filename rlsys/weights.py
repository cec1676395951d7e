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


def digest(tensors: Mapping[str, NamedTensor]) -> str:
    """SHA-256 (hex) over names, shapes, dtypes and bytes, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        spec = tensors[name].spec
        sha.update(f"{name}|{','.join(map(str, spec.shape))}|{spec.dtype}|".encode())
        sha.update(np.ascontiguousarray(tensors[name].data).data)
    return sha.hexdigest()


def differences(expected: Mapping[str, TensorSpec], got: Mapping[str, TensorSpec]) -> list[str]:
    """One line for each name, shape or dtype in which `got` departs from `expected`; [] when none."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - got.keys())]
    lines += [f"{name}: not a weight of this model" for name in sorted(got.keys() - expected.keys())]
    for name in sorted(expected.keys() & got.keys()):
        want, have = expected[name], got[name]
        if want != have:
            lines.append(f"{name}: expected {want.dtype}{list(want.shape)}, got {have.dtype}{list(have.shape)}")
    return lines

"""Tensors in a file of shared memory, which every worker process of an engine reads in place.

The bytes are copied once, whatever the number of workers, and each worker copies its own part out of the file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from rlsys.weights.manifest import NamedTensors, TensorSpec

FOLDERS = ("/dev/shm", tempfile.gettempdir())
"""Where the file goes: the first folder with room for it."""
_ALIGNMENT = 64  # bytes


@dataclass(frozen=True, kw_only=True)
class SharedTensors:
    """Tensors in one file. layout: name, spec and first byte of each; two names may share their bytes."""

    path: str
    num_bytes: int
    layout: tuple[tuple[str, TensorSpec, int], ...]

    def open(self) -> dict[str, torch.Tensor]:
        """Return the tensors in place. Their memory stays as long as one of them does, also without the file."""
        data = torch.from_file(self.path, shared=True, size=self.num_bytes, dtype=torch.uint8)
        return {
            name: data[start : start + spec.num_bytes].view(getattr(torch, spec.dtype)).view(spec.shape)
            for name, spec, start in self.layout
        }


@contextmanager
def shared(tensors: NamedTensors) -> Iterator[SharedTensors]:
    """Copy tensors into shared memory; the file is gone after the block. Raises OSError if there is no room."""
    starts: dict[int, int] = {}
    layout, end = [], 0
    for name, tensor in tensors.items():
        if id(tensor) not in starts:
            starts[id(tensor)], end = end, end + -(-tensor.spec.num_bytes // _ALIGNMENT) * _ALIGNMENT
        layout.append((name, tensor.spec, starts[id(tensor)]))
    path = _reserve(max(end, 1))
    try:
        memory = np.memmap(path, np.uint8, "r+")
        for (_, spec, start), tensor in zip(layout, tensors.values(), strict=True):
            memory[start : start + spec.num_bytes] = tensor.data
        del memory
        yield SharedTensors(path=path, num_bytes=end, layout=tuple(layout))
    finally:
        os.unlink(path)


def _reserve(num_bytes: int) -> str:
    """Return the path of a new file of that size. The space is taken now: without it a later write kills a process."""
    for folder in FOLDERS:
        handle, path = tempfile.mkstemp(prefix="rlsys-weights-", dir=folder if os.path.isdir(folder) else None)
        try:
            os.posix_fallocate(handle, 0, num_bytes)
        except OSError:
            os.unlink(path)
            if folder == FOLDERS[-1]:
                raise
        else:
            return path
        finally:
            os.close(handle)
    raise AssertionError("unreachable: the last folder returns or raises")

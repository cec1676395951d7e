"""Tensors in shared memory, which every worker process of an engine reads in place.

The bytes are copied once, whatever the number of workers, and each worker copies its own part out of them. The memory
belongs to a file without a name: /dev/shm, often 64 MiB in a container, does not limit it, and nothing is left behind
by a process that is killed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from rlsys.weights.manifest import NamedTensors, TensorSpec

_ALIGNMENT = 64  # bytes


@dataclass(frozen=True, kw_only=True)
class SharedTensors:
    """Tensors in one file. layout: name, spec and first byte of each; two names may share their bytes.

    path: leads to the file as long as the process that made it keeps it open.
    """

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
    """Copy tensors into shared memory; it cannot be opened after the block. Raises OSError if there is no room."""
    starts: dict[int, int] = {}
    layout, end = [], 0
    for name, tensor in tensors.items():
        if id(tensor) not in starts:
            starts[id(tensor)], end = end, end + -(-tensor.spec.num_bytes // _ALIGNMENT) * _ALIGNMENT
        layout.append((name, tensor.spec, starts[id(tensor)]))
    handle = os.memfd_create("rlsys-weights", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(handle, 0, max(end, 1))  # without the memory a later write would kill the process
        with mmap.mmap(handle, max(end, 1)) as memory:
            packed = np.frombuffer(memory, np.uint8)
            for (_, spec, start), tensor in zip(layout, tensors.values(), strict=True):
                packed[start : start + spec.num_bytes] = tensor.data
            del packed
        yield SharedTensors(path=f"/proc/{os.getpid()}/fd/{handle}", num_bytes=end, layout=tuple(layout))
    finally:
        os.close(handle)

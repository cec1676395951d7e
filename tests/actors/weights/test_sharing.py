"""Weights in shared memory: the same bytes in another process, and nothing left behind."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from actors.weights import sharing
from actors.weights.sharing import shared
from rlsys.weights.manifest import NamedTensor
from rlsys.weights.tensors import as_named
from tests.support.transfers import named


def tensors() -> dict[str, NamedTensor]:
    head = named(np.arange(6, dtype=np.float32).reshape(2, 3))
    return {"embedding": head, "bias": as_named(torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16)), "head": head}


def test_the_same_bytes_arrive_and_outlive_the_file() -> None:
    with shared(tensors()) as handle:
        opened = handle.open()
        assert os.path.exists(handle.path)
    assert "rlsys-weights" not in os.path.realpath(handle.path)
    assert torch.equal(opened["embedding"], torch.arange(6.0).view(2, 3))
    assert torch.equal(opened["bias"], torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16))
    assert opened["head"].data_ptr() == opened["embedding"].data_ptr(), "a tensor with two names is copied once"
    assert handle.num_bytes == 128


def test_another_process_reads_them_in_place() -> None:
    code = (
        "import pickle, sys; handle = pickle.load(sys.stdin.buffer); found = handle.open(); "
        "print(found['head'].sum().item(), sum('memfd:rlsys-weights' in line for line in open('/proc/self/maps')))"
    )
    with shared(tensors()) as handle:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, input=pickle.dumps(handle), capture_output=True, check=True)
    assert done.stdout.split() == [b"15.0", b"1"]


def test_nothing_has_a_name_that_could_be_left_behind() -> None:
    before = set(os.listdir("/dev/shm"))
    with shared(tensors()):
        assert set(os.listdir("/dev/shm")) <= before


def test_without_memory_the_error_comes_before_the_first_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sharing.os, "posix_fallocate", full)
    open_files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="No space left"), shared(tensors()):
        pass
    assert len(os.listdir("/proc/self/fd")) == open_files

"""Weights in shared memory: the same bytes in another process, and nothing left behind."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

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
    assert not os.path.exists(handle.path)
    assert torch.equal(opened["embedding"], torch.arange(6.0).view(2, 3))
    assert torch.equal(opened["bias"], torch.tensor([1.5, -2.0, 0.25], dtype=torch.bfloat16))
    assert opened["head"].data_ptr() == opened["embedding"].data_ptr(), "a tensor with two names is copied once"
    assert handle.num_bytes == 128


def test_another_process_reads_them_in_place() -> None:
    code = (
        "import pickle, sys; handle = pickle.load(sys.stdin.buffer); found = handle.open(); "
        "print(found['head'].sum().item(), sum(handle.path in line for line in open('/proc/self/maps')))"
    )
    with shared(tensors()) as handle:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, input=pickle.dumps(handle), capture_output=True, check=True)
    assert done.stdout.split() == [b"15.0", b"1"]


def test_without_room_for_shared_memory_a_file_on_disk_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = os.posix_fallocate

    def full(handle: int, start: int, size: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").startswith("/dev/shm"):
            raise OSError(28, "No space left on device")
        reserve(handle, start, size)

    monkeypatch.setattr(sharing.os, "posix_fallocate", full)
    monkeypatch.setattr(sharing, "FOLDERS", ("/dev/shm", str(tmp_path)))
    before = set(os.listdir("/dev/shm"))
    with shared(tensors()) as handle:
        assert Path(handle.path).parent == tmp_path
        assert torch.equal(handle.open()["head"], torch.arange(6.0).view(2, 3))
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("rlsys-weights-")]
    assert not list(tmp_path.iterdir())

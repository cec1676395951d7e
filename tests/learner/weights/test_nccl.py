"""How buckets are packed for NCCL, and its deadlines; nothing here has a GPU."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from learner.weights.nccl import WHOLE_BUCKET, group_info, pack, within
from tests.support.pace import patience


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bucket_is_one_buffer_that_vllm_takes_apart(dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(3, 5).to(dtype), "b": torch.randn(7).to(dtype), "head": torch.randn(2, 2, 2).to(dtype)}
    tensors["turned"] = torch.randn(4, 6).to(dtype).T
    names = ["head", "a", "turned", "b"]  # not the order in which they lie
    sizes = [tensors[name].nbytes for name in names]
    packed = torch.full((sum(sizes),), 255, dtype=torch.uint8)
    pack(tensors, names, packed)
    # vLLM's `unpack_tensor`
    parts = [part.view(dtype).view(tensors[name].shape) for name, part in zip(names, packed.split(sizes), strict=True)]
    for name, part in zip(names, parts, strict=True):
        assert torch.equal(part, tensors[name]), name


def test_receivers_expect_one_broadcast_of_a_bucket_whatever_its_size() -> None:
    info = group_info("10.0.0.1", 4000, 6)
    assert (info["master_address"], info["master_port"], info["world_size"]) == ("10.0.0.1", 4000, 7)
    assert info["packed"] is True
    assert info["packed_buffer_size_bytes"] == WHOLE_BUCKET > 1 << 50


def test_a_group_that_does_not_come_together_ends_at_the_deadline() -> None:
    never = threading.Event()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"the engines did not connect within weights.timeout_s=0.2 s"):
        within(0.2, "the engines did not connect", lambda: never.wait(patience(600.0)))
    assert time.monotonic() - start < patience(60.0)
    never.set()


def test_what_came_in_time_is_returned_or_raised() -> None:
    assert within(patience(60.0), "late", lambda: 7) == 7

    def fail() -> None:
        raise OSError("no such interface")

    with pytest.raises(OSError, match="no such interface"):
        within(patience(60.0), "late", fail)

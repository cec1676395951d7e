"""Which buckets go GPU to GPU, and what vLLM is told of them; nothing here has a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from actors.requests import EngineSpec
from actors.weights.native import closed, take_natively, update_info
from rlsys.weights.manifest import Bucket, Shipment, manifest_of
from tests.support.actors import MAX_MODEL_LEN
from tests.support.shipments import named

ATTENTION = "model.layers.0.self_attn."


def bucket(*names: str) -> Bucket:
    return Bucket(names=names, num_bytes=1, stored=None)


def test_buckets_that_share_a_module_go_together() -> None:
    first = bucket("model.norm.weight", f"{ATTENTION}k_proj.weight")
    second = bucket(f"{ATTENTION}q_proj.weight", f"{ATTENTION}o_proj.weight")
    third = bucket(f"{ATTENTION}o_proj.bias")
    apart = bucket("model.layers.1.mlp.up_proj.weight")
    buckets = (first, second, apart, third)
    assert closed(buckets, [first]) == (first, second, third)
    assert closed(buckets, [apart]) == (apart,)
    assert closed(buckets, []) == ()


def test_vllm_is_told_names_types_and_shapes_in_order() -> None:
    manifest = manifest_of({"b": named(np.zeros((2, 3), np.float32)), "a": named(np.zeros(4, np.float16))})
    assert update_info(("b", "a"), manifest) == {
        "names": ["b", "a"],
        "dtype_names": ["float32", "float16"],
        "shapes": [[2, 3], [4]],
    }


def test_without_a_gpu_everything_comes_from_the_store() -> None:
    spec = EngineSpec(
        model_path="",
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=1,
        kv_cache_mib=1,
        threads=1,
        tensor_parallel_size=1,
        gpu_memory_utilization=0.5,
        device="cpu",
        banned_token_ids=(),
    )

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    shipment = Shipment(buckets=(), timeout_s=1.0)
    for transport in ("object_store", "collective"):
        chosen = replace(spec, weights_transport=transport)
        assert take_natively(fail, chosen, shipment, (), {}, fail) is None

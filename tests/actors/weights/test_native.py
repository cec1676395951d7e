"""The buckets that are sent GPU to GPU, and their description for vLLM, without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.requests import EngineSpec
from actors.weights.native import closed, take_natively, update_info
from rlsys.config.run import ModelConfig, RolloutConfig, WeightsConfig
from rlsys.weights.manifest import Bucket, WeightTransfer, manifest_of
from tests.support.transfers import named

ATTENTION = "model.layers.0.self_attn."


def bucket(*names: str) -> Bucket:
    return Bucket(names=names, num_bytes=1, stored=None)


def test_buckets_that_share_a_module_are_loaded_together() -> None:
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
    spec = EngineSpec(model=ModelConfig(path=Path("m")), rollout=RolloutConfig(), banned_token_ids=())

    def fail(*_: object, **__: object) -> None:
        raise AssertionError

    transfer = WeightTransfer(buckets=(), timeout_s=1.0)
    for transport in ("object_store", "collective"):
        chosen = replace(spec, weights=WeightsConfig(transport=transport))
        assert take_natively(fail, chosen, transfer, (), {}, fail) is None

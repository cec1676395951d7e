"""Our settings as DeepSpeed's JSON: a pure decision, without DeepSpeed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from learner.spec import LearnerSpec

MAX_BUCKET_NUMBERS = 500_000_000


def deepspeed_config(spec: LearnerSpec, num_numbers: int) -> dict[str, Any]:
    """DeepSpeed's JSON for the spec, `learner.deepspeed` merged in.

    num_numbers: of all trained parameters; no bucket need be larger. Keys that are in
    `rlsys.config.learner.OWNED_KEYS` are ours alone, which the config has checked; the others are
    defaults that `learner.deepspeed` may change.
    """
    bucket = max(1, min(num_numbers, MAX_BUCKET_NUMBERS))
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.train.max_grad_norm,
        "bf16": {"enabled": spec.model.dtype == "bfloat16"},
        # passes add up in float32 whatever the weights are in, or many would round each other away; not at stage 0
        "data_types": {"grad_accum_dtype": "fp32" if spec.learner.zero_stage else None},
        "zero_allow_untested_optimizer": True,
        # its own CPU Adam is C++ that it would compile at the start; torch's AdamW computes the same
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": spec.learner.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": spec.device == "cuda",
            "contiguous_gradients": True,
            **_offload(spec),
        },
        "steps_per_print": None,
    }
    return merged(ours, spec.learner.deepspeed)


def _offload(spec: LearnerSpec) -> dict[str, Any]:
    pinned = {"device": "cpu", "pin_memory": spec.device == "cuda"}
    names = {"optimizer": "offload_optimizer", "parameters": "offload_param"}
    return {names[part]: dict(pinned) for part in spec.learner.offload}


def merged(ours: Mapping[str, Any], raw: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` laid over `ours`, mapping by mapping; neither is changed."""
    result = copy.deepcopy(dict(ours))
    for key, value in raw.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result

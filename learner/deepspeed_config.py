"""Translation of the config into DeepSpeed's JSON; DeepSpeed is not imported."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from learner.spec import LearnerSpec

MAX_BUCKET_NUMBERS = 500_000_000


def deepspeed_config(spec: LearnerSpec, num_numbers: int) -> dict[str, Any]:
    """Return DeepSpeed's JSON for the spec, with `learner.deepspeed` merged in.

    num_numbers: size of all trained parameters, which bounds the buckets. The config has checked that
    `learner.deepspeed` does not set keys in `rlsys.config.learner.OWNED_KEYS`; it may change all others.
    """
    bucket = max(1, min(num_numbers, MAX_BUCKET_NUMBERS))
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.train.max_grad_norm,
        "bf16": {"enabled": spec.model.dtype == "bfloat16"},
        # gradients of passes are summed in float32, or small ones would be rounded away; not possible at stage 0
        "data_types": {"grad_accum_dtype": "fp32" if spec.learner.zero_stage else None},
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's CPU Adam is C++ that it would compile at the start; torch's AdamW computes the same
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
    """Return `ours` with the values of `raw` merged in recursively; neither is changed."""
    result = copy.deepcopy(dict(ours))
    for key, value in raw.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result

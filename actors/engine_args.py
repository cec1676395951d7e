"""The arguments from which vLLM builds an engine. vLLM is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.requests import EngineSpec
from actors.weights.native import BACKENDS

if TYPE_CHECKING:
    from vllm import EngineArgs

CPU_BATCH_TOKENS = 8192  # prompt tokens of one step: prompts that arrive together are read together
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM makes room for


def engine_args(spec: EngineSpec) -> EngineArgs:
    """vLLM's settings for an engine."""
    from vllm import EngineArgs

    common: dict[str, Any] = {
        "model": str(spec.model.path),
        "dtype": spec.model.dtype,
        "max_model_len": spec.model.max_model_len,
        "max_num_seqs": spec.rollout.max_num_seqs,
        "seed": spec.seed,
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        # frames arrive at the model's resolution and must pass the processor untouched
        "mm_processor_kwargs": {"do_resize": False, "do_sample_frames": False, "cap_pixels_per_frame": False},
        "mm_processor_cache_gb": 0,  # its hits are rare (a processed clip costs 2 ms), its memory is not
    }
    if spec.lora.rank:
        # one adapter at a time; vLLM gives an adapter to the language model alone unless configured otherwise
        room = next(rank for rank in LORA_RANKS if rank >= spec.lora.rank)
        common |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": room}
    if spec.device == "cuda":
        from vllm.config import WeightTransferConfig

        backend = BACKENDS.get(spec.weights.transport)
        executor = "mp" if spec.rollout.tensor_parallel_size > 1 else None
        return EngineArgs(
            **common,
            tensor_parallel_size=spec.rollout.tensor_parallel_size,
            gpu_memory_utilization=spec.rollout.gpu_memory_utilization,
            distributed_executor_backend=executor,
            weight_transfer_config=WeightTransferConfig(backend=backend) if backend else None,
        )
    return EngineArgs(
        **common,
        enforce_eager=True,  # 3 s to start, against 49 s
        block_size=32,  # the least that the CPU attention takes: short prompts share a prefix too
        kv_cache_memory_bytes=spec.rollout.kv_cache_mib << 20,
        # a seeded request whose prompt is read in parts fails on CPU ("CPU Generator does not use offset")
        enable_chunked_prefill=False,
        max_num_batched_tokens=max(CPU_BATCH_TOKENS, spec.model.max_model_len),
        skip_mm_profiling=True,
    )


def keep_pixels() -> None:
    """Let vLLM's workers have the pixels of every request, also where the prefix cache covers its clips.

    vLLM leaves them out there. A request that is preempted, for want of cache or for new weights, is read again from
    its beginning; where neither cache has its clip any more, the engine dies of the lack ("Expected number of
    multimodal embeddings to match number of input items").
    """
    from vllm.v1.core.sched import output

    output.strip_covered_mm_data = lambda features, num_computed_tokens, uses_mrope=False: features

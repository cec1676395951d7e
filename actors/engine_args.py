"""The arguments with which vLLM builds an engine. vLLM is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.requests import EngineSpec
from actors.weights.native import BACKENDS

if TYPE_CHECKING:
    from vllm import EngineArgs

CPU_BATCH_TOKENS = 8192  # prompt tokens of one step, enough for several prompts that arrive together
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the maximum for which vLLM reserves memory


def engine_args(spec: EngineSpec) -> EngineArgs:
    """Return vLLM's settings for an engine."""
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
        # frames arrive at the model's resolution, and the processor must not change them
        "mm_processor_kwargs": {"do_resize": False, "do_sample_frames": False, "cap_pixels_per_frame": False},
        "mm_processor_cache_gb": 0,  # rarely hit, saves 2 ms a clip, and takes memory
    }
    if spec.lora.rank:
        # one adapter at a time; by default vLLM applies an adapter only to the language model
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
        enforce_eager=True,  # starts in 3 s instead of 49 s
        block_size=32,  # the minimum of CPU attention, so that short prompts share a prefix too
        kv_cache_memory_bytes=spec.rollout.kv_cache_mib << 20,
        # a seeded request fails on CPU if its prompt is processed in parts ("CPU Generator does not use offset")
        enable_chunked_prefill=False,
        max_num_batched_tokens=max(CPU_BATCH_TOKENS, spec.model.max_model_len),
        skip_mm_profiling=True,
    )


def keep_pixels() -> None:
    """Make vLLM send its workers the pixels of every request, even if the prefix cache covers its clips.

    vLLM omits the pixels of such clips. A request that is preempted, because the cache is full or the weights change,
    is recomputed from its beginning; if neither cache has its clip by then, the engine dies ("Expected number of
    multimodal embeddings to match number of input items").
    """
    from vllm.v1.core.sched import output

    output.strip_covered_mm_data = lambda features, num_computed_tokens, uses_mrope=False: features

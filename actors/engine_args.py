"""The arguments with which vLLM builds an engine. vLLM is imported on first use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.engine_settings import SETTINGS
from actors.requests import EngineSpec
from actors.weights.native import BACKENDS
from rlsys.models.model_config import read_model_config
from rlsys.temporary import claim_folder, is_own, variables_for

if TYPE_CHECKING:
    from vllm import EngineArgs

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the maximum for which vLLM reserves memory


def engine_args(spec: EngineSpec) -> EngineArgs:
    """Return vLLM's settings for an engine."""
    from vllm import EngineArgs

    settings, keeps_states = SETTINGS[spec.device], read_model_config(spec.model.path).linear is not None
    common: dict[str, Any] = {
        "model": str(spec.model.path),
        "dtype": spec.model.dtype,
        "max_model_len": spec.model.max_model_len,
        "max_num_seqs": spec.rollout.max_num_seqs,
        "seed": spec.seed,
        "tensor_parallel_size": spec.rollout.tensor_parallel_size,
        # Ray's executor would ask for actors of its own beside this one
        "distributed_executor_backend": "mp" if spec.rollout.tensor_parallel_size > 1 else "uni",
        "logprobs_mode": "raw_logprobs",
        "enforce_eager": not settings.cuda_graphs,
        "async_scheduling": settings.async_scheduling,
        "enable_chunked_prefill": settings.chunked_prefill,
        # states are not kept for prompts that begin alike: vLLM would keep those at the ends of large blocks, and only
        # with chunked prefill
        "enable_prefix_caching": settings.prefix_cache and not keeps_states,
        "block_size": settings.block_size,
        "max_num_batched_tokens": settings.batch_tokens(
            spec.model.max_model_len, spec.largest_clip_tokens, spec.rollout.max_num_seqs
        ),
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        # frames arrive at the model's resolution, and the processor must not change them
        "mm_processor_kwargs": dict(read_model_config(spec.model.path).family.unchanged),
        "mm_processor_cache_gb": 0,  # rarely hit, saves 2 ms a clip, and takes memory
    }
    if keeps_states:
        common["mamba_ssm_cache_dtype"] = "float32"  # as the learner has them in every number format
    if spec.lora.rank:
        # one adapter at a time; by default vLLM applies an adapter only to the language model
        room = next(rank for rank in LORA_RANKS if rank >= spec.lora.rank)
        common |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": room}
    if spec.device == "cuda":
        from vllm.config import WeightTransferConfig

        backend = BACKENDS.get(spec.weights.transport)
        return EngineArgs(
            **common,
            gpu_memory_utilization=spec.rollout.gpu_memory_utilization,
            enable_sleep_mode=spec.sleeps,
            weight_transfer_config=WeightTransferConfig(backend=backend) if backend else None,
        )
    return EngineArgs(
        **common,
        kv_cache_memory_bytes=spec.rollout.kv_cache_mib << 20,
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


def own_temporary_files() -> Callable[[], None]:
    """Give this process, and those that it starts, a folder of its own for temporary files; return what removes it.

    vLLM leaves the sockets between its processes there, and files of their groups. The processes of a cluster that was
    started here have such a folder already, that of the run.
    """
    if is_own(Path(tempfile.gettempdir())):
        return lambda: None
    folder = claim_folder()
    os.environ.update(variables_for(folder.path))
    tempfile.tempdir = str(folder.path)
    return partial(folder.release, keep=False)

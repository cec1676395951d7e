"""What an engine would refuse, found before one starts."""

from __future__ import annotations

from collections.abc import Iterator

from rlsys.config.run import RunConfig
from rlsys.models.model_config import read_model_config
from rlsys.models.parallel import tensor_parallel_problem
from rlsys.models.sizes import read_model_sizes
from rlsys.planning.plan import BYTES

CPU_BLOCK_TOKENS = 32  # of the engine's cache of keys and values on CPU


def engine_problems(config: RunConfig) -> Iterator[str]:
    """Yield why no engine can start with the config's model, or hold one sequence of it."""
    if problem := tensor_parallel_problem(config.model.path, config.rollout.tensor_parallel_size):
        yield problem
    asked, most = config.evaluation, config.rollout.max_num_seqs
    if (asked.annotations or asked.sets) and asked.num_samples > most:
        yield (
            f"evaluation.num_samples={asked.num_samples} is above rollout.max_num_seqs={most}, the responses that an "
            "engine generates at once; lower the first or raise the second."
        )
    yield from _cache_problems(config)


def _cache_problems(config: RunConfig) -> Iterator[str]:
    """Yield why an engine cannot hold one sequence; its cache is counted on CPU, and for GPUs by `rlsys plan`."""
    longest = config.model.max_model_len
    if (most := read_model_config(config.model.path).longest) is not None and longest > most:
        yield (
            f"model.max_model_len={longest} is above the {most} positions of the model (max_position_embeddings in "
            f"{config.model.path / 'config.json'}), which engines refuse; lower it to {most}."
        )
    if config.cluster.device != "cpu":
        return
    sizes, width = read_model_sizes(config.model.path), BYTES[config.model.dtype]
    if sizes.linear and config.model.dtype == "bfloat16":
        yield (
            f"model.dtype=bfloat16: on a CPU engines of vLLM 0.32 return NaN for {config.model.path}, which has linear "
            "attention, until weights are sent to them; set it to float32."
        )
    needed_mib = -(-sizes.cache_bytes(longest, width, CPU_BLOCK_TOKENS) // (1 << 20))
    if needed_mib > config.rollout.kv_cache_mib:
        yield (
            f"rollout.kv_cache_mib={config.rollout.kv_cache_mib} cannot hold one sequence of model.max_model_len="
            f"{longest} tokens; raise it to {needed_mib}, or lower model.max_model_len."
        )

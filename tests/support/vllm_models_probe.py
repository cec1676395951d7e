"""What vLLM itself says of models and settings that `rlsys.runs.check_engine` judges: run as a process.

Its own process, because vLLM changes torch's threading for everything else in a process. Nothing is loaded: for several
workers, layers are built as the first of them builds its own, without memory.
argv: folders of models.  stdout's last line: {"num_built": how often vLLM agreed to several workers, "num_refused":
how often not, "num_caches": sizes of caches tried, "wrong": [where rlsys says something else, …]}.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1")

import torch  # noqa: E402
from vllm.config import VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.distributed import (  # noqa: E402
    get_tp_group,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase  # noqa: E402
from vllm.model_executor.model_loader.utils import initialize_model  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.v1.core.kv_cache_utils import get_kv_cache_configs  # noqa: E402

from actors.engine_args import engine_args  # noqa: E402
from rlsys.models.model_config import read_model_config  # noqa: E402
from rlsys.models.parallel import tensor_parallel_problem  # noqa: E402
from rlsys.models.sizes import read_model_sizes  # noqa: E402
from rlsys.planning.plan import BYTES  # noqa: E402
from rlsys.runs.check_engine import CPU_BLOCK_TOKENS  # noqa: E402
from tests.support.actors import engine_spec  # noqa: E402

WORKERS = (1, 2, 3, 4, 6, 8)
LENGTHS = (64, 65, 1000, 2048)
BUILT_ANYWAY = "in linear attention"
"""vLLM builds layers whose heads it cannot share: it divides only widths."""


def config_of(folder: Path, **changes: Any) -> VllmConfig:
    spec = engine_spec(folder)
    workers = changes.pop("workers", 1)
    return engine_args(
        replace(
            spec,
            model=spec.model.model_copy(update=changes),
            rollout=spec.rollout.model_copy(update={"tensor_parallel_size": workers}),
        )
    ).create_engine_config()


def refusal(folder: Path, workers: int) -> str:
    """Return why vLLM does not build a model for that many workers, "" if it does."""
    group = get_tp_group()
    try:
        config = config_of(folder, workers=workers)
        group.world_size = workers
        with set_current_vllm_config(config), torch.device("meta"):
            initialize_model(vllm_config=config)
    except (AssertionError, ValueError) as error:
        return str(error) or type(error).__name__
    finally:
        group.world_size = 1
    return ""


def holds_a_sequence(config: VllmConfig, num_bytes: int) -> bool:
    layers = config.compilation_config.static_forward_context.items()
    specs = {name: layer.get_kv_cache_spec(config) for name, layer in layers if isinstance(layer, AttentionLayerBase)}
    try:
        get_kv_cache_configs(config, [{name: spec for name, spec in specs.items() if spec}], [num_bytes])
    except ValueError:
        return False
    return True


def main(folders: list[Path]) -> None:
    # the group of experts' workers is made only for a model that has them
    with_experts = next(folder for folder in folders if read_model_config(folder).experts)
    with set_current_vllm_config(config_of(with_experts)):
        init_distributed_environment(1, 0, f"file://{folders[0]}.rendezvous", 0, "gloo")
        initialize_model_parallel(1, 1)
    wrong: list[str] = []
    counts = {"num_built": 0, "num_refused": 0, "num_caches": 0}
    for folder in folders:
        for workers in WORKERS:
            said, found = tensor_parallel_problem(folder, workers), refusal(folder, workers)
            counts["num_refused" if found else "num_built"] += 1
            if bool(said) != bool(found) and BUILT_ANYWAY not in (said or ""):
                wrong.append(f"{folder.name}, {workers} workers: rlsys says {said!r}, vLLM {found!r}")
        for dtype in ("float32", "bfloat16"):
            for length in LENGTHS:
                config = config_of(folder, max_model_len=length, dtype=dtype)
                config.cache_config.kv_cache_layout = "LBNHC"
                with set_current_vllm_config(config):
                    initialize_model(vllm_config=config)
                    current_platform.update_block_size_for_backend(config)
                needed = read_model_sizes(folder).cache_bytes(length, BYTES[dtype], CPU_BLOCK_TOKENS)
                counts["num_caches"] += 1
                if not holds_a_sequence(config, needed) or holds_a_sequence(config, needed - 1):
                    wrong.append(f"{folder.name}, {dtype}: {needed} bytes are not the least for {length} tokens")
    print(json.dumps({**counts, "wrong": wrong}))  # noqa: T201


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])

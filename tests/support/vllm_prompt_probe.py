"""Prompts as vLLM itself processes them; run as a process with JSON in and JSON out.

It is a process of its own, because vLLM changes torch's threading for everything else in a process.
stdin: for each model {"model", "generate": the number format to generate in or "", "unchanged": settings of its
processor, "prompts": [{"dtype", "engine_ids", "media": [{"kind", "frames", "height", "width", "metadata"}]}]}.
stdout's last line: for each model {"prompts": [{"prompt_ids", "position_ids", "next_position"}], "generated":
[[id, …], …]}.
"""

from __future__ import annotations

import json
import os
import sys
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", OMP_NUM_THREADS="1", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1"
)

import numpy as np  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.config import ModelConfig  # noqa: E402
from vllm.model_executor.models import ModelRegistry, supports_mrope  # noqa: E402
from vllm.multimodal import MULTIMODAL_REGISTRY  # noqa: E402
from vllm.multimodal.inputs import MultiModalFeatureSpec  # noqa: E402


def medium(spec: dict[str, Any]) -> Any:
    """Return random frames in the engine's form: a video with metadata, or one image."""
    frames = np.random.default_rng(0).integers(
        0, 256, (spec["frames"], spec["height"], spec["width"], 3), dtype=np.uint8
    )
    if spec["kind"] == "image":
        return frames[0]
    return frames, spec["metadata"]


def by_kind(media: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the media of each kind, in prompt order."""
    kinds = dict.fromkeys(spec["kind"] for spec in media)
    return {kind: [medium(spec) for spec in media if spec["kind"] == kind] for kind in kinds}


@cache
def processing(model: str, dtype: str, unchanged: str) -> tuple[ModelConfig, Any]:
    """Return vLLM's config and processor for a checkpoint, with the settings that the engine must have, as JSON."""
    config = ModelConfig(model=model, dtype=dtype, mm_processor_kwargs=json.loads(unchanged))
    return config, MULTIMODAL_REGISTRY.create_processor(config)


def positions(model: str, prompt: dict[str, Any], unchanged: dict[str, Any]) -> dict[str, Any]:
    """Return expanded ids and positions by vLLM's own functions; no weights are loaded."""
    config, processor = processing(model, prompt["dtype"], json.dumps(unchanged))
    if prompt["media"]:
        processed = processor(prompt["engine_ids"], processor.info.parse_mm_data(by_kind(prompt["media"])))
    else:
        processed = {"prompt_token_ids": prompt["engine_ids"], "mm_placeholders": {}, "mm_kwargs": {}}
    features = [
        MultiModalFeatureSpec(data=data, modality=kind, identifier=f"{kind}{index}", mm_position=place)
        for kind, places in processed["mm_placeholders"].items()
        for index, (data, place) in enumerate(zip(processed["mm_kwargs"][kind], places, strict=True))
    ]
    engine, _ = ModelRegistry.resolve_model_cls(config.hf_config.architectures, config)
    ids = processed["prompt_token_ids"]
    if not supports_mrope(engine):
        return {"prompt_ids": ids, "position_ids": [list(range(len(ids)))] * 3, "next_position": len(ids)}
    stub = SimpleNamespace(config=config.hf_config)
    if hasattr(engine, "iter_mm_grid_thw"):
        stub.iter_mm_grid_thw = partial(engine.iter_mm_grid_thw, stub)
    else:
        stub._get_mrope_input_positions = engine._get_mrope_input_positions
    position_ids, delta = engine.get_mrope_input_positions(stub, ids, features)
    return {"prompt_ids": ids, "position_ids": position_ids.tolist(), "next_position": len(ids) + delta}


def generated(model: str, dtype: str, prompt: dict[str, Any], unchanged: dict[str, Any]) -> list[list[int]]:
    """Return the prompt ids that the engine reports, and the ids that it sampled."""
    engine = LLM(
        model=model,
        dtype=dtype,
        max_model_len=512,
        max_num_seqs=8,
        enforce_eager=True,
        kv_cache_memory_bytes=16 << 20,
        block_size=32,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,  # which vLLM refuses without chunked prefill where layers keep states
        mm_processor_kwargs=unchanged,
    )
    request = {"prompt_token_ids": prompt["engine_ids"], "multi_modal_data": by_kind(prompt["media"])}
    output = engine.generate(request, SamplingParams(n=2, seed=1, max_tokens=8, ignore_eos=True), use_tqdm=False)[0]
    return [list(output.prompt_token_ids), *(list(sample.token_ids) for sample in output.outputs)]


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Return what vLLM makes of a model's prompts, and what it generates from the first of them."""
    unchanged = asked["unchanged"]
    prompts = [positions(asked["model"], prompt, unchanged) for prompt in asked["prompts"]]
    if not asked["generate"]:
        return {"prompts": prompts}
    found = generated(asked["model"], asked["generate"], asked["prompts"][0], unchanged)
    return {"prompts": prompts, "generated": found}


if __name__ == "__main__":
    answers = [answer(asked) for asked in json.load(sys.stdin)]
    sys.stdout.write("\n" + json.dumps(answers) + "\n")

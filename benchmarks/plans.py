"""What `rlsys plan` says of published models on 1, 8 and 64 GPUs of 80 GB: `python -m benchmarks.plans`.

For each model, number of GPUs and length of a prompt the table has the first of several ways to train, from all weights
to adapters, that the plan finds no problem with, its largest rank, and the step time at 16 prompts x 8 responses of 512
tokens. Nothing is started, and no weights are read: a plan is arithmetic on the sizes in a model's config.json, which
are written here as they are published.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from rlsys.config.run import ConfigError, RunConfig, parse
from rlsys.models.model_config import ModelConfig, read_model_config
from rlsys.planning.plan import Section, assumptions
from rlsys.planning.plan_times import Measured
from rlsys.runs.plan_inputs import plan

TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def qwen2_5_vl(hidden: int, mlp: int, layers: int, heads: tuple[int, int], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the config.json of a Qwen2.5-VL. heads: of queries, and of keys and values."""
    return {
        "model_type": "qwen2_5_vl",
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "vision_config": TOWER,
        **more,
    }


def mixture(hidden: int, layers: int, heads: tuple[int, int], inner: int) -> dict[str, Any]:
    """Return the config.json of a Qwen3-VL with 128 experts a layer of width `inner`, of which a token passes 8."""
    text = {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": 128,
        "vocab_size": 151936,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": inner,
        "norm_topk_prob": True,
    }
    tower = {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    }
    return {
        "model_type": "qwen3_vl_moe",
        "text_config": text,
        "vision_config": tower,
        "tie_word_embeddings": False,
    }


MODELS: Mapping[str, dict[str, Any]] = {
    "Qwen2.5-VL-3B": qwen2_5_vl(2048, 11008, 36, (16, 2), vocab_size=151936, tie_word_embeddings=True),
    "Qwen2.5-VL-7B": qwen2_5_vl(3584, 18944, 28, (28, 4)),
    "Qwen2.5-VL-32B": qwen2_5_vl(5120, 27648, 64, (40, 8), vision_config={**TOWER, "intermediate_size": 3456}),
    "Qwen2.5-VL-72B": qwen2_5_vl(8192, 29568, 80, (64, 8), vision_config={**TOWER, "intermediate_size": 3456}),
    "Qwen3-VL-30B-A3B": mixture(2048, 48, (32, 4), 768),
}
NUM_GPUS = (1, 8, 64)
VISUAL_TOKENS = {"8k": (7168, 112), "64k": (57600, 768)}
"""By length of a prompt: visual tokens, and frames of the longest clip."""
TEXT_TOKENS, RESPONSE_TOKENS = 256, 1024
STAMP_TOKENS = 11
"""Of a time stamp before a temporal patch, such as <1234.5 seconds>, and of the tokens around the patch."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Targets of adapters where the other layers are experts."""
WAYS: Mapping[str, dict[str, Any]] = {
    "all weights": {},
    "all weights, optimiser in host memory": {"offload": ["optimizer"]},
    "LoRA, rank 64": {"lora": {"rank": 64}},
}
PARTS = (1, 2, 4, 8)
"""GPUs of an engine, and ranks that compute a pass together."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A way to train that fits. sections: its plan."""

    way: str
    config: RunConfig
    sections: tuple[Section, ...]

    def value(self, title: str, line: str) -> str:
        """Return a line of the section whose title has `title`."""
        (section,) = [one for one in self.sections if title in one.title]
        return next(one.value for one in section.lines if one.name.startswith(line))

    def row(self) -> str:
        """Return the cells: way, ranks, engines, memory of a rank, seconds of a step."""
        learner, rollout = self.config.learner, self.config.rollout
        together = f", {learner.sequence_parallel} a pass" if learner.sequence_parallel > 1 else ""
        gpus = f" of {rollout.tensor_parallel_size} GPUs" if rollout.tensor_parallel_size > 1 else ""
        shared = " on the same GPU" if self.config.cluster.colocate else ""
        memory = self.value(" ranks", "total on the device")
        step = self.value("time of a step", "step at max_lag=0")
        return f"{self.way} | {learner.num_ranks}{together} | {rollout.num_actors}{gpus}{shared} | {memory} | {step}"


def text_tokens(model: ModelConfig, length: str) -> int:
    """Return the text tokens of a prompt, with the time stamps of the longest clip."""
    num_patches = VISUAL_TOKENS[length][1] // model.vision.temporal_patch_size
    return TEXT_TOKENS + (STAMP_TOKENS * num_patches if model.family.stamp else 0)


def configs(folder: Path, num_gpus: int, length: str, way: str) -> Iterator[RunConfig]:
    """Yield the configs of a way to train, those with the least communication first."""
    shares, (visual, max_frames), model = num_gpus == 1, VISUAL_TOKENS[length], read_model_config(folder)
    longest, token_pixels = visual + text_tokens(model, length) + RESPONSE_TOKENS, (2 * model.vision.patch_size) ** 2
    for together, engine in product(PARTS, PARTS):
        ranks = num_gpus if shares else num_gpus // 2
        if together > ranks or engine > ranks:
            continue
        learner = {
            "num_ranks": ranks,
            "zero_stage": 3 if ranks > 1 else 2,
            "sequence_parallel": together,
            "gradient_checkpointing": True,
            "micro_batch_tokens": longest + 8 * RESPONSE_TOKENS,
            **WAYS[way],
        }
        if "lora" in learner and model.experts:
            learner["lora"] = {**learner["lora"], "targets": list(ATTENTION)}
        tree = {
            "output_dir": str(folder / "out"),
            "model": {"path": str(folder), "max_model_len": longest, "attention": "flex_attention"},
            "data": {
                "max_frames": max_frames,
                "min_pixels": 128 * token_pixels,
                "total_pixels": 2 * visual * token_pixels,
            },
            "rollout": {
                "num_actors": ranks // engine,
                "tensor_parallel_size": engine,
                "max_tokens": RESPONSE_TOKENS,
                "gpu_memory_utilization": 0.85,
            },
            "train": {"prompts_per_step": 16},
            "algorithm": {"kl_coef": 0.04},
            "learner": learner,
            "cluster": {"device": "cuda", "colocate": shares, "object_store_mib": 65536},
        }
        try:
            yield parse(tree, source="benchmarks.plans")
        except ConfigError:  # such as an engine of several GPUs on a shared one
            continue


def first_that_fits(folder: Path, num_gpus: int, length: str) -> Found | str:
    """Return the first way that the plan finds no problem with, or what it says of the last one."""
    problem = ""
    for way in WAYS:
        for config in configs(folder, num_gpus, length, way):
            given = assumptions("cuda", (f"text_tokens={text_tokens(read_model_config(folder), length)}",))
            sections = plan(config, given, Measured())
            problems = [one for section in sections for one in section.problems]
            if not problems:
                return Found(way=way, config=config, sections=sections)
            problem = problems[0]
    return problem


def main() -> None:
    """Print the table."""
    console = Console(width=200)
    console.print("| model | GPUs | prompt | trained | ranks | engines | memory of a rank | a step |", markup=False)
    console.print("|---|---|---|---|---|---|---|---|")
    for name, tree in MODELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "config.json").write_text(json.dumps(tree))
            for num_gpus, length in product(NUM_GPUS, VISUAL_TOKENS):
                found = first_that_fits(folder, num_gpus, length)
                cells = found.row() if isinstance(found, Found) else f"does not fit: {found.partition(':')[0]}"
                console.print(f"| {name} | {num_gpus} | {length} | {cells} |", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()

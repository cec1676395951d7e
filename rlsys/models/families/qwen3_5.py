"""Qwen3.5, dense: prompt and tower of Qwen3-VL without deepstack, and mostly linear attention in its language model.

Of four layers three are a gated delta rule, which keeps a state in the place of keys and values (arXiv:2412.06464); the
fourth is attention whose output is multiplied by a gate. Published checkpoints also have a layer that predicts a second
token ("mtp"), which neither transformers nor vLLM reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rlsys.models.families.family import LinearAttention, TinyShape, VisionConfig
from rlsys.models.families.qwen3_vl import FAMILY as QWEN3_VL

LINEAR, FULL = "linear_attention", "full_attention"


def read_linear_attention(text: Mapping[str, Any]) -> LinearAttention:
    """Return the layers of linear attention; a config omits values that equal the defaults of transformers."""
    count = text["num_hidden_layers"]
    interval = text.get("full_attention_interval", 4)
    kinds = text.get("layer_types") or [LINEAR if (index + 1) % interval else FULL for index in range(count)]
    if len(kinds) != count or set(kinds) - {LINEAR, FULL}:
        raise ValueError(f"layer_types={kinds} is not one of {LINEAR}, {FULL} for each of num_hidden_layers={count}")
    return LinearAttention(
        indices=tuple(index for index, kind in enumerate(kinds) if kind == LINEAR),
        key_heads=text.get("linear_num_key_heads", 16),
        value_heads=text.get("linear_num_value_heads", 32),
        key_size=text.get("linear_key_head_dim", 128),
        value_size=text.get("linear_value_head_dim", 128),
        kernel=text.get("linear_conv_kernel_dim", 4),
    )


def read_vision(tree: Mapping[str, Any]) -> VisionConfig:
    """Return the tower's sizes, which are those of Qwen3-VL without deepstack."""
    return replace(QWEN3_VL.read_vision(tree), num_deepstack=0)


COMPUTED: Mapping[str, tuple[Any, ...]] = {
    "attn_output_gate": (True,),
    "output_gate_type": ("swish", "silu"),
    "attention_bias": (False,),
}
"""Settings of the language model with what transformers and vLLM both compute, the default first."""


def problems(text: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield what transformers and vLLM would compute differently."""
    for key, computed in COMPUTED.items():
        if text.get(key, computed[0]) not in computed:
            yield (
                f"config.json: text_config.{key} is {text[key]!r}, which learner and engine do not compute alike; "
                f"use a model with {computed[0]!r}, as published ones have it."
            )


def tiny_vision(shape: TinyShape) -> dict[str, Any]:
    """Return the `vision_config` of a tiny model."""
    return {
        "depth": shape.depth,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_heads": shape.heads,
        "out_hidden_size": shape.out_hidden,
        "num_position_embeddings": 64,
    }


FAMILY = replace(
    QWEN3_VL,
    model_type="qwen3_5",
    title="Qwen3.5",
    checkpoints=("0.8B", "2B", "4B", "9B", "27B"),
    image_pad_id=248056,
    video_pad_id=248057,
    projectors=("model.visual.merger.",),
    read_vision=read_vision,
    tiny_vision=tiny_vision,
    model="Qwen3_5ForConditionalGeneration",
    head_size=256,
    has_output_gate=True,
    read_linear_attention=read_linear_attention,
    unused=("mtp.",),
    problems=problems,
    limits=(
        "LoRA on attention and MLPs only, not on the matrices of linear attention",
        "engines on CPU are sent whole models with adapters merged in, because vLLM does not support adapters there",
        "on CPU in float32 engines compute linear attention token by token, because vLLM's kernel is for bfloat16",
    ),
    # linear and full attention in turns; two heads of values for a head of keys, of a size for which vLLM has a kernel
    # on CPU; a quarter of a head is rotated
    tiny_text={
        "full_attention_interval": 2,
        "head_dim": 64,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    # the state is halved in 1 to 30 tokens; as transformers draws it, most heads forget all within one
    tiny_ranges={".A_log": (-4.0, -0.7)},
)

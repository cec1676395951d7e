"""Qwen3-VL with a mixture of experts: the dense model's prompt and tower, and experts in its language layers.

Published checkpoints have the experts of a layer as two tensors, `gate_up_proj` [experts, width, 2 x inner] and
`down_proj` [experts, inner, width]. Transformers' modules have the last two axes the other way round and are saved that
way by `save_pretrained`, which vLLM cannot load; so a model is written as it was published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from rlsys.models.families.family import Experts
from rlsys.models.families.qwen3_vl import FAMILY as DENSE

GATE_UP, DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"


def read_experts(text: Mapping[str, Any]) -> Experts:
    """Return the experts, which some layers may be without."""
    step, dense = text.get("decoder_sparse_step", 1), text.get("mlp_only_layers") or ()
    sparse = [index for index in range(text["num_hidden_layers"]) if index not in dense and (index + 1) % step == 0]
    # transformers writes a name of its own
    count = text["num_local_experts"] if "num_local_experts" in text else text["num_experts"]
    return Experts(
        layers=len(sparse),
        count=count,
        per_token=text["num_experts_per_tok"],
        mlp=text["moe_intermediate_size"],
    )


def problems(text: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield what transformers and vLLM would read differently."""
    experts, hidden = read_experts(text), text["hidden_size"]
    if text.get("norm_topk_prob") is not True:
        yield (
            f"config.json: text_config.norm_topk_prob is {text.get('norm_topk_prob')}; the learner always divides the "
            "weights of a token's experts by their sum, so set it to true, as published models have it."
        )
    if hidden in (experts.mlp, 2 * experts.mlp):
        yield (
            f"config.json: with hidden_size={hidden} and moe_intermediate_size={experts.mlp} an expert's matrix is "
            "square, and transformers does not turn it (transformers#47031); use a model of other sizes."
        )
        return
    wanted = {GATE_UP: (experts.count, hidden, 2 * experts.mlp), DOWN: (experts.count, experts.mlp, hidden)}
    for ending, shape in wanted.items():
        held = {name: found for name, found in shapes.items() if name.endswith(ending)}
        wrong = [name for name, found in held.items() if found != shape]
        if wrong and held[wrong[0]] == (shape[0], shape[2], shape[1]):
            yield (
                f"{wrong[0]} is {held[wrong[0]]}, the other way round than in published models ({shape}), as "
                "transformers' save_pretrained writes it and vLLM cannot load it; swap the last two axes of all "
                f"tensors *{GATE_UP} and *{DOWN}."
            )
            return
        if wrong or len(held) != experts.layers:
            yield (
                f"config.json says that {experts.layers} layers have a tensor *{ending} of {shape}, the weight files "
                f"have {len(held) - len(wrong)}; use a checkpoint with the experts of a layer in one tensor."
            )


FAMILY = replace(
    DENSE,
    model_type="qwen3_vl_moe",
    title="Qwen3-VL MoE",
    checkpoints=("30B-A3B", "235B-A22B"),
    model="Qwen3VLMoeForConditionalGeneration",
    read_experts=read_experts,
    transposed=(GATE_UP, DOWN),
    problems=problems,
    limits=(
        "LoRA on attention only (q_proj, k_proj, v_proj, o_proj), because the experts of a layer are one tensor",
        "engines on CPU are sent whole models with adapters merged in, because vLLM's LoRA for experts needs Triton",
        "no auxiliary loss on the router's balance",
    ),
    tiny_text={
        **DENSE.tiny_text,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 160,
        "norm_topk_prob": True,
    },
)

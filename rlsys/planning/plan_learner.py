"""Estimate the memory of a learner rank by ZeRO stage: arithmetic on sizes, without DeepSpeed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlsys.config.run import RunConfig
from rlsys.models.sizes import ModelSizes
from rlsys.planning.plan import (
    BUCKET_NUMBERS,
    BYTES,
    GIB,
    LIVE_NUMBERS,
    LOGIT_NUMBERS,
    Assumptions,
    Line,
    Prompts,
    Section,
    mean_batch_tokens,
    shown,
)


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """The memory of one rank in bytes; `host` is in host memory, the rest on the device.

    gathered: gathered layers and reduction buckets of ZeRO.  reference: the second model that a KL penalty needs.
    """

    weights: float
    gathered: float
    gradients: float
    optimiser: float
    reference: float
    activations: float
    logits: float
    host: float

    @property
    def device(self) -> float:
        """Bytes on the device."""
        parts = (self.weights, self.gathered, self.gradients, self.optimiser, self.reference)
        return sum(parts) + self.activations + self.logits


def rank_memory(config: RunConfig, sizes: ModelSizes, pass_tokens: float, visual_share: float) -> RankMemory:
    """Return the peak memory of a rank.

    pass_tokens: tokens of a forward pass, of which it has a part if `learner.sequence_parallel` ranks compute it.
    visual_share: fraction of them that are visual.
    Source of the 2 + 2 + 12 bytes per parameter and of the partition: ZeRO, arXiv:1910.02054, figure 1, except that
    partitioned gradients are accumulated in float32 here.
    """
    learner, width = config.learner, BYTES[config.model.dtype]
    stage, ranks, trained = learner.zero_stage, learner.num_ranks, sizes.trained(learner)
    weights = sizes.parameters * width / (ranks if stage == 3 else 1)
    gradients = trained * (4 if stage else width) / (ranks if stage >= 2 else 1)
    # two moments, and a copy of the weights in float32 wherever ZeRO partitions them or they are in bfloat16
    optimiser = trained * (12 if stage or width == 2 else 8) / (ranks if stage else 1)
    has_reference = config.algorithm.kl_coef > 0 and not learner.lora.rank
    # the experts of a layer are gathered together, however many they are
    at_least = sizes.experts.layer_parameters(sizes.hidden) if sizes.experts else 0
    gathered = max(min(sizes.parameters, LIVE_NUMBERS), at_least) * width if stage == 3 else 0
    buckets = 2 * min(trained, BUCKET_NUMBERS) * width if stage else 0
    moved = (weights if "parameters" in learner.offload else 0) + (optimiser if "optimizer" in learner.offload else 0)
    return RankMemory(
        weights=0 if "parameters" in learner.offload else weights,
        gathered=gathered + buckets,
        gradients=gradients,
        optimiser=0 if "optimizer" in learner.offload else optimiser,
        reference=sizes.parameters * width if has_reference else 0,
        activations=activation_bytes(config, sizes, pass_tokens, visual_share),
        logits=3
        * 4
        * min(LOGIT_NUMBERS, pass_tokens / learner.sequence_parallel * (1 - visual_share) * sizes.vocabulary),
        host=moved,
    )


def activation_bytes(config: RunConfig, sizes: ModelSizes, pass_tokens: float, visual_share: float) -> float:
    """Return the bytes of a rank's activations, counted by the tensors that a layer keeps for its backward pass.

    A gated layer keeps, per token: input, normed input, the sum with attention's projection, normed sum and the output
    (5 hidden), queries and attention's output (2 queries), keys and values (2 kv), queries and keys before their norms
    if they have any, three times the gate of the output if there is one, and what its MLP keeps
    (`ModelSizes.kept_by_mlp`); linear attention in the place of attention what `LinearAttention.kept` says. Attention's
    weights are never kept. An MLP without a gate keeps two of the four. With checkpointing each layer keeps its input,
    and one layer at a time the rest. Ranks that compute a pass together keep equal parts of all this; attention's
    output by heads and by tokens, and copies of keys and values where there are fewer heads of these than ranks.
    Source of the counting: arXiv:2205.05198, §4, for a layer without dropout and with flash attention.
    """
    width, num_sharing = BYTES[config.model.dtype], config.learner.sequence_parallel
    pass_tokens = pass_tokens / num_sharing
    copies = num_sharing // math.gcd(sizes.kv // sizes.head_size, num_sharing)
    patches = pass_tokens * visual_share * sizes.merge**2
    is_frozen = "vision_tower" in config.learner.frozen_parts or config.learner.lora.rank > 0
    tower_depth = 1 if is_frozen else sizes.tower_layers
    attention = 2 * sizes.queries + 2 * copies * sizes.kv
    if num_sharing > 1:
        attention += sizes.queries
    if sizes.has_query_norms:
        attention += sizes.queries + sizes.kv
    if sizes.projected_queries > sizes.queries:  # the gate, its sigmoid and the product
        attention += 3 * sizes.queries
    mixed = float(attention)
    if sizes.linear:
        mixed = (sizes.attention_layers * attention + sizes.linear.layers * sizes.linear.kept) / sizes.layers
    language_layer = 5 * sizes.hidden + mixed + sizes.kept_by_mlp
    # what a branch adds is kept before it is scaled
    tower_layer = (11 if sizes.is_tower_scaled else 9) * sizes.tower_hidden + (
        4 if sizes.is_tower_gated else 2
    ) * sizes.tower_mlp
    stacks = (
        (pass_tokens, sizes.layers, sizes.hidden, language_layer),
        (patches, tower_depth, sizes.tower_hidden, tower_layer),
    )
    if config.learner.gradient_checkpointing:
        return width * sum(tokens * (depth * inputs + layer) for tokens, depth, inputs, layer in stacks)
    return width * sum(tokens * depth * layer for tokens, depth, _, layer in stacks)


def learner_section(
    config: RunConfig, sizes: ModelSizes, prompts: Prompts, responses: float, given: Assumptions
) -> Section:
    """Return the section on a rank's memory, with a problem if it exceeds its device's."""
    learner = config.learner
    tokens = min(learner.micro_batch_tokens, max(mean_batch_tokens(config, prompts, responses), prompts.longest))
    group = prompts.mean + config.rollout.group_size * responses
    memory = rank_memory(config, sizes, tokens, prompts.mean_visual / group)
    room_gib = given.memory_gib - given.rank_reserve_gib
    stage, trained = learner.zero_stage, sizes.trained(learner)
    kind = "LoRA adapters" if learner.lora.rank else "all parts" if not learner.frozen_parts else "parts not frozen"
    checkpointed = "recomputed layer by layer" if learner.gradient_checkpointing else "all layers kept"
    shared = f" of {learner.sequence_parallel} ranks" if learner.sequence_parallel > 1 else ""
    lines = [
        Line("weights", shown(memory.weights), f"{sizes.parameters:,} numbers, ZeRO {stage}"),
        Line("gradients", shown(memory.gradients), f"{trained:,} trained numbers ({kind})"),
        Line("optimiser", shown(memory.optimiser), "AdamW's moments and a float32 copy of the weights"),
        Line("gathered and buckets", shown(memory.gathered), "DeepSpeed's live weights, reductions"),
        Line("reference policy", shown(memory.reference), f"kl_coef={config.algorithm.kl_coef:g}"),
        Line("activations", shown(memory.activations), f"{tokens:.0f} tokens a pass{shared}, {checkpointed}"),
        Line("logits", shown(memory.logits), "three float32 tensors of a chunk"),
        Line("total on the device", shown(memory.device), _of_the_device(config, room_gib, given)),
        Line("in host memory", shown(memory.host), f"learner.offload={list(learner.offload)}"),
    ]
    problems = [problem] if (problem := sizes.heads_problem(learner.sequence_parallel)) else []
    if config.cluster.device == "cuda" and memory.device > room_gib * GIB:
        problems.append(
            f"a learner rank needs about {shown(memory.device)}, but a device has room for {room_gib:.4g} GiB "
            f"(memory_gib={given.memory_gib:g} - rank_reserve_gib={given.rank_reserve_gib:g}): raise "
            "learner.num_ranks or learner.zero_stage, lower learner.micro_batch_tokens, or use "
            "learner.gradient_checkpointing, learner.sequence_parallel, learner.offload or learner.lora.rank."
        )
    return Section(title=f"each of {learner.num_ranks} ranks", lines=tuple(lines), problems=tuple(problems))


def _of_the_device(config: RunConfig, room_gib: float, given: Assumptions) -> str:
    if config.cluster.device != "cuda":
        return "estimate"
    return f"estimate; of {room_gib:.4g} GiB: {given.memory_gib:g} - {given.rank_reserve_gib:g} GiB reserve"

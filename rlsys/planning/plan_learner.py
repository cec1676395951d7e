"""Estimate the memory of a learner rank by ZeRO stage: arithmetic on sizes, without DeepSpeed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlsys.config.run import RunConfig
from rlsys.models.families.family import CHUNK_TOKENS, LinearAttention
from rlsys.models.sizes import OF_MLPS, ModelSizes
from rlsys.planning.plan import (
    BUCKET_NUMBERS,
    BYTES,
    GIB,
    LIVE_NUMBERS,
    LOGIT_NUMBERS,
    SUB_GROUP_NUMBERS,
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

    bucket: in which ZeRO collects gradients.  reference: the second model that a KL penalty needs.
    gathered: layers of which ZeRO-3 has gathered the weights.  activations: what the forward pass keeps for the
    backward pass, pixels included.  logits: a chunk's, with the gradient of the head's weights.  layer: what the layer
    in computation needs beside what is kept.  stepping: copies and temporaries of an optimiser step.
    """

    weights: float
    gradients: float
    optimiser: float
    bucket: float
    reference: float
    gathered: float
    activations: float
    logits: float
    layer: float
    stepping: float
    host: float

    @property
    def held(self) -> float:
        """Bytes on the device at all times."""
        return self.weights + self.gradients + self.optimiser + self.bucket + self.reference

    @property
    def device(self) -> float:
        """Bytes on the device at most: the head, a layer and the optimiser never compute at the same time."""
        return self.held + max(self.gathered + self.activations + max(self.logits, self.layer), self.stepping)


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
    moved = (weights if "parameters" in learner.offload else 0) + (optimiser if "optimizer" in learner.offload else 0)
    activations = activation_bytes(config, sizes, pass_tokens, visual_share)
    return RankMemory(
        weights=0 if "parameters" in learner.offload else weights,
        gradients=gradients,
        optimiser=0 if "optimizer" in learner.offload else optimiser,
        bucket=min(trained, BUCKET_NUMBERS) * width if stage else 0,
        reference=sizes.parameters * width if has_reference else 0,
        gathered=gathered,
        activations=activations.kept,
        logits=_logit_bytes(config, sizes, pass_tokens * (1 - visual_share)),
        layer=activations.layer,
        stepping=_step_bytes(config, trained),
        host=moved,
    )


def _step_bytes(config: RunConfig, trained: int) -> float:
    """Return the bytes that an optimiser step needs for a while, all in float32.

    ZeRO copies the gradients of the numbers that it updates at a time once more (DeepSpeed 0.19.8), and AdamW makes two
    temporaries of that size, on a GPU one (torch 2.13).
    """
    learner = config.learner
    if "optimizer" in learner.offload:
        return 0
    at_a_time = min(trained / learner.num_ranks, SUB_GROUP_NUMBERS) if learner.zero_stage else trained
    return 4 * at_a_time * ((1 if config.cluster.device == "cuda" else 2) + (1 if learner.zero_stage else 0))


def _logit_bytes(config: RunConfig, sizes: ModelSizes, text_tokens: float) -> float:
    """Return the bytes of a chunk of logits, three times in float32, and of the head's gradient if it is trained.

    The gradient of one chunk is there while the next is computed.
    """
    learner = config.learner
    numbers = min(LOGIT_NUMBERS, text_tokens / learner.sequence_parallel * sizes.vocabulary)
    head = 0 if learner.lora.rank else sizes.vocabulary * sizes.hidden * BYTES[config.model.dtype]
    return 3 * 4 * numbers + head


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of activations: kept between the passes, and needed beside them by the layer in computation at most."""

    kept: float
    layer: float


def activation_bytes(config: RunConfig, sizes: ModelSizes, pass_tokens: float, visual_share: float) -> Activations:
    """Return the bytes of a rank's activations, counted by the tensors that a layer keeps for its backward pass.

    A language layer keeps, per token: what its two norms keep (see `_norm`), queries and attention's output (2
    queries), keys and values (2 kv), what the norms of queries and keys keep if it has any, three times the gate of the
    output if there is one, and what its MLP keeps (`ModelSizes.kept_by_mlp`); linear attention in the place of
    attention what `_linear_attention` says. The last norm is one more. Attention's weights are never kept. A block
    of the tower keeps two norms, queries, keys and values before and after their rotation, attention's output, and four
    or two widths of its MLP. A projector keeps a norm and two layers of merged patches. The pixels are there once.
    A frozen tower keeps nothing, but needs what one block computes at a time: most for the rotation, in float32.
    In the backward pass of a gated MLP three gradients of its width are there beside three of the four widths kept.
    With checkpointing each layer keeps its input, and the layer in computation the rest. Ranks that compute a pass
    together keep equal parts of all this; attention's output by heads and by tokens, and copies of keys and values
    where there are fewer heads of these than ranks.
    Source of the counting: arXiv:2205.05198, section 4, for a layer without dropout and with flash attention;
    `tests/learner/model/test_plan_of_activations.py` compares it with tensors.
    """
    width, learner = BYTES[config.model.dtype], config.learner
    num_sharing, is_recomputed = learner.sequence_parallel, learner.gradient_checkpointing
    tokens = pass_tokens / num_sharing
    patches = tokens * visual_share * sizes.merge**2
    language = _Stack(
        amount=tokens,
        depth=sizes.layers,
        inputs=sizes.hidden,
        layer=_language_layer(config, sizes),
        rest=(_norm(config) - 1) * sizes.hidden,
        working=sizes.kept_by_mlp / 2 + sizes.hidden,
    )
    tower = _tower(config, sizes, patches)
    pixels = patches * sizes.patch_dim
    kept = language.kept(is_recomputed) + tower.kept(is_recomputed) + pixels
    # the tower's blocks have their backward pass when all that the language model kept is gone
    of_tower = tower.needed(is_recomputed) - language.kept(is_recomputed)
    return Activations(kept=width * kept, layer=width * max(language.needed(is_recomputed), of_tower, 0))


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """Equal layers. Numbers per token or patch, of which there are `amount`.

    inputs: of a layer's input.  layer: what a layer keeps.  rest: what modules around the layers keep.
    working: what a layer's computation needs at a time beside what it keeps.
    """

    amount: float
    depth: int
    inputs: int
    layer: float
    rest: float
    working: float

    def kept(self, is_recomputed: bool) -> float:
        """Return the numbers that are kept between the passes."""
        return self.amount * (self.depth * (self.inputs if is_recomputed else self.layer) + self.rest)

    def needed(self, is_recomputed: bool) -> float:
        """Return the numbers that one layer needs beside them."""
        return self.amount * (self.working + (self.layer if is_recomputed else 0))


def _norm(config: RunConfig) -> int:
    """Return how many times its input an RMS norm keeps: its output, the input in float32, and if trained one more."""
    in_float32 = 4 // BYTES[config.model.dtype]
    return 1 + in_float32 + (0 if config.learner.lora.rank else 1)


def _language_layer(config: RunConfig, sizes: ModelSizes) -> float:
    """Return the numbers that a language layer keeps of a token."""
    num_sharing, norm = config.learner.sequence_parallel, _norm(config)
    copies = num_sharing // math.gcd(sizes.kv // sizes.head_size, num_sharing)
    attention = 2 * sizes.queries + 2 * copies * sizes.kv
    if num_sharing > 1:
        attention += sizes.queries
    if sizes.has_query_norms:
        attention += (norm - 1) * (sizes.queries + sizes.kv)
    if sizes.projected_queries > sizes.queries:  # the gate, its sigmoid and the product
        attention += 3 * sizes.queries
    mixed = float(attention)
    if sizes.linear:
        linear = _trained_through(config, sizes.linear) * _linear_attention(config, sizes.linear)
        mixed = (sizes.attention_layers * attention + linear) / sizes.layers
    return 2 * norm * sizes.hidden + mixed + sizes.kept_by_mlp


def _trained_through(config: RunConfig, linear: LinearAttention) -> int:
    """Return the number of layers of linear attention that gradients pass: not those before the first adapter."""
    lora = config.learner.lora
    if not lora.rank:
        return linear.layers
    return linear.layers - (1 if set(OF_MLPS) & set(lora.targets) else linear.leading)


def _linear_attention(config: RunConfig, linear: LinearAttention) -> float:
    """Return the numbers that linear attention keeps of a token.

    The convolution keeps its input and its output. The norm with a gate keeps its input, the gate and the gate's
    activation in float32, what it gives before and after the gate, and if trained one more. Of each head of values the
    rule keeps:
    - on GPUs, with the kernels of `fla`, normed queries and keys, values, and the token's row of its chunk's triangle.
    - elsewhere, in PyTorch and in float32, queries before and after their norm and with decay; keys likewise, with
      step, and as they correct the state; values before and after the corrections by their chunk and by the state;
      five rows of the chunk; and the chunk's state.
    """
    in_float32 = 4 / BYTES[config.model.dtype]
    norm = (3 * in_float32 + (2 if config.learner.lora.rank else 3)) * linear.values
    key, value = linear.key_size, linear.value_size
    if config.cluster.device == "cuda":
        rule: float = 2 * key + value + CHUNK_TOKENS
    else:
        rule = in_float32 * (8 * key + 3 * value + 5 * CHUNK_TOKENS + key * value / CHUNK_TOKENS)
    return 2 * linear.channels + norm + linear.value_heads * rule


def _tower(config: RunConfig, sizes: ModelSizes, patches: float) -> _Stack:
    """Return the vision tower's blocks, with the projector as the rest. Layer norms keep input and output."""
    hidden, mlp = sizes.tower_hidden, sizes.tower_mlp
    norm = _norm(config) if sizes.is_tower_gated else 2
    rotation = (17 if BYTES[config.model.dtype] == 2 else 9) * hidden
    rest = 0 if "projector" in config.learner.untrained_parts else (norm + 2) * hidden
    if "vision_tower" in config.learner.untrained_parts:
        working = max(rotation, 3 * hidden + 3 * mlp)
        return _Stack(amount=patches, depth=0, inputs=0, layer=0, rest=rest, working=working)
    return _Stack(
        amount=patches,
        depth=sizes.tower_layers,
        inputs=hidden,
        # what a branch adds is kept before it is scaled
        layer=(2 * norm + (8 if sizes.is_tower_scaled else 6)) * hidden + (4 if sizes.is_tower_gated else 2) * mlp,
        rest=rest,
        working=max(2 * mlp + hidden, rotation - 9 * hidden),
    )


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
        Line("bucket of gradients", shown(memory.bucket), "in which ZeRO reduces them"),
        Line("reference policy", shown(memory.reference), f"kl_coef={config.algorithm.kl_coef:g}"),
        Line("gathered weights", shown(memory.gathered), "DeepSpeed's live weights"),
        Line("activations", shown(memory.activations), f"{tokens:.0f} tokens a pass{shared}, {checkpointed}"),
        Line("or: logits", shown(memory.logits), "three float32 tensors of a chunk, and the head's gradient"),
        Line("or: a layer", shown(memory.layer), "gradients of the layer in computation"),
        Line("or: a step", shown(memory.stepping), "AdamW's temporaries, when activations are gone"),
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

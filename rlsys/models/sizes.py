"""Number of parameters of a checkpoint, computed from the sizes in its config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from rlsys.config.run import ConfigError, LearnerConfig
from rlsys.models.families.family import Experts, LinearAttention
from rlsys.models.model_config import read_model_config

OF_LINEAR_ATTENTION = ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
"""Names of the matrices of linear attention."""
OF_MLPS = ("gate_proj", "up_proj", "down_proj")
"""Names of the matrices of MLPs."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of a language model of `layers` layers and of its vision tower.

    queries, kv: query heads and key/value heads, each x `head_size`.  embedding, language, tower, projector: number of
    parameters of each part; an output head of its own counts as embedding.  is_tower_gated: whether the MLPs of the
    tower have a gate.  is_tower_scaled: whether its blocks' branches have scales.  has_query_norms: whether queries and
    keys are normed by head.  mlp: width of the MLP of a layer without experts.  projected_queries: numbers that the
    projection of queries computes, gates of the output included.  linear: the layers that keep a state in the place of
    keys and values.  patch_dim: number of values in a patch.
    """

    layers: int
    hidden: int
    mlp: int
    queries: int
    kv: int
    vocabulary: int
    tower_layers: int
    tower_hidden: int
    tower_mlp: int
    merge: int
    embedding: int
    language: int
    tower: int
    projector: int
    head_size: int = 128
    is_tower_gated: bool = True
    is_tower_scaled: bool = False
    has_query_norms: bool = False
    experts: Experts | None = None
    patch_dim: int = 1176
    projected_queries: int = 0
    linear: LinearAttention | None = None

    @property
    def attention_layers(self) -> int:
        """Number of layers that keep keys and values."""
        return self.layers - (self.linear.layers if self.linear else 0)

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model."""
        return self.embedding + self.language + self.tower + self.projector

    def language_used(self, num_tokens: int = 1) -> float:
        """Return the parameters of `language` that `num_tokens` tokens need together: not all if it has experts."""
        return self.language - (self.experts.idle(self.hidden, num_tokens) if self.experts else 0)

    @property
    def active(self) -> int:
        """Number of parameters that compute one token: all but those of the experts that it does not pass."""
        return self.parameters - self.language + round(self.language_used())

    @property
    def kept_by_mlp(self) -> float:
        """Numbers that the MLP of a mean language layer keeps of a token for its backward pass.

        Gate, its activation, up and their product; of experts those of each that the token passes, its input and
        output once more, and the router's probabilities.
        """
        dense, experts = 4 * self.mlp, self.experts
        if experts is None:
            return dense
        sparse = experts.per_token * (4 * experts.mlp + 2 * self.hidden) + experts.count
        return dense + (sparse - dense) * experts.layers / self.layers

    def cache_bytes(self, num_tokens: int, width: int, block_tokens: int) -> int:
        """Return the bytes of an engine's cache that one sequence of `num_tokens` needs at least.

        width: bytes of a number.  block_tokens: of a block of keys and values, which is larger where layers keep
        states: a block also holds the state of one of them, and layers of a kind share blocks.
        """
        num_states, of_token = 0, 2 * self.kv * width
        if self.linear:
            state = self.linear.state_bytes(width) // self.linear.layers
            block_tokens *= -(-state // (block_tokens * of_token))
            num_states = -(-self.linear.layers // self.attention_layers)
        num_blocks = -(-num_tokens // block_tokens) + num_states + 1  # vLLM keeps one to itself
        return num_blocks * block_tokens * of_token * self.attention_layers

    def trained(self, learner: LearnerConfig) -> int:
        """Return the number of trained parameters: only adapters with LoRA, else all parts that are not frozen."""
        if learner.lora.rank:
            return learner.lora.rank * sum(
                self._layers_with(name) * sum(self._sides(name)) for name in learner.lora.targets
            )
        frozen = {"vision_tower": self.tower, "projector": self.projector}
        return self.parameters - sum(frozen[part] for part in learner.frozen_parts)

    def heads_problem(self, sequence_parallel: int) -> str | None:
        """Return why the attention cannot be divided over `learner.sequence_parallel` ranks; None if it can."""
        if sequence_parallel == 1:
            return None
        heads = held = self.queries // self.head_size
        said = f"{heads}"
        if self.linear:  # where a head of keys and its heads of values stay together
            held = math.gcd(heads, self.linear.key_heads)
            said = f"{heads}, and {self.linear.key_heads} of keys in linear attention"
        if held % sequence_parallel == 0:
            return None
        possible = ", ".join(str(size) for size in range(1, held + 1) if held % size == 0)
        return (
            f"learner.sequence_parallel={sequence_parallel}: every rank computes the attention of an equal number of "
            f"heads, and the model has {said}; set it to one of {possible}."
        )

    def _layers_with(self, layer: str) -> int:
        """Return the number of layers that have a linear layer of this name."""
        return self.layers if layer in OF_MLPS else self.attention_layers

    def _sides(self, layer: str) -> tuple[int, int]:
        """Return the numbers of inputs and outputs of a linear layer of the language model."""
        sides = {
            "q_proj": (self.hidden, self.projected_queries or self.queries),
            "k_proj": (self.hidden, self.kv),
            "v_proj": (self.hidden, self.kv),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.mlp),
            "up_proj": (self.hidden, self.mlp),
            "down_proj": (self.mlp, self.hidden),
        }
        if self.experts and layer in OF_MLPS:
            raise ConfigError(
                f"learner.lora.targets: {layer} is a part of the experts, which are one tensor for all experts of a "
                "layer and get no adapter; name only layers of attention: q_proj, k_proj, v_proj, o_proj."
            )
        if self.linear and layer in OF_LINEAR_ATTENTION:
            raise ConfigError(
                f"learner.lora.targets: {layer} is a layer of linear attention, which get no adapters; name only "
                f"layers of attention and MLPs: {', '.join(sides)}."
            )
        if layer not in sides:
            raise ConfigError(
                f"learner.lora.targets: {layer} is not a linear layer of the language model; it has {', '.join(sides)}."
            )
        return sides[layer]


def read_model_sizes(model_path: Path) -> ModelSizes:
    """Return the sizes of the checkpoint in a folder. Raises ModelFolderError if its config.json cannot be used."""
    config = read_model_config(model_path)
    family, vision, hidden, mlp = config.family, config.vision, config.hidden, config.mlp
    queries, kv = config.queries, config.kv
    biases = queries + 2 * kv if family.has_attention_biases else 0  # outputs have none
    norms = 2 * config.head_size if family.has_query_norms else 0
    experts = config.experts
    dense_layers = config.layers - (experts.layers if experts else 0)
    mlps = dense_layers * 3 * hidden * mlp + (experts.parameters(hidden) if experts else 0)
    attention = hidden * (config.projected_queries + queries + 2 * kv) + biases + norms
    linear = config.linear.layers * config.linear.layer_parameters(hidden) if config.linear else 0
    return ModelSizes(
        layers=config.layers,
        hidden=hidden,
        mlp=mlp,
        queries=queries,
        kv=kv,
        head_size=config.head_size,
        vocabulary=config.vocabulary,
        tower_layers=vision.depth,
        tower_hidden=vision.hidden,
        tower_mlp=vision.mlp,
        merge=vision.merge_size,
        embedding=config.vocabulary * hidden * (1 if config.has_tied_embeddings else 2),
        language=config.attention_layers * attention + linear + config.layers * 2 * hidden + mlps + hidden,
        tower=vision.tower_parameters,
        projector=vision.projector_parameters(hidden),
        is_tower_gated=vision.is_gated,
        is_tower_scaled=vision.is_scaled,
        has_query_norms=family.has_query_norms,
        experts=experts,
        projected_queries=config.projected_queries,
        linear=config.linear,
        patch_dim=vision.patch_dim,
    )

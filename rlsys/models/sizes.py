"""How many numbers a Qwen2.5-VL checkpoint holds, from the sizes in its config.json: no weight is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.config.run import ConfigError, LearnerConfig


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of the language model, `layers` deep, and of the vision tower.

    kv: key and value heads x head size.  embedding, language, tower, projector: numbers in each part; an output head
    of its own counts as embedding.
    """

    layers: int
    hidden: int
    mlp: int
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

    @property
    def parameters(self) -> int:
        return self.embedding + self.language + self.tower + self.projector

    def trained(self, learner: LearnerConfig) -> int:
        """Numbers that the optimiser moves: adapters alone with LoRA, else all parts that are not frozen."""
        if learner.lora.rank:
            return self.layers * learner.lora.rank * sum(sum(self._sides(name)) for name in learner.lora.targets)
        frozen = {"vision_tower": self.tower, "projector": self.projector}
        return self.parameters - sum(frozen[part] for part in learner.frozen_parts)

    def _sides(self, layer: str) -> tuple[int, int]:
        """Inputs and outputs of a linear layer of the language model."""
        sides = {
            "q_proj": (self.hidden, self.hidden),
            "k_proj": (self.hidden, self.kv),
            "v_proj": (self.hidden, self.kv),
            "o_proj": (self.hidden, self.hidden),
            "gate_proj": (self.hidden, self.mlp),
            "up_proj": (self.hidden, self.mlp),
            "down_proj": (self.mlp, self.hidden),
        }
        if layer not in sides:
            raise ConfigError(
                f"learner.lora.targets: {layer} is no linear layer of the language model; it has {', '.join(sides)}."
            )
        return sides[layer]


def read_model_sizes(model_path: Path) -> ModelSizes:
    """The sizes in the checkpoint folder's config.json. Raises ConfigError when it is not there or not such a model."""
    path = Path(model_path) / "config.json"
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"model.path={model_path}: no config.json there; copy at least that file.") from error
    try:
        return _sizes(tree)
    except KeyError as error:
        raise ConfigError(f"{path}: no key {error}; this is not the config of a Qwen2.5-VL.") from error


def _sizes(tree: Mapping[str, Any]) -> ModelSizes:
    text: Mapping[str, Any] = tree.get("text_config") or tree
    vision: Mapping[str, Any] = tree["vision_config"]
    hidden, mlp, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    heads = text["num_attention_heads"]
    kv = hidden // heads * text.get("num_key_value_heads", heads)
    attention = 2 * hidden * (hidden + kv) + hidden + 2 * kv  # queries, keys and values have biases, outputs none
    is_tied = tree.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    size, inner, depth = vision["hidden_size"], vision["intermediate_size"], vision["depth"]
    patch = vision.get("in_channels", 3) * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    block = 4 * size**2 + 4 * size + 3 * size * inner + 2 * inner + size + 2 * size
    merged = size * vision["spatial_merge_size"] ** 2
    return ModelSizes(
        layers=layers,
        hidden=hidden,
        mlp=mlp,
        kv=kv,
        vocabulary=text["vocab_size"],
        tower_layers=depth,
        tower_hidden=size,
        tower_mlp=inner,
        merge=vision["spatial_merge_size"],
        embedding=text["vocab_size"] * hidden * (1 if is_tied else 2),
        language=layers * (attention + 3 * hidden * mlp + 2 * hidden) + hidden,
        tower=patch * size + depth * block,
        projector=size + merged * (merged + 1) + (merged + 1) * hidden,
    )

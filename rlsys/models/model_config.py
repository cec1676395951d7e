"""The reader of a checkpoint folder's `config.json`, which needs neither the weights nor torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.errors import UserError


class ModelFolderError(UserError, ValueError):
    """An error of a model folder that lacks what a run needs; the message names the file and the remedy."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes of the vision tower.

    window_size: side in pixels of the windows within which blocks attend, except for `num_full_attention` blocks.
    tokens_per_second: temporal positions per second of video, see `rlsys.models.mrope`.
    """

    depth: int
    hidden: int
    mlp: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    window_size: int
    num_full_attention: int
    tokens_per_second: float

    @property
    def patch_dim(self) -> int:
        """Number of values in one patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a language model of `layers` layers and its vision tower, and the ids of its placeholder tokens.

    kv: key/value heads x head size.  model_type: name of the architecture, "" if the file has none.
    """

    model_type: str
    layers: int
    hidden: int
    mlp: int
    kv: int
    vocabulary: int
    has_tied_embeddings: bool
    image_token_id: int
    video_token_id: int
    vision: VisionConfig


def read_model_config(model_path: Path) -> ModelConfig:
    """Read the `config.json` of a folder, in the nested layout or the flat one of published checkpoints.

    Raises ModelFolderError if the file is missing, is not JSON, or lacks a size.
    """
    tree = read_json(Path(model_path), "config.json")
    try:
        return _parse(tree)
    except (KeyError, TypeError) as error:
        problem = f"no key {error}" if isinstance(error, KeyError) else error
        raise ModelFolderError(
            f"{Path(model_path) / 'config.json'}: {problem}; this is not the config of a Qwen2.5-VL."
        ) from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object in a model folder. Raises ModelFolderError if the file is missing or holds something else."""
    try:
        tree = json.loads((folder / name).read_text())
    except FileNotFoundError as error:
        raise ModelFolderError(
            f"model.path={folder}: no {name} there; model.path must be a folder made by save_pretrained."
        ) from error
    except (OSError, ValueError) as error:  # for example a git-LFS pointer
        raise ModelFolderError(f"{folder / name}: not readable as JSON ({error}); copy it again.") from error
    if not isinstance(tree, dict):
        raise ModelFolderError(f"{folder / name}: holds {type(tree).__name__}, expected an object; copy it again.")
    return tree


def _parse(tree: Mapping[str, Any]) -> ModelConfig:
    text: Mapping[str, Any] = tree.get("text_config") or tree
    heads = text["num_attention_heads"]
    return ModelConfig(
        model_type=tree.get("model_type", ""),
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        mlp=text["intermediate_size"],
        kv=text["hidden_size"] // heads * text.get("num_key_value_heads", heads),
        vocabulary=text["vocab_size"],
        has_tied_embeddings=tree.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        image_token_id=tree.get("image_token_id", 151655),
        video_token_id=tree.get("video_token_id", 151656),
        vision=_parse_vision(tree["vision_config"]),
    )


def _parse_vision(tree: Mapping[str, Any]) -> VisionConfig:
    # a config omits values that equal the defaults of transformers
    return VisionConfig(
        depth=tree["depth"],
        hidden=tree["hidden_size"],
        mlp=tree["intermediate_size"],
        in_channels=tree.get("in_channels", 3),
        patch_size=tree.get("patch_size", 14),
        temporal_patch_size=tree.get("temporal_patch_size", 2),
        merge_size=tree.get("spatial_merge_size", 2),
        window_size=tree.get("window_size", 112),
        num_full_attention=len(tree.get("fullatt_block_indexes", (7, 15, 23, 31))),
        tokens_per_second=tree.get("tokens_per_second", 4),
    )

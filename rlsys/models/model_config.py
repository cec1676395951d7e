"""The reader of a checkpoint folder's `config.json`, which needs neither the weights nor torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlsys.errors import UserError
from rlsys.files import require_regular
from rlsys.models.families.family import Experts, Family, LinearAttention, VisionConfig
from rlsys.models.families.table import family_named
from rlsys.types import DEFAULT_PATCH, PatchShape


class ModelFolderError(UserError, ValueError):
    """An error of a model folder that lacks what a run needs; the message names the file and the remedy."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a language model of `layers` layers and its vision tower, and the ids of its placeholder tokens.

    queries, kv: query heads and key/value heads, each x head size.  mlp: width of the MLP of a layer without experts.
    longest: largest number of positions that an engine takes; None if it is not known.
    """

    family: Family
    layers: int
    hidden: int
    mlp: int
    head_size: int
    queries: int
    kv: int
    vocabulary: int
    has_tied_embeddings: bool
    image_token_id: int
    video_token_id: int
    longest: int | None
    vision: VisionConfig
    experts: Experts | None = None
    linear: LinearAttention | None = None

    @property
    def attention_layers(self) -> int:
        """Number of layers that keep keys and values."""
        return self.layers - (self.linear.layers if self.linear else 0)

    @property
    def projected_queries(self) -> int:
        """Numbers that the projection of queries computes: with them the gates of attention's output, if it has any."""
        return self.queries * (2 if self.family.has_output_gate else 1)

    def takes_adapters(self, device: str) -> bool:
        """Return whether engines on "cpu" or "cuda" can compute the model with adapters.

        With adapters vLLM computes experts by a kernel of Triton, also where none has an adapter; CPUs have none. Nor
        does it compute linear attention beside adapters there.
        """
        return device == "cuda" or (self.experts is None and self.linear is None)

    @property
    def used_mlp(self) -> float:
        """Width of one gated MLP that costs a token as much as the MLP, or router and experts, of a mean layer."""
        if self.experts is None:
            return self.mlp
        sparse = self.experts.per_token * self.experts.mlp + self.experts.count / 3
        return self.mlp + (sparse - self.mlp) * self.experts.layers / self.layers


def read_model_config(model_path: Path) -> ModelConfig:
    """Read the `config.json` of a folder, in the nested layout or the flat one of published checkpoints.

    Raises ModelFolderError if the file is missing, is not JSON, is of a family that is not supported, or lacks a size.
    """
    file = Path(model_path) / "config.json"
    tree = read_json(Path(model_path), file.name)
    try:
        family = family_named(str(tree.get("model_type", "")))
    except KeyError as error:
        raise ModelFolderError(f"{file}: {error.args[0]} (`rlsys models` shows what each can do).") from error
    try:
        if reason := family.refusal(tree):
            raise ValueError(reason)
        return _parse(tree, family, None if "video_token_id" in tree else _added_id(model_path, family.video_pad))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        problem = f"no key {error}" if isinstance(error, KeyError) else error
        raise ModelFolderError(f"{file}: {problem}; this is not the config of a {family.title}.") from error


def patch_shape(model_path: Path) -> PatchShape:
    """Return how a model's vision tower cuts frames.

    The default where the folder's config.json cannot be read, which stops a run elsewhere.
    """
    try:
        return read_model_config(model_path).vision.patch
    except ModelFolderError:
        return DEFAULT_PATCH


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object in a model folder. Raises ModelFolderError if the file is missing or holds something else."""
    try:
        require_regular(folder / name)
        tree = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFolderError(
            f"model.path={folder}: no {name} there; model.path must be a folder made by save_pretrained."
        ) from error
    except (OSError, ValueError) as error:  # for example a git-LFS pointer
        raise ModelFolderError(f"{folder / name}: not readable as JSON ({error}); copy it again.") from error
    if not isinstance(tree, dict):
        raise ModelFolderError(f"{folder / name}: holds {type(tree).__name__}, expected an object; copy it again.")
    return tree


def text_settings(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the language model of a config.json: nested, or beside the others."""
    return tree.get("text_config") or tree


def _added_id(folder: Path, token: str) -> int | None:
    """Return the id of a token that a folder's tokenizer.json adds to its vocabulary; None if it is not known."""
    file = Path(folder) / "tokenizer.json"
    try:
        return _added_ids(file, file.stat().st_mtime_ns).get(token)
    except OSError:
        return None


@lru_cache(maxsize=8)
def _added_ids(file: Path, modified_ns: int) -> Mapping[str, int]:
    """Return the ids of added tokens. modified_ns: when the file was written, after which it must be read again."""
    try:
        return {one["content"]: one["id"] for one in read_json(file.parent, file.name)["added_tokens"]}
    except (ModelFolderError, KeyError, TypeError):
        return {}  # what reads the tokenizer itself says what is wrong with it


def _parse(tree: Mapping[str, Any], family: Family, video_pad: int | None) -> ModelConfig:
    """Read sizes and ids. video_pad: id of the video placeholder by the tokenizer, for a config that omits it."""
    text = text_settings(tree)
    hidden, heads = _count(text, "hidden_size"), _count(text, "num_attention_heads")
    kv_heads = _count(text, "num_key_value_heads", heads)
    head_size = _count(text, "head_dim", family.head_size or hidden // heads)
    if heads % kv_heads:
        raise ValueError(f"{heads} attention heads cannot share num_key_value_heads={kv_heads}")
    return ModelConfig(
        family=family,
        layers=_count(text, "num_hidden_layers"),
        hidden=hidden,
        mlp=_count(text, "intermediate_size"),
        head_size=head_size,
        queries=head_size * heads,
        kv=head_size * kv_heads,
        vocabulary=_count(text, "vocab_size"),
        has_tied_embeddings=tree.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        image_token_id=_count(tree, "image_token_id", family.image_pad_id),
        video_token_id=_count(tree, "video_token_id", video_pad or family.video_pad_id),
        longest=_longest(text),
        vision=family.read_vision(tree["vision_config"]),
        experts=family.read_experts(text),
        linear=family.read_linear_attention(text),
    )


def _count(tree: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return a number above 0; a missing one or null is the default. Raises KeyError or ValueError, naming the key."""
    value = tree[key] if default is None else tree.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key}={value!r} is not a whole number above 0")
    return value


def _longest(text: Mapping[str, Any]) -> int | None:
    """Return the number of positions that a model was made for; None if it is not said, or scaled by its rope."""
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") if isinstance(rope, Mapping) else None
    longest = text.get("max_position_embeddings")
    return longest if isinstance(longest, int) and kind in (None, "default", "mrope") else None

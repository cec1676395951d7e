"""Qwen2-VL (arXiv:2409.12191): temporal patches on the time axis, and a vision tower without windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlsys.models.families.family import EVERYTHING, Family, TinyShape, VisionConfig


def read_vision(tree: Mapping[str, Any]) -> VisionConfig:
    """Return the tower's sizes; its `hidden_size` is that of the language model, its own width is `embed_dim`.

    A config omits values that equal the defaults of transformers.
    """
    width = tree["embed_dim"]
    return VisionConfig(
        depth=tree["depth"],
        hidden=width,
        mlp=int(width * tree.get("mlp_ratio", 4)),
        heads=tree.get("num_heads", 16),
        in_channels=tree.get("in_channels", 3),
        patch_size=tree.get("patch_size", 14),
        temporal_patch_size=tree.get("temporal_patch_size", 2),
        merge_size=tree.get("spatial_merge_size", 2),
        window_size=0,
        num_full_attention=tree["depth"],
        is_gated=False,
        has_norm_biases=True,
        tokens_per_second=None,
    )


def tiny_vision(shape: TinyShape) -> dict[str, Any]:
    """Return the `vision_config` of a tiny model."""
    return {
        "depth": shape.depth,
        "embed_dim": shape.hidden,
        "mlp_ratio": shape.mlp // shape.hidden,
        "num_heads": shape.heads,
        "hidden_size": shape.out_hidden,
    }


FAMILY = Family(
    model_type="qwen2_vl",
    title="Qwen2-VL",
    checkpoints=("2B", "7B", "72B"),
    supports=EVERYTHING,
    time_axis="temporal patches",
    tower_attention="within a temporal patch",
    image_pad="<|image_pad|>",
    video_pad="<|video_pad|>",
    image_pad_id=151655,
    video_pad_id=151656,
    never_sampled=("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    tower="model.visual.",
    projectors=("model.visual.merger.",),
    language_model="model.language_model.",
    read_vision=read_vision,
    tiny_vision=tiny_vision,
    model="Qwen2VLForConditionalGeneration",
    processor="Qwen2VLProcessor",
    image_processor="Qwen2VLImageProcessor",
    video_processor="Qwen2VLVideoProcessor",
)

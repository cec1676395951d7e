"""Qwen2.5-VL (arXiv:2502.13923): seconds on the time axis, and a vision tower with windowed attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlsys.models.families.family import EVERYTHING, Family, TinyShape, VisionConfig


def read_vision(tree: Mapping[str, Any]) -> VisionConfig:
    """Return the tower's sizes; a config omits values that equal the defaults of transformers."""
    return VisionConfig(
        depth=tree["depth"],
        hidden=tree["hidden_size"],
        mlp=tree["intermediate_size"],
        heads=tree.get("num_heads", 16),
        in_channels=tree.get("in_channels", 3),
        patch_size=tree.get("patch_size", 14),
        temporal_patch_size=tree.get("temporal_patch_size", 2),
        merge_size=tree.get("spatial_merge_size", 2),
        window_size=tree.get("window_size", 112),
        num_full_attention=len(tree.get("fullatt_block_indexes", (7, 15, 23, 31))),
        is_gated=True,
        has_norm_biases=False,
        tokens_per_second=tree.get("tokens_per_second", 4),
    )


def tiny_vision(shape: TinyShape) -> dict[str, Any]:
    """Return the `vision_config` of a tiny model."""
    return {
        "depth": shape.depth,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_heads": shape.heads,
        "window_size": 112,
        "out_hidden_size": shape.out_hidden,
        "fullatt_block_indexes": list(shape.full_attention_blocks),
        "tokens_per_second": 2,
    }


FAMILY = Family(
    model_type="qwen2_5_vl",
    title="Qwen2.5-VL",
    checkpoints=("3B", "7B", "32B", "72B"),
    supports=EVERYTHING,
    time_axis="seconds",
    tower_attention="within windows, in some blocks within a temporal patch",
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
    model="Qwen2_5_VLForConditionalGeneration",
    processor="Qwen2_5_VLProcessor",
    image_processor="Qwen2VLImageProcessor",
    video_processor="Qwen2VLVideoProcessor",
)

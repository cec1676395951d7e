"""Qwen3-VL (arXiv:2511.21631), dense: time stamps in the prompt, and features of several tower layers in the model.

The features of some blocks of the tower are added to the states of the first language layers at the visual tokens
("deepstack").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlsys.models.families.family import EVERYTHING, Family, TinyShape, VisionConfig, scaled_frames


def read_vision(tree: Mapping[str, Any]) -> VisionConfig:
    """Return the tower's sizes; a config omits values that equal the defaults of transformers."""
    return VisionConfig(
        depth=tree["depth"],
        hidden=tree["hidden_size"],
        mlp=tree["intermediate_size"],
        heads=tree.get("num_heads", 16),
        in_channels=tree.get("in_channels", 3),
        patch_size=tree.get("patch_size", 16),
        temporal_patch_size=tree.get("temporal_patch_size", 2),
        merge_size=tree.get("spatial_merge_size", 2),
        window_size=0,
        num_full_attention=tree["depth"],
        is_gated=False,
        has_norm_biases=True,
        tokens_per_second=None,
        num_positions=tree.get("num_position_embeddings", 2304),
        num_deepstack=len(tree.get("deepstack_visual_indexes", (8, 16, 24))),
        has_patch_bias=True,
    )


def tiny_vision(shape: TinyShape) -> dict[str, Any]:
    """Return the `vision_config` of a tiny model, with two blocks more, so that several can be read.

    Features that are added behind the last language layer would be read by no other token.
    """
    return {
        "depth": shape.depth + 2,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_heads": shape.heads,
        "out_hidden_size": shape.out_hidden,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": list(range(min(3, shape.layers - 1))),
    }


FAMILY = Family(
    model_type="qwen3_vl",
    title="Qwen3-VL",
    checkpoints=("2B", "4B", "8B", "32B"),
    supports=EVERYTHING,
    time_axis="stamps of seconds in the prompt; a temporal patch is an image of its own",
    tower_attention="within a temporal patch",
    image_pad="<|image_pad|>",
    video_pad="<|video_pad|>",
    image_pad_id=151655,
    video_pad_id=151656,
    never_sampled=("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    tower="model.visual.",
    projectors=("model.visual.merger.", "model.visual.deepstack_merger_list."),
    language_model="model.language_model.",
    read_vision=read_vision,
    tiny_vision=tiny_vision,
    model="Qwen3VLForConditionalGeneration",
    processor="Qwen3VLProcessor",
    image_processor="Qwen2VLImageProcessor",
    video_processor="Qwen3VLVideoProcessor",
    stamp="<{seconds:.1f} seconds>",
    stamped_between=("<|vision_start|>", "<|vision_end|>"),
    head_size=128,
    has_attention_biases=False,
    has_query_norms=True,
    # more query heads than the width holds, as in the published 4B
    tiny_text={
        "head_dim": 32,
        "num_attention_heads": 8,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    },
    tiny_processing=scaled_frames(16, patch_size=16, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]),
)

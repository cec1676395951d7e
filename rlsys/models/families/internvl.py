"""InternVL3.5 (arXiv:2508.18265) with a dense Qwen3: frames of one size, numbered in the prompt, and plain positions.

Checkpoints are those in transformers' layout, whose published names end with "-HF". An image is one tile of the size of
a frame: engine and learner do not cut it into several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlsys.models.families.family import EVERYTHING, Family, TinyProcessing, TinyShape, VisionConfig

MERGE = 2
TINY_SIDE = 56
LANGUAGE_MODEL = "qwen3"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def refusal(tree: Mapping[str, Any]) -> str:
    """Return why engine and learner would not compute the same with this config, "" if they do."""
    kind = (tree.get("text_config") or {}).get("model_type")
    if kind != LANGUAGE_MODEL:
        return f"text_config.model_type={kind!r} is not the supported {LANGUAGE_MODEL!r}"
    wanted = {"downsample_ratio": 1 / MERGE, "vision_feature_layer": -1, "vision_feature_select_strategy": "default"}
    for name, value in wanted.items():
        if tree.get(name, value) != value:
            return f"{name}={tree[name]!r} is not the supported {value!r}"
    vision = tree["vision_config"]
    fixed = {"use_absolute_position_embeddings": True, "use_mean_pooling": True, "use_mask_token": False}
    for name, is_on in fixed.items():
        if vision.get(name, is_on) is not is_on:
            return f"vision_config.{name}={vision[name]!r} is not the supported {is_on!r}"
    return ""


def _square(size: Any, name: str) -> int:  # noqa: ANN401 - a number, or height and width
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"vision_config.{name}={size!r} is not square")
    return int(sides.pop())


def read_vision(tree: Mapping[str, Any]) -> VisionConfig:
    """Return the tower's sizes; a config omits values that equal the defaults of transformers."""
    side, patch = _square(tree.get("image_size", 448), "image_size"), _square(tree.get("patch_size", 14), "patch_size")
    if side % (MERGE * patch):
        raise ValueError(f"vision_config.image_size={side} is not a multiple of {MERGE} patches of {patch} pixels")
    depth = tree.get("num_hidden_layers", 24)
    return VisionConfig(
        depth=depth,
        hidden=tree.get("hidden_size", 1024),
        mlp=tree.get("intermediate_size", 4096),
        heads=0,
        in_channels=tree.get("num_channels", 3),
        patch_size=patch,
        temporal_patch_size=1,
        merge_size=MERGE,
        window_size=0,
        num_full_attention=depth,
        is_gated=False,
        has_norm_biases=tree.get("norm_type", "layer_norm") == "layer_norm",
        tokens_per_second=None,
        num_positions=(side // patch) ** 2,
        has_patch_bias=True,
        side_px=side,
        has_class_token=True,
        is_scaled=True,
        has_attention_biases=tree.get("attention_bias", False),
        has_query_norms=tree.get("use_qk_norm", False),
        is_narrow=True,
    )


def tiny_vision(shape: TinyShape) -> dict[str, Any]:
    """Return the `vision_config` of a tiny model, whose frames are 4 x 4 patches.

    The scales of the blocks' branches are 1, so that what a block adds shows in the output.
    """
    return {
        "num_hidden_layers": shape.depth,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
        "image_size": [TINY_SIDE, TINY_SIDE],
        "patch_size": [14, 14],
        "attention_bias": True,
        "layer_scale_init_value": 1.0,
    }


_TINY_FRAMES = {
    "size": {"height": TINY_SIDE, "width": TINY_SIDE},
    "image_mean": list(MEAN),
    "image_std": list(STD),
}

FAMILY = Family(
    model_type="internvl",
    title="InternVL3.5",
    checkpoints=("1B", "2B", "4B", "8B", "14B", "38B"),
    supports=EVERYTHING,
    time_axis="none: frames are numbered in the prompt",
    tower_attention="within a frame",
    image_pad="<IMG_CONTEXT>",
    video_pad="<video>",
    image_pad_id=151671,
    video_pad_id=151679,
    never_sampled=("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    tower="model.vision_tower.",
    projectors=("model.multi_modal_projector.",),
    language_model="model.language_model.",
    read_vision=read_vision,
    tiny_vision=tiny_vision,
    model="InternVLForConditionalGeneration",
    processor="InternVLProcessor",
    image_processor="GotOcr2ImageProcessor",
    video_processor="InternVLVideoProcessor",
    blocks="layer",
    patch_embedding="vision_tower.embeddings.patch_embeddings.projection.weight",
    weight_prefixes=("model.", "language_model.", "vision_tower.", "multi_modal_projector.", "lm_head."),
    unchanged={"do_resize": False, "do_sample_frames": False, "crop_to_patches": False},
    stamp="Frame{number}: ",
    stamp_joint="\n",
    stamped_between=("<img>", "</img>"),
    image_between=("<img>", "</img>"),
    has_one_axis=True,
    refusal=refusal,
    other_layouts={
        "internvl_chat": 'use the checkpoint in the layout of transformers, whose published name ends with "-HF"'
    },
    head_size=128,
    has_attention_biases=False,
    has_query_norms=True,
    limits=(
        "an image is one tile of the size of a frame, whatever the processor's crop_to_patches says",
        "a dense Qwen3 as language model; other InternVL models are refused",
    ),
    tiny_text={
        "model_type": LANGUAGE_MODEL,
        "head_dim": 32,
        "num_attention_heads": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    tiny_config={"image_seq_length": (TINY_SIDE // 28) ** 2, "downsample_ratio": 1 / MERGE},
    tiny_processing=TinyProcessing(
        images={**_TINY_FRAMES, "crop_to_patches": True},
        videos={**_TINY_FRAMES, "do_sample_frames": False},
        both={"image_seq_length": (TINY_SIDE // 28) ** 2},
    ),
    tiny_tokens={
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    media_texts=("{{ '<IMG_CONTEXT>\\n' }}", "{{ '<video>\\n' }}"),
)

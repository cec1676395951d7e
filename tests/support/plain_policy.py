"""The reference for packing: Hugging Face's processors and forward pass, with one padded sequence per response."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.utils import parameters_to_vector
from transformers import PreTrainedModel

from learner.packing.rows import Row
from rlsys.models.model_config import read_model_config


def vision_arguments(row: Row, folder: Path) -> dict[str, torch.Tensor]:
    """Return the model's vision arguments for the row's clips, by Hugging Face's processors without resizing.

    A model that takes images and videos as one argument gets them in the order of the clips.
    """
    family = read_model_config(folder).family
    kinds = {"video": family.video_processor, "image": family.image_processor}
    processors = {kind: getattr(transformers, name).from_pretrained(folder) for kind, name in kinds.items()}

    def processed(kind: str, media: list[np.ndarray]) -> dict[str, torch.Tensor]:
        processor = processors[kind]
        return dict(processor(media, return_tensors="pt", **known(processor, family.unchanged)))

    videos = [clip.frames for clip in row.clips if clip.info.kind == "video"]
    images = [clip.frames[0] for clip in row.clips if clip.info.kind == "image"]
    if not family.has_one_axis:
        of_videos = processed("video", videos) if videos else {}
        return of_videos | (processed("image", images) if images else {})
    # one at a time, because videos of unequal length cannot be stacked
    found = [
        processed("video", [clip.frames])["pixel_values_videos"][0]
        if clip.info.kind == "video"
        else processed("image", [clip.frames[0]])["pixel_values"]
        for clip in row.clips
    ]
    return {"pixel_values": torch.cat(found)} if found else {}


def known(processor: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the settings that a processor has."""
    return {name: value for name, value in settings.items() if name in processor.valid_kwargs.__annotations__}


def plain_logprobs(model: PreTrainedModel, row: Row, folder: Path) -> list[torch.Tensor]:
    """Return the log-probs of each response, each behind a copy of its prompt and padded on the right."""
    num_prompt = len(row.prompt.prompt_ids)
    width = num_prompt + max(len(response.ids) for response in row.responses)
    size = len(row.responses)
    ids = torch.zeros(size, width, dtype=torch.long)
    mask = torch.zeros(size, width, dtype=torch.long)
    positions = torch.zeros(3, size, width, dtype=torch.long)
    for index, response in enumerate(row.responses):
        stop = num_prompt + len(response.ids)
        ids[index, :stop] = torch.from_numpy(np.concatenate([row.prompt.prompt_ids, response.ids]))
        mask[index, :stop] = 1
        positions[:, index, :num_prompt] = torch.from_numpy(row.prompt.position_ids)
        positions[:, index, num_prompt:stop] = row.prompt.next_position + torch.arange(len(response.ids))
    config = read_model_config(folder)
    if config.family.has_one_axis:  # there is one placeholder, and a position is a number
        ids[ids == config.video_token_id] = config.image_token_id
        positions = positions[0]
    vision = vision_arguments(row, folder)
    repeated = {name: torch.cat([tensor] * size) for name, tensor in vision.items()}
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, **repeated).logits.log_softmax(-1)
    return [
        logits[index, num_prompt - 1 : num_prompt - 1 + len(response.ids)]
        .gather(1, torch.from_numpy(response.ids).long()[:, None])
        .squeeze(1)
        for index, response in enumerate(row.responses)
    ]


def gradient(module: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    module.zero_grad()
    loss.backward()
    return parameters_to_vector(
        [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
    ).clone()

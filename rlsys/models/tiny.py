"""A model small enough to train on two cores, written as an ordinary checkpoint folder.

Architecture, tokenizer class, processors and file names are those of its family's published models; only
the sizes differ. Nothing is downloaded, and the same seed writes the same bytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, Qwen2Tokenizer
from transformers.utils.logging import disable_progress_bar

from rlsys.files import aside
from rlsys.models.families.family import Family, TinyShape
from rlsys.models.families.table import DEFAULT, FAMILIES, FamilyName, family_named

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    IM_START,
    IM_END,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_OF_RUST = re.compile(r"\(os error (\d+)\)")
# not special: decoding with skip_special_tokens must keep them, the reward parsers read them
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# the published template without its default system turn, which would double the length of a demo prompt
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE"
    "{% elif part['type'] == 'video' %}VIDEO"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("square", "circle", "triangle")
VERBS = ("appear", "vanish", "move")
COMMON_WORDS = "question which and first last end in of seconds video answer start time moment"

OPTION_LETTERS = ("(A)", "(B)", "(C)", "(D)")
BOX_STEP = 0.05
CORNERS = tuple(f"{mark}{BOX_STEP * step:.2f}" for mark in ("[", ",", "],[") for step in range(round(1 / BOX_STEP) + 1))
"""Corners of boxes on a grid of 0.05 with the punctuation before them, so that eight boxes are 34 tokens, not 150."""

Words = Literal["grounding", "all"]

MAX_POSITIONS = 8192
INITIALIZER_RANGE = 0.08  # the published value, 0.02, learns much later at this width


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    vision_depth: int
    full_attention_blocks: tuple[int, ...]
    hidden: int
    mlp: int
    layers: int
    heads: int  # head dim is 32 throughout: vLLM's CPU attention refuses 24


SIZES = {
    "demo": _Sizes(vision_depth=1, full_attention_blocks=(0,), hidden=128, mlp=256, layers=3, heads=4),
    "bench": _Sizes(vision_depth=2, full_attention_blocks=(1,), hidden=192, mlp=352, layers=4, heads=6),
    "wide": _Sizes(vision_depth=2, full_attention_blocks=(1,), hidden=512, mlp=1408, layers=12, heads=16),
}


def make_tiny(
    folder: Path,
    *,
    seed: int,
    size: Literal["demo", "bench", "wide"] = "demo",
    words: Words = "grounding",
    family: FamilyName = DEFAULT,
) -> None:
    """Write config, random fp32 weights, tokenizer and processors into `folder`.

    "demo" has 0.7 M parameters, "bench" 1.5 M, "wide" 34 M. words: see `make_tokenizer`.
    family: see `rlsys.models.families`. Torch's global random state is left as it was.
    Raises OSError, and leaves nothing, if the disk does not take a folder that is new.
    """
    if not Path(folder).exists():
        new = aside(Path(folder))  # a half-written folder must not look like a model
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            make_tiny(new, seed=seed, size=size, words=words, family=family)
            new.rename(folder)
        except Exception as error:
            shutil.rmtree(new, ignore_errors=True)
            if found := _OF_RUST.search(str(error)):  # safetensors and tokenizers raise errors of their own
                raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder)) from error
            raise
        return
    described = family_named(family)
    tokenizer = make_tokenizer(words, described)
    config = make_config(tokenizer, SIZES[size], described)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, described.model)(config)
        _fill_tables(model)
        _draw(model, described.tiny_ranges)
    model.generation_config = GenerationConfig(
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        do_sample=True,
        temperature=1.0,
    )
    disable_progress_bar()  # one small file needs no progress bar
    model.save_pretrained(folder)
    _turn(folder / "model.safetensors", described.transposed)
    _make_processor(tokenizer, described).save_pretrained(folder)


def _draw(model: torch.nn.Module, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Draw parameters evenly between bounds, by the ends of their names."""
    for name, parameter in model.named_parameters():
        for ending, (low, high) in ranges.items():
            if name.endswith(ending):
                parameter.data.uniform_(low, high)


def _turn(file: Path, endings: tuple[str, ...]) -> None:
    """Swap the last two axes of tensors by the endings of their names, as published checkpoints have them."""
    if endings:
        turned = {
            name: tensor.transpose(-2, -1).contiguous() if name.endswith(endings) else tensor
            for name, tensor in load_file(file).items()
        }
        save_file(turned, file, metadata={"format": "pt"})


def _fill_tables(model: torch.nn.Module) -> None:
    """Give random values to tables that transformers starts with zeros, whose rows would be equal."""
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=INITIALIZER_RANGE)


def chat_template(family: Family) -> str:
    """Return the chat template of a tiny model."""
    image, video = family.media_texts
    return _CHAT_TEMPLATE.replace("IMAGE", image).replace("VIDEO", video)


def make_tokenizer(words: Words = "grounding", family: Family = FAMILIES[DEFAULT]) -> Qwen2Tokenizer:
    """Return a byte-level BPE tokenizer with merges for the demo's wording, Qwen's special tokens and the tags.

    words: "grounding" covers the questions of `rlsys.demo.synthetic` with 384 entries, "all" those of
    `rlsys.demo.synthetic_tasks` with 448; there, option letters and box corners are one token each.
    Digits stay single (Qwen's own pre-tokenizer); any text can be encoded, byte by byte at worst.
    """
    wording = WORDINGS[words]
    published = Qwen2Tokenizer().backend_tokenizer
    learned = Tokenizer(models.BPE())
    learned.normalizer = published.normalizer
    learned.pre_tokenizer = published.pre_tokenizer
    learned.train_from_iterator(
        wording.corpus(),
        trainers.BpeTrainer(
            vocab_size=wording.vocabulary_size - len(SPECIAL_TOKENS) - len(family.tiny_tokens) - len(wording.added),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model = json.loads(learned.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token=END_OF_TEXT,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (IM_END, END_OF_TEXT)],
        chat_template=chat_template(family),
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        **({"model_specific_special_tokens": dict(family.tiny_tokens)} if family.tiny_tokens else {}),
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in wording.added])
    return tokenizer


def make_config(tokenizer: Qwen2Tokenizer, sizes: _Sizes, family: Family) -> PreTrainedConfig:
    """Return the family's configuration at the given sizes, with the token ids of `tokenizer`."""
    token_id = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.mlp,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "initializer_range": INITIALIZER_RANGE,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": token_id(END_OF_TEXT),
        "eos_token_id": token_id(IM_END),
        "pad_token_id": token_id(END_OF_TEXT),
        **family.tiny_text,
    }
    tower = TinyShape(
        depth=sizes.vision_depth,
        hidden=64,
        mlp=128,
        heads=4,
        full_attention_blocks=sizes.full_attention_blocks,
        out_hidden=sizes.hidden,
        layers=sizes.layers,
    )
    return AutoConfig.for_model(
        family.model_type,
        text_config=text,
        vision_config={**family.tiny_vision(tower), "initializer_range": INITIALIZER_RANGE},
        image_token_id=token_id(family.image_pad),
        video_token_id=token_id(family.video_pad),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
        **family.tiny_config,
    )


def _make_processor(tokenizer: Qwen2Tokenizer, family: Family) -> Any:  # noqa: ANN401 - another class for each family
    settings = family.tiny_processing
    return getattr(transformers, family.processor)(
        image_processor=getattr(transformers, family.image_processor)(**settings.images),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, family.video_processor)(**settings.videos),
        chat_template=chat_template(family),
        **settings.both,
    )


def _grounding_corpus() -> list[str]:
    """Return the texts that merges are learned from: the demo's sentences often, common words of prompts once."""
    questions = [f"When does the {c} {s} {v}?" for c, s, v in product(COLOURS, SHAPES, VERBS)]
    answers = [f"{c} {s}" for c, s in product(COLOURS, SHAPES)] * len(VERBS)
    return [
        *questions,
        *answers,
        *["user", "assistant", "1.5 to 3.0"] * len(questions),
        *(f" {word}" for word in COMMON_WORDS.split()),
    ]


def _mixture_corpus() -> list[str]:
    """Return the mixture's sentences, often enough that each word becomes a token, and common words once."""
    pairs = [f"{c} {s}" for c, s in product(COLOURS, SHAPES)]
    often = ("What happens?", "Which", "When", "Where", "user", "assistant", "1.5 to 3.0", "[(1.0, 2.5)]", "[0.4]]")
    return [
        *pairs * len(VERBS),
        *(f"When does the {pair} appear?" for pair in pairs),
        *(f"Where is the {pair}?" for pair in pairs),
        *(f"Something {colour} {verb}." for colour, verb, _ in product(COLOURS, ("moves", "appears"), SHAPES)),
        *[f"Which colour {rest}?" for rest in ("moves", "appears", "appears, and when")] * len(pairs),
        *often * len(pairs),
        *(f" {word}" for word in COMMON_WORDS.split()),
    ]


@dataclass(frozen=True, kw_only=True)
class _Wording:
    """The texts of a tokenizer and its size.

    vocabulary_size: of the whole tokenizer.  added: tokens that are split off a text before its merges.
    """

    vocabulary_size: int
    added: tuple[str, ...]
    corpus: Callable[[], list[str]]


WORDINGS: Mapping[Words, _Wording] = {
    "grounding": _Wording(vocabulary_size=384, added=TAGS, corpus=_grounding_corpus),
    "all": _Wording(
        vocabulary_size=448,
        added=(*TAGS, "<glue>", "</glue>", *OPTION_LETTERS, *CORNERS),
        corpus=_mixture_corpus,
    ),
}

"""Token ids and positions of prompts, computed once for the engine and the learner.

Neither torch nor transformers is imported, because building a prompt takes only text, ids and integer arithmetic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from rlsys.errors import UserError
from rlsys.models.chat import ChatTokenizer
from rlsys.models.model_config import ModelConfig, ModelFolderError, read_model_config
from rlsys.models.mrope import Grid, VisionTokens, engine_seconds_per_grid, mrope_positions
from rlsys.models.stamps import patch_times_s
from rlsys.tasks import table as tasks
from rlsys.types import ClipInfo, ImageSpec, Prompt, PromptItem

CONTEXT_TOKENS = 8  # shown on either side of a difference
LAST_STAMP_S = 99_999.9  # 27 hours
LAST_STAMPS = 4096  # of which the ids are kept


class PromptTooLong(UserError, ValueError):
    """An error for a prompt plus response above `model.max_model_len`; the message has the sum and the remedy."""


class PromptContractError(UserError, RuntimeError):
    """An error for an engine that saw another prompt than the one built; the message shows where they differ."""


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """The token count of a prompt and its longest response, against `max_model_len`.

    text: tokens of the chat template, the question and time stamps.  media: (kind, grid in patches) of each medium.
    """

    prompt_id: str
    text: int
    media: tuple[tuple[str, Grid], ...]
    merge_size: int
    max_tokens: int
    max_model_len: int

    @property
    def visual(self) -> int:
        """Number of visual tokens."""
        return sum(self._visual(grid) for _, grid in self.media)

    @property
    def total(self) -> int:
        """Number of tokens of the expanded prompt plus `max_tokens`."""
        return self.text + self.visual + self.max_tokens

    def check(self) -> None:
        """Raise PromptTooLong if the total is above `max_model_len`."""
        if self.total > self.max_model_len:
            raise PromptTooLong(
                f"{self.prompt_id}: {self}. A prompt with media is never cut: lower data.max_frames, data.max_pixels "
                f"or data.total_pixels (visual tokens) or the response (when sampled, rollout.max_tokens), "
                f"or raise model.max_model_len to {self.total}."
            )

    def _visual(self, grid: Grid) -> int:
        return math.prod(grid) // self.merge_size**2

    def __str__(self) -> str:
        terms = [f"{self.text} text"]
        for kind, grid in self.media:
            patches = "x".join(map(str, grid))
            terms.append(f"{self._visual(grid)} visual ({kind}: {patches} patches / {self.merge_size**2})")
        terms.append(f"{self.max_tokens} response")
        sign = ">" if self.total > self.max_model_len else "<="
        return f"{' + '.join(terms)} = {self.total} tokens {sign} model.max_model_len={self.max_model_len}"


_PROBE = "What happens?"


class PromptBuilder:
    """A builder of prompts for the checkpoint in `model_path`.

    max_model_len, max_tokens: the budget of prompt plus response.
    dtype: the engine's number format, which decides how seconds are rounded (see `engine_seconds_per_grid`).
    Raises ModelFolderError if the folder has no tokenizer, chat template or config of a supported family.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        max_model_len: int,
        max_tokens: int,
        dtype: Literal["float32", "bfloat16"],
    ) -> None:
        folder = Path(model_path)
        self._chat = ChatTokenizer(folder)
        config = read_model_config(folder)
        self._vision, self._family = _vision_tokens(config), config.family
        self._between = _tokens_between(folder, config.family.stamped_between, self._chat)
        self._around_image = _tokens_between(folder, config.family.image_between, self._chat)
        self._stamp_ids = lru_cache(maxsize=LAST_STAMPS)(self._chat.encode)
        self._dtype = dtype
        self._max_model_len, self._max_tokens = max_model_len, max_tokens
        found = (self._chat.id_of(token) for token in config.family.never_sampled)
        pads = {self._vision.image_pad_id, self._vision.video_pad_id}
        self.banned_token_ids: tuple[int, ...] = tuple(sorted({token for token in found if token is not None} | pads))
        """Ids that must never be sampled, because a placeholder in a response has no pixels."""
        self.end_token_id: int = self._chat.end_token_id
        """Id of the token that ends a response."""
        self._check_template(folder)

    def _check_template(self, folder: Path) -> None:
        """Raise ModelFolderError for a template that does not show a medium once and the text with it."""
        for kind in ("video", "image"):
            turn = self._chat.user_turn([kind], _PROBE)
            ids = self._chat.encode(turn)
            found, wanted = [int(token) for token in ids[self._is_pad(ids)]], self._vision.pad_id(kind)
            if found != [wanted]:
                raise ModelFolderError(
                    f"{folder}: its chat template shows {self.decode(found)!r} for a {kind}, expected "
                    f"{self.decode([wanted])!r} (config.json: {kind}_token_id={wanted}) once; copy the template, "
                    "tokenizer and config of the model's instruction-tuned version."
                )
            if _PROBE not in turn:
                raise ModelFolderError(
                    f"{folder}: its chat template leaves out the text of a turn with a {kind}; use the template of the "
                    "model's instruction-tuned version."
                )

    def build(self, item: PromptItem, clips: Sequence[ClipInfo], max_tokens: int | None = None) -> Prompt:
        """Return the prompt of `item`, whose media were decoded to `clips`, in the same order.

        max_tokens: length of the longest response; None takes the builder's.
        Raises PromptTooLong with the token arithmetic, and ValueError if the clips or the question
        do not fit the item.
        """
        kinds = _kinds(item)
        if [clip.kind for clip in clips] != list(kinds):
            raise ValueError(f"{item.prompt_id}: media are {list(kinds)}, clips are {[clip.kind for clip in clips]}.")
        engine_ids = self._engine_ids(item)
        grids = [clip.grid_thw for clip in clips]
        seconds = [
            engine_seconds_per_grid(clip.second_per_grid_s, self._dtype, self._vision.temporal_patch_size)
            for clip in clips
        ]
        prompt_ids = self._expand(engine_ids, clips)
        visual = sum(map(self._vision.num_tokens, grids))
        self._count(item, prompt_ids.size - visual, grids, max_tokens).check()
        runs = [
            (run, each)
            for clip, each in zip(clips, seconds, strict=True)
            for run in self._vision.runs(clip.kind, clip.grid_thw)
        ]
        position_ids, next_position = mrope_positions(
            prompt_ids, [run for run, _ in runs], [each for _, each in runs], self._vision
        )
        return Prompt(
            engine_ids=engine_ids, prompt_ids=prompt_ids, position_ids=position_ids, next_position=next_position
        )

    def count_tokens(self, item: PromptItem, grids: Sequence[Grid], max_tokens: int | None = None) -> TokenCount:
        """Return the token count of `item` for media with these grids, which needs no decoded clip.

        A time stamp counts as many tokens as the longest, `LAST_STAMP_S`; `build` counts those that there are.
        """
        more = 0
        for kind, (time, _, _) in zip(_kinds(item), grids, strict=True):
            if kind == "image":
                more += len(self._around_image)
            elif self._family.stamp:
                texts = (self._stamp_text(index, LAST_STAMP_S) for index in range(time))
                more += sum(self._stamp_ids(text).size + len(self._between) for text in texts)
        return self._count(item, self._engine_ids(item).size - len(grids) + more, grids, max_tokens)

    def encode_response(self, text: str) -> np.ndarray:
        """Return the ids of a response of the assistant, i32 [R], including the end token."""
        return np.append(self._chat.encode(text), np.int32(self.end_token_id))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`, with special tokens written out."""
        return self._chat.decode(ids)

    def _engine_ids(self, item: PromptItem) -> np.ndarray:
        question = tasks.prompt_text(item, think=item.think, style=item.style)
        ids = self._chat.encode(self._chat.user_turn(_kinds(item), question, item.media_texts))
        wanted = [self._vision.pad_id(kind) for kind in _kinds(item)]
        found = [int(token) for token in ids[self._is_pad(ids)]]
        if found != wanted:
            raise ValueError(
                f"{item.prompt_id}: the prompt has placeholders {self.decode(found)!r} for media {list(_kinds(item))}. "
                "Either the chat template does not place media before the text, or the question itself contains a "
                f"placeholder; take it out: {question!r}"
            )
        return ids

    def _expand(self, engine_ids: np.ndarray, clips: Sequence[ClipInfo]) -> np.ndarray:
        parts, start = [], 0
        for place, clip in zip(np.flatnonzero(self._is_pad(engine_ids)), clips, strict=True):
            parts += [engine_ids[start:place], self._expanded(clip)]
            start = place + 1
        return np.concatenate([*parts, engine_ids[start:]])

    def _expanded(self, clip: ClipInfo) -> np.ndarray:
        """Return the ids that replace a clip's placeholder, i32."""
        pad = self._vision.pad_id(clip.kind)
        runs = [
            np.full(self._vision.num_tokens(run), pad, np.int32) for run in self._vision.runs(clip.kind, clip.grid_thw)
        ]
        if clip.kind == "image":
            return np.concatenate([self._around_image[:1], *runs, self._around_image[1:]]).astype(np.int32)
        if not self._family.stamp:
            return np.concatenate(runs)
        times_s, (before, after) = patch_times_s(clip, self._vision.temporal_patch_size), self._between
        parts = [
            # encoded alone, as vLLM does: no token spans a stamp and its neighbours
            [self._stamp_ids(self._stamp_text(index, time_s)), [before], run, [after]]
            for index, (time_s, run) in enumerate(zip(times_s, runs, strict=True))
        ]
        return np.concatenate([one for part in parts for one in part]).astype(np.int32)

    def _stamp_text(self, index: int, time_s: float) -> str:
        """Return the text before temporal patch number `index` of a video."""
        stamp = self._family.stamp.format(seconds=time_s, number=index + 1)
        return self._family.stamp_joint + stamp if index else stamp

    def _is_pad(self, ids: np.ndarray) -> np.ndarray:
        return (ids == self._vision.image_pad_id) | (ids == self._vision.video_pad_id)

    def _count(self, item: PromptItem, text: int, grids: Sequence[Grid], max_tokens: int | None) -> TokenCount:
        return TokenCount(
            prompt_id=item.prompt_id,
            text=text,
            media=tuple(zip(_kinds(item), grids, strict=True)),
            merge_size=self._vision.merge_size,
            max_tokens=self._max_tokens if max_tokens is None else max_tokens,
            max_model_len=self._max_model_len,
        )


def check_contract(
    prompt: Prompt, engine_prompt_ids: np.ndarray, decode: Callable[[Sequence[int] | np.ndarray], str]
) -> None:
    """Raise PromptContractError unless the engine saw exactly `prompt.prompt_ids`; it shows where they differ."""
    built, engine = prompt.prompt_ids, np.asarray(engine_prompt_ids)
    if np.array_equal(built, engine):
        return
    shared = min(built.size, engine.size)
    differs = built[:shared] != engine[:shared]
    first = int(np.argmax(differs)) if differs.any() else shared
    counts = Counter(built.tolist()), Counter(engine.tolist())
    uneven = [
        f"{decode([token])!r}: {counts[0][token]} built, {counts[1][token]} engine"
        for token in sorted(counts[0].keys() | counts[1].keys())
        if counts[0][token] != counts[1][token]
    ]
    raise PromptContractError(
        f"The engine saw another prompt than the one that was built: they differ from token {first} on "
        f"(lengths: built {built.size}, engine {engine.size}).\n"
        f"  built:  {_around(built, first, decode)}\n"
        f"  engine: {_around(engine, first, decode)}\n"
        f"  tokens in unequal number: {'; '.join(uneven[:CONTEXT_TOKENS]) or 'none, only their order differs'}\n"
        "A different number of placeholders means that the engine's processor resized or resampled the frames: "
        "it must run with do_resize and do_sample_frames off. Different text means another tokenizer in the engine."
    )


def _around(ids: np.ndarray, index: int, decode: Callable[[Sequence[int] | np.ndarray], str]) -> str:
    """Return the tokens around `index`, that one in >> <<; runs of equal tokens are shown once with their count."""

    def shown(part: np.ndarray) -> list[str]:
        runs = ((token, len(list(run))) for token, run in groupby(part.tolist()))
        return [f"{decode([token])!r}" + (f" x{length}" if length > 1 else "") for token, length in runs]

    before, after = shown(ids[:index]), shown(ids[index + 1 :])
    at = f">>{decode([int(ids[index])])!r}<<" if index < ids.size else ">>end<<"
    start = ["…"] if len(before) > CONTEXT_TOKENS else []
    end = ["…"] if len(after) > CONTEXT_TOKENS else []
    return " ".join([*start, *before[-CONTEXT_TOKENS:], at, *after[:CONTEXT_TOKENS], *end])


def _kinds(item: PromptItem) -> tuple[Literal["video", "image"], ...]:
    return tuple("image" if isinstance(spec, ImageSpec) else "video" for spec in item.media)


def _tokens_between(folder: Path, tokens: Sequence[str], chat: ChatTokenizer) -> tuple[int, ...]:
    """Return the ids of tokens that must be in the vocabulary, without those that are empty."""
    found = {token: chat.id_of(token) for token in tokens if token}
    if missing := [token for token, token_id in found.items() if token_id is None]:
        raise ModelFolderError(f"{folder}/tokenizer.json: it has no {missing[0]}; copy it from the model again.")
    return tuple(token_id for token_id in found.values() if token_id is not None)


def _vision_tokens(config: ModelConfig) -> VisionTokens:
    return VisionTokens(
        image_pad_id=config.image_token_id,
        video_pad_id=config.video_token_id,
        merge_size=config.vision.merge_size,
        temporal_patch_size=config.vision.temporal_patch_size,
        tokens_per_second=config.vision.tokens_per_second,
        has_stamps=bool(config.family.stamp),
        has_one_axis=config.family.has_one_axis,
    )

"""Tokenizer and chat template of a checkpoint folder, read without importing torch.

`transformers.AutoTokenizer` reads the same two files, but importing it loads torch: four seconds
and 300 MB that the driver of a run has no use for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from rlsys.files import require_regular
from rlsys.models.model_config import ModelFolderError, read_json

MAX_TEMPLATE_CHARACTERS = 1 << 18
"""Largest number of characters that a template may write around a turn's text; real ones write a few hundred."""

_LARGEST_OPERATION = 1 << 24


class ChatTokenizer:
    """A checkpoint's tokenizer with its chat template.

    Raises ModelFolderError when the folder has no fast tokenizer, chat template or end token.
    """

    def __init__(self, folder: Path) -> None:
        settings = read_json(folder, "tokenizer_config.json")
        if not (folder / "tokenizer.json").exists():
            raise ModelFolderError(
                f"{folder}/tokenizer.json is missing; save_pretrained of the model's AutoTokenizer writes it."
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception for a file that it cannot read
            raise ModelFolderError(f"{folder}/tokenizer.json: not a tokenizer ({error}); copy it again.") from error
        self._folder = folder
        try:
            self._template = _environment().from_string(_chat_template(folder, settings))
        except (TemplateError, OSError, UnicodeDecodeError, RecursionError) as error:
            raise ModelFolderError(
                f"{folder}: its chat template cannot be read ({error}); copy the model's own."
            ) from error
        end_token = settings.get("eos_token")
        if isinstance(end_token, dict):  # the format of older versions of transformers
            end_token = end_token.get("content")
        end_token_id = self.id_of(end_token) if isinstance(end_token, str) else None
        if end_token_id is None:
            raise ModelFolderError(
                f"{folder}/tokenizer_config.json: eos_token={end_token!r} is not a token of "
                "tokenizer.json; copy both files from the model again."
            )

        self.end_token_id: int = end_token_id

    def id_of(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary; None if it has no such token."""
        return self._tokenizer.token_to_id(token)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, i32 [T]. Special tokens written out in it become their ids; none is added."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `ids`, with special tokens written out."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)

    def user_turn(self, kinds: Sequence[str], text: str, before: Sequence[str] = ()) -> str:
        """Return the text of a conversation with one user turn, media before `text`, up to the assistant's reply.

        before: what is said immediately before each medium, "" for nothing; () if nothing before any of them.
        """
        content: list[dict[str, str]] = []
        for kind, said in zip(kinds, before or [""] * len(kinds), strict=True):
            content += [*([{"type": "text", "text": said}] if said else []), {"type": kind}]
        content.append({"type": "text", "text": text})
        room = MAX_TEMPLATE_CHARACTERS + len(text) + sum(map(len, before))
        parts: list[str] = []
        try:
            for part in self._template.generate(
                messages=[{"role": "user", "content": content}], add_generation_prompt=True
            ):
                parts.append(part)
                if (room := room - len(part)) < 0:
                    raise TemplateError(f"it writes more than {MAX_TEMPLATE_CHARACTERS} characters around the text")
        except Exception as error:  # noqa: BLE001 - a template is a program, and can fail with anything
            raise ModelFolderError(
                f"{self._folder}: its chat template fails on a turn of {len(content)} parts: "
                f"{str(error) or type(error).__name__}; use the template of the model's instruction-tuned version."
            ) from error
        return "".join(parts)


def _chat_template(folder: Path, settings: dict[str, Any]) -> str:
    """Return the chat template, from the three places where transformers has kept it, newest first."""
    if (folder / "chat_template.jinja").exists():
        require_regular(folder / "chat_template.jinja")
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    legacy = read_json(folder, "chat_template.json") if (folder / "chat_template.json").exists() else settings
    if not isinstance(legacy.get("chat_template"), str):
        raise ModelFolderError(f"{folder} has no chat template; put the model's own into chat_template.jinja.")
    return legacy["chat_template"]


def _environment() -> ImmutableSandboxedEnvironment:
    # transformers renders chat templates with these settings; different white space would give different tokens
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlocks])
    environment.globals["raise_exception"] = _refuse
    return environment


_SIZES: Mapping[str, Callable[[Sequence[int]], int]] = {
    "+": sum,
    "*": math.prod,
    "**": lambda pair: abs(pair[0]).bit_length() * abs(pair[1]),  # in bits
}


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no operator makes a text or a number that fills the memory."""

    intercepted_binops = frozenset(("+", "*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        sizes = [len(one) if isinstance(one, str | list | tuple) else one for one in (left, right)]
        if all(isinstance(size, int) for size in sizes):
            made = _SIZES[operator](sizes)
            if made > _LARGEST_OPERATION and (operator == "**" or sizes != [left, right]):
                raise TemplateError(f"its operator {operator} makes something too large")
        return super().call_binop(context, operator, left, right)


def _refuse(message: str) -> None:
    raise TemplateError(message)


class _GenerationBlocks(Extension):
    """The Jinja block `{% generation %}…{% endgeneration %}`, which marks the assistant's text and renders as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

"""The base of all sections of a config."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, get_args
from unicodedata import category

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from rlsys.errors import UserError
from rlsys.urls import masked_url

LARGEST = 10**15
"""Largest number in a config: databases and arrays take no integer above 9e18, and no quantity comes near."""
LONGEST_S = 10**8
"""Largest number of seconds in a config, three years: clocks and timers overflow at longer ones."""
_NOTHING = ("none", "NONE", "nil", "Nil", "NIL")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/{1,2}(?=[^/])")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")


class ConfigError(UserError, ValueError):
    """An error for an invalid config; the message names the file, the field and the remedy."""


class Part(BaseModel):
    """A section of a config: unknown keys and infinite numbers are errors, and instances are immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_surprising_conversions(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject surprising conversions of pydantic: true (or YAML's yes) to 1, and "" to the current folder."""
        name = str(info.field_name)
        kinds = set(_leaves(cls.model_fields[name].annotation))
        if isinstance(value, str):
            _check_text(value, kinds)
        if {int, float} & kinds and bool not in kinds:
            for found in _leaf_values(value):
                if isinstance(found, bool):
                    raise ValueError(f"expected a number, not {str(found).lower()}")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _numbers_are_possible(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject what no clock, database or array can hold, where the field has no bound of its own."""
        is_duration = str(info.field_name).endswith("_s")
        if isinstance(value, int | float) and abs(value) > (LONGEST_S if is_duration else LARGEST):
            most = f"{LONGEST_S:.0e} seconds" if is_duration else f"{LARGEST:.0e}"
            raise ValueError(f"{value:.3g} is above {most}, the largest number that is possible here; lower it")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _paths_are_expanded(cls, value: Any) -> Any:
        return Path(expanded(str(value))) if isinstance(value, Path) else value


def _leaves(kind: object) -> Iterator[object]:
    """Yield the types of the values in a type: of `dict[str, tuple[float, ...]] | None` str, float and NoneType."""
    if not (inner := get_args(kind)):
        yield kind
    for one in inner:
        yield from _leaves(one)


def _leaf_values(value: object) -> Iterator[object]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += one
        else:
            yield one


_UNFIT = ("Cc", "Cs")
"""Unicode categories of characters that no text needs: controls and surrogates."""


def _check_text(text: str, kinds: Collection[object]) -> None:
    """Raise ValueError for a text that cannot be written or logged, or that cannot be meant as one of `kinds`."""
    if Path in kinds and not text.strip():
        raise ValueError("an empty path; write . for the current folder")
    if Path in kinds and (scheme := _SCHEME.match(text)) and scheme[1] != "hf":
        raise ValueError(
            f"{masked_url(text)} is a URL, where a path is expected; give a folder or file of this machine, or hf://…"
        )
    if type(None) in kinds and text in _NOTHING:
        raise ValueError(f"{text} is plain text in YAML; write null for no value")
    if unfit := next((sign for sign in text if category(sign) in _UNFIT and sign not in "\t\n"), ""):
        named = "a NUL character" if unfit == "\0" else f"the character U+{ord(unfit):04X}"
        raise ValueError(f"{masked_url(text)!r} contains {named}, which cannot be written or shown; remove it")


def expanded(path: str) -> str:
    """Expand `~`, `~user`, `$NAME` and `${NAME}` in a path. Raises ValueError if there is no such user or variable."""
    for braced, plain in _VARIABLE.findall(path):
        if (name := braced or plain) not in os.environ:
            raise ValueError(f"{path}: the environment variable {name} is not set; set it, or write the full path")
    try:
        return str(Path(_VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], path)).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}; write the full path") from error

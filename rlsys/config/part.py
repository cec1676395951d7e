"""The base of all sections of a config."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from rlsys.errors import UserError

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
        kind = cls.model_fields[str(info.field_name)].annotation
        kinds = {kind, *get_args(kind)}
        if value == "" and Path in kinds:
            raise ValueError("an empty path; write . for the current folder")
        if isinstance(value, bool) and {int, float} & kinds:
            raise ValueError(f"expected a number, not {str(value).lower()}")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _paths_are_expanded(cls, value: Any) -> Any:
        return Path(expanded(str(value))) if isinstance(value, Path) else value


def expanded(path: str) -> str:
    """Expand `~`, `~user`, `$NAME` and `${NAME}` in a path. Raises ValueError if there is no such user or variable."""
    if "\0" in path:
        raise ValueError(f"{path!r} contains a NUL character, which is not allowed in a path")
    for braced, plain in _VARIABLE.findall(path):
        if (name := braced or plain) not in os.environ:
            raise ValueError(f"{path}: the environment variable {name} is not set; set it, or write the full path")
    try:
        return str(Path(_VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], path)).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}; write the full path") from error

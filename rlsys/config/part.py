"""What all sections of a config have in common."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from rlsys.errors import UserError

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")


class ConfigError(UserError, ValueError):
    """A config that cannot run; the message says which field of which file, and the remedy."""


class Part(BaseModel):
    """A section: unknown keys and infinite numbers are errors, and nothing changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_riddles(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes true, and with it YAML's yes, as the number 1, and "" as the current folder."""
        kind = cls.model_fields[str(info.field_name)].annotation
        kinds = {kind, *get_args(kind)}
        if value == "" and Path in kinds:
            raise ValueError("an empty path; write . for the current folder")
        if isinstance(value, bool) and {int, float} & kinds:
            raise ValueError(f"a number belongs here, not {str(value).lower()}")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _paths_are_expanded(cls, value: Any) -> Any:
        return Path(expanded(str(value))) if isinstance(value, Path) else value


def expanded(path: str) -> str:
    """The path with `~`, `~user`, `$NAME` and `${NAME}` filled in. Raises ValueError where there is no such value."""
    if "\0" in path:
        raise ValueError(f"{path!r} holds a NUL character, which no path can")
    for braced, plain in _VARIABLE.findall(path):
        if (name := braced or plain) not in os.environ:
            raise ValueError(f"{path}: the environment variable {name} is not set; set it, or write the path out")
    try:
        return str(Path(_VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], path)).expanduser())
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}; write the path out") from error

"""What a step is given, and what it reports. Imports nothing heavy: the parent process uses it too."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

GIB = 1 << 30


class Skipped(Exception):
    """A step cannot run here; the message says what it needs."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What a step is given.

    device: "cuda", or "cpu" for toy sizes.  scratch: an empty folder for models, with room for 20 GB on a GPU; it is
    deleted after the step.  out: of the report; a run's folder stays there.
    config, overrides: of the run that `--full` makes, as `rlsys train` takes them; "" for none.
    peak_tflops: of one GPU, dense bf16; 0 where it is not known.
    """

    device: str
    scratch: Path
    out: Path
    config: str = ""
    overrides: tuple[str, ...] = ()
    peak_tflops: float = 0.0

    @property
    def is_toy(self) -> bool:
        return self.device == "cpu"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of the report. limit: the bound that it was held against, "" for none.  is_ok: whether it keeps it."""

    name: str
    value: float | str
    unit: str = ""
    limit: str = ""
    is_ok: bool = True

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        limit = f"  ({self.limit}{'' if self.is_ok else ': NO'})" if self.limit else ""
        return f"{self.name}: {value} {self.unit}".rstrip() + limit


def found(name: str, value: float | str, unit: str = "") -> Figure:
    """A figure without a bound."""
    return Figure(name=name, value=value, unit=unit)


def at_most(name: str, value: float, limit: float, unit: str = "") -> Figure:
    """A figure that must not exceed `limit`; NaN does."""
    return Figure(name=name, value=value, unit=unit, limit=f"at most {limit:.4g}", is_ok=value <= limit)


def at_least(name: str, value: float, limit: float, unit: str = "") -> Figure:
    """A figure that must reach `limit`; NaN does not."""
    return Figure(name=name, value=value, unit=unit, limit=f"at least {limit:.4g}", is_ok=value >= limit)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a step ended. status: ok, failed, timed out or skipped.  error: why, "" for ok."""

    step: str
    status: str
    seconds: float
    error: str
    figures: tuple[Figure, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what the report says; JSON has no NaN and no infinity, so they are texts in it."""
        found = asdict(self)
        for figure in found["figures"]:
            if isinstance(figure["value"], float) and not math.isfinite(figure["value"]):
                figure["value"] = str(figure["value"])
        return found


def read_lines(path: Path) -> tuple[tuple[Figure, ...], str, str]:
    """Return what a step's process has written: its figures, its error, and why it was skipped ("" for neither)."""
    figures, error, skipped = [], "", ""
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            figures += [Figure(**entry["figure"])] if "figure" in entry else []
            error, skipped = entry.get("error", error), entry.get("skipped", skipped)
        except (ValueError, TypeError, AttributeError):
            continue  # the process was killed while it wrote the line, or the disk was full
    return tuple(figures), error, skipped

"""Section `evaluation`: held-out rows, data sets with their protocols, and what answers their rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlsys.config.data import RowSource
from rlsys.config.part import Part
from rlsys.urls import has_secret, why_not_http

Control = Literal["other_video", "text_only", "random_window", "oracle_window", "one_round_equal_tokens"]
"""How rows are answered once more: with the video of another question or without, to see what the video is worth; with
a second look at a random part or at the true one, to see what the clue is worth; in one round with as many visual
tokens as several rounds have, to see what the rounds are worth."""
WINDOWS: tuple[Control, ...] = ("random_window", "oracle_window")
"""Controls of a second look."""
_ROUTES = ("/chat/completions", "/completions", "/models")
OF_ROUNDS: tuple[Control, ...] = (*WINDOWS, "one_round_equal_tokens")
"""Controls of rows that are answered round by round."""


class EvaluationSet(RowSource):
    """A data set to evaluate on. What it leaves unset is as in section `data`."""

    protocols: tuple[str, ...] = ()
    """Protocols that score the answers, the first of them for the headline; () uses those of the format."""
    num_prompts: int = Field(default=0, ge=0)
    """Number of rows to evaluate, from the first; 0 uses all. A figure from fewer rows is comparable with none."""


class EndpointConfig(Part):
    """The settings of an OpenAI-compatible endpoint that answers in place of the run's own actors."""

    url: str | None = None
    """Base URL, such as http://host:8000/v1; null lets the actors answer. The address of a route below it, such as
    …/v1/chat/completions, means its base, and an address without a path means …/v1."""
    model: str | None = None
    """Name of the served model; null if the endpoint serves one only."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key; if it is unset, none is sent."""
    frames: Literal["video", "images", "file"] = "video"
    """How clips are sent. "video": the frames that the actors would see, as a video with their times; vLLM reads it if
    it was started with --trust-request-mm-kwargs. "images": the same frames as single images, each after its time,
    which any server reads. "file": a file:// URL of the video, which the server samples by its own rules; it must see
    the same folder."""
    encoding: Literal["png", "jpeg"] = "png"
    """Encoding of frames; png is exact, jpeg a tenth of the size."""
    concurrency: int = Field(default=16, ge=1)
    """Number of requests in flight."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Time limit of one request, in seconds."""

    @field_validator("url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        value = value.strip()
        if problem := why_not_http(value):
            raise ValueError(f"an endpoint is an http or https URL, such as http://host:8000/v1; this {problem}")
        if has_secret(value):
            raise ValueError(
                "a URL with a password would end up in records; put the key in evaluation.endpoint.api_key_env"
            )
        for route in _ROUTES:
            value = value.rstrip("/").removesuffix(route)
        return value if urlsplit(value).path.strip("/") else f"{value.rstrip('/')}/v1"


class EvaluationConfig(Part):
    """The settings of evaluation: on held-out rows of one file, and on data sets by their published protocols."""

    annotations: Path | None = None
    """Held-out annotation file in `data.format`, scored by the reward servers before and after training; null skips
    it."""
    videos: Path | None = None
    """Folder of the held-out videos; null uses `data.videos`."""
    num_prompts: int = Field(default=0, ge=0)
    """Number of rows to evaluate, from the first; 0 uses all."""
    num_samples: int = Field(default=1, ge=1)
    """Number of responses per prompt when sampling at temperature 1. `rlsys eval` samples only if it is above 1, for
    pass@k and the majority."""
    sets: tuple[EvaluationSet, ...] = ()
    """Data sets that `rlsys eval` measures by their published protocols, and `rlsys train` every `every_steps`
    steps."""
    every_steps: int = Field(default=0, ge=0)
    """Number of steps between evaluations on `sets` in a training run, after the last one too; 0 never."""
    best: str | None = None
    """Metric "SET/METRIC" of `sets`, such as charades_sta/miou, whose best checkpoint is kept and marked in MLflow;
    null keeps the newest only."""
    controls: tuple[Control, ...] | None = None
    """Controls of `sets`: "other_video" and "text_only" answer rows once more without what they are about;
    "random_window" and "oracle_window" look a second time at a random part as long as the clue, or at the true one, and
    "one_round_equal_tokens" asks once with as many visual tokens as the first 2, 3, … rounds together
    (`perception.rounds` above 1). null: all that apply in `rlsys eval`, the last one if `model.max_model_len` has room
    for it, and none in a training run."""
    control_prompts: int = Field(default=200, ge=0)
    """Number of rows for controls, evenly spaced over the set; 0 uses all."""
    page_rows: int = Field(default=60, ge=0)
    """Number of rows of a set that the report page shows with their frames, evenly spaced; others have none."""
    endpoint: EndpointConfig = EndpointConfig()

    @model_validator(mode="after")
    def _sets_agree(self) -> EvaluationConfig:
        names = Counter(one.given_name for one in self.sets)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"evaluation.sets: {', '.join(repeated)} is the name of several sets; give each its own.")
        if self.best is not None and self.best.partition("/")[0] not in names:
            raise ValueError(
                f"evaluation.best={self.best} must begin with the name of a set and a slash; the sets are "
                f"{', '.join(names) or 'none (evaluation.sets)'}."
            )
        if self.every_steps and "one_round_equal_tokens" in (self.controls or ()):
            raise ValueError(
                f"evaluation.controls has one_round_equal_tokens with evaluation.every_steps={self.every_steps}: its "
                "clips are larger than the engines of a training run are started for; leave it to `rlsys eval`, which "
                "takes it with evaluation.controls=null."
            )
        if self.every_steps and not self.sets:
            raise ValueError(
                f"evaluation.every_steps={self.every_steps} has nothing to evaluate; list evaluation.sets."
            )
        return self

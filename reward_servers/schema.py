"""The JSON that client and reward servers exchange: one POST of rows, one reply per row."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from rlsys.config.answers import Reading
from rlsys.config.run import ScoreSettings
from rlsys.types import Status

MAX_ROWS = 1024
"""Most rows of one request."""
MAX_BODY_BYTES = 8 << 20
"""Most bytes of one request's body; a group of 8 long responses is about 100 kB."""
MAX_TEXT_CHARS = 1 << 20
"""Most characters of one response."""
MAX_ID_CHARS = 512
"""Most characters of a rollout's id."""
MAX_TIMEOUT_S = 3600.0
SLOW_HEADER = "x-rlsys-slow-scorers"
"""Header of an answer that names the slow custom scorers, as JSON: score name -> mean seconds of a call."""


class Wire(BaseModel):
    """Base of all messages: frozen, strict, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ScoreRow(Wire):
    """One response to score.

    rollout_id comes back in the reply.  truth: the annotation, in the task's own shape.
    think: whether the prompt requested <think>…</think>, which the format score then requires.
    scores: names of the scores to compute; null computes the task's default scores.
    question, num_tokens (of the response), duration_s (of the clip): for the scores that need them.
    options: of a multiple-choice prompt, as "(A) …" or "A. …", or in order; the lenient reading needs them.
    """

    rollout_id: str = Field(min_length=1, max_length=MAX_ID_CHARS)
    task: str = Field(max_length=256)
    text: str = Field(max_length=MAX_TEXT_CHARS)
    truth: Any
    think: bool = True
    scores: list[str] | None = Field(default=None, max_length=64)
    question: str = Field(default="", max_length=MAX_TEXT_CHARS)
    num_tokens: int | None = Field(default=None, ge=0)
    duration_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    options: tuple[str, ...] = Field(default=(), max_length=64)


class RequestSettings(ScoreSettings):
    """The numbers that scorers need, and how answers are read."""

    reading: Reading = "paper"


class ScoreRequest(Wire):
    """Rows to score, and how.

    timeout_s: after it the caller no longer waits, and rows without a verdict come back as "infra".
    """

    rows: list[ScoreRow] = Field(min_length=1, max_length=MAX_ROWS)
    settings: RequestSettings = RequestSettings()
    timeout_s: float = Field(default=60.0, gt=0, le=MAX_TIMEOUT_S)


class ScorerFault(Wire):
    """What a custom scorer did instead of returning a number in [0, 1].

    kind: "raised KeyError", "returned NoneType", "ended its process", "could not start" or "late" (not back at the
    deadline).  details: the traceback, or a sentence.
    """

    scorer: str
    kind: str
    details: str


class ScoreReply(Wire):
    """The scores of one response; `scores` is empty unless `status` is "ok". See `rlsys.types.Score`.

    fault: of the custom scorer for which the row has no scores.
    """

    rollout_id: str
    status: Status
    scores: dict[str, Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]]
    reason: str
    evidence: Any = None
    seconds: float = 0.0
    fault: ScorerFault | None = None


REPLIES: TypeAdapter[list[ScoreReply]] = TypeAdapter(list[ScoreReply])

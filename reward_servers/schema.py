"""The JSON that client and reward servers exchange: a list of rows each way, one POST per group."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from rlsys.types import Status

MAX_ROWS = 1024
"""Most rows of one request."""
MAX_BODY_BYTES = 8 << 20
"""Most bytes of one request's body; a group of 8 long responses is about 100 kB."""


class ScoreRequest(BaseModel):
    """One response to score.

    rollout_id comes back in the reply.  truth: the annotation, in the task's own shape.
    think: whether the prompt asked for <think>…</think>, which the format score then demands.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rollout_id: str = Field(min_length=1, max_length=512)
    task: str = Field(max_length=256)
    text: str
    truth: Any
    think: bool = True


class ScoreReply(BaseModel):
    """What one response is worth; `scores` is empty unless `status` is "ok". See `rlsys.types.Score`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    rollout_id: str
    status: Status
    scores: dict[str, Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]]
    reason: str
    evidence: Any = None
    seconds: float = 0.0


REQUESTS: TypeAdapter[list[ScoreRequest]] = TypeAdapter(
    Annotated[list[ScoreRequest], Field(min_length=1, max_length=MAX_ROWS)]
)
REPLIES: TypeAdapter[list[ScoreReply]] = TypeAdapter(list[ScoreReply])

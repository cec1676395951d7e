"""The sections of a config about rewards: scores, the servers, and the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, field_validator, model_validator

from rlsys.config.part import Part, expanded
from rlsys.urls import has_secret, masked_url


class ScoreSettings(Part):
    """Numbers that scorers use; they travel with every request, so one service can serve many jobs."""

    model_config = ConfigDict(allow_inf_nan=True)  # .inf is the edge of a last tier that always holds

    length_window_tokens: tuple[int, int] = (320, 512)
    """Fewest and most response tokens that earn `length_bonus` (Video-R1's values)."""
    relative_error_tiers: tuple[tuple[float, float], ...] = ()
    """(relative error below, score), the first that holds counts; () is the mean relative accuracy of VSI-Bench."""
    recall_tiers: tuple[tuple[float, float], ...] = ()
    """(event recall of at least, reward), the highest that holds counts; () rewards the recall itself."""

    @model_validator(mode="after")
    def _scores_are_shares(self) -> ScoreSettings:
        fewest, most = self.length_window_tokens
        if not 0 <= fewest <= most:
            raise ValueError(
                f"reward.settings.length_window_tokens={list(self.length_window_tokens)}: write [fewest, most]."
            )
        for name in ("relative_error_tiers", "recall_tiers"):
            tiers = getattr(self, name)
            if not all(edge >= 0 and 0 <= score <= 1 for edge, score in tiers):
                raise ValueError(
                    f"reward.settings.{name}={[list(tier) for tier in tiers]}: an edge is 0 or more, a score 0 to 1."
                )
        return self


class JudgeConfig(Part):
    """The judge of captions and reasoning. Without `urls` and `serve_model` sentence embeddings stand in."""

    urls: tuple[str, ...] = ()
    """Base URLs of OpenAI-compatible endpoints, such as http://host:8000/v1; a failed call goes to another one."""
    model: str = "Qwen/Qwen2.5-72B-Instruct"
    """Model name that the endpoints serve."""
    api_key_env: str = "RLSYS_JUDGE_API_KEY"
    """Environment variable that holds the endpoints' key; unset sends none."""
    serve_model: str | None = None
    """Model folder or name that Ray Serve LLM serves beside the judge, as `model`; null uses `urls`."""
    serve_tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share the served model's weights."""
    serve_replicas: int = Field(default=1, ge=1)
    """Replicas of the served model."""
    serve_max_model_len: int = Field(default=8192, ge=256)
    """Tokens of prompt plus verdict of the served model."""
    min_replicas: int = Field(default=1, ge=1)
    """Fewest replicas of the judge (not of its model)."""
    max_replicas: int = Field(default=4, ge=1)
    """Most replicas of the judge."""
    target_ongoing_requests: int = Field(default=16, ge=1)
    """Requests that a replica of the judge works on before another is started."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Requests that may wait for a replica; more are refused with 429 and Retry-After."""
    max_concurrency: int = Field(default=32, ge=1)
    """Calls in flight at one endpoint, over all replicas and jobs."""
    requests_per_minute: int = Field(default=0, ge=0)
    """Calls that one endpoint gets per minute; 0 is no limit."""
    tokens_per_minute: int = Field(default=0, ge=0)
    """Prompt and answer tokens that one endpoint gets per minute; 0 is no limit."""
    call_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds one call may take."""
    max_attempts: int = Field(default=4, ge=1)
    """Calls made for one answer, the first included."""
    max_output_tokens: int = Field(default=2048, ge=32)
    """Most tokens of one answer of the model."""
    hedge: bool = False
    """Send a call again, to another endpoint where there is one, once it takes longer than the 95th percentile."""
    breaker_failures: int = Field(default=5, ge=1)
    """Failures in a row after which an endpoint is left alone."""
    breaker_open_s: float = Field(default=10.0, gt=0)
    """Seconds until an endpoint that was left alone is tried with one call."""
    cache_path: Path | None = None
    """SQLite file of verdicts; null keeps it in the user's cache folder."""
    embedding_threshold: float = Field(default=0.8, gt=0, le=1)
    """Cosine similarity from which the embedding judge calls an event recalled."""

    @field_validator("serve_model")
    @classmethod
    def _folder_is_expanded(cls, model: str | None) -> str | None:
        return expanded(model) if model is not None and model.startswith(("~", "$")) else model

    @model_validator(mode="after")
    def _one_source(self) -> JudgeConfig:
        if self.urls and self.serve_model:
            raise ValueError(
                "reward.judge.urls and reward.judge.serve_model are both set: the first uses running endpoints, "
                "the second starts one; keep one of them."
            )
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"reward.judge.min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}; "
                "lower the first."
            )
        return self


class RewardConfig(Part):
    url: str | None = None
    """Base URL of running reward servers; null starts them on the run's own cluster."""
    host: str = "127.0.0.1"
    """Address the run's own reward servers bind to."""
    port: int = Field(default=0, ge=0, le=65535)
    """Their port; 0 takes a free one."""
    min_replicas: int = Field(default=1, ge=1)
    """Fewest replicas of the rule scorers."""
    max_replicas: int = Field(default=4, ge=1)
    """Most replicas of the rule scorers."""
    target_ongoing_requests: int = Field(default=64, ge=1)
    """Requests that a replica has open, waiting for the judge included, before another replica is started."""
    max_queued_requests: int = Field(default=512, ge=1)
    """Requests that may wait for a replica; more are refused with 429 and Retry-After."""
    token_env: str = "RLSYS_REWARD_TOKEN"
    """Environment variable that holds the bearer token; unset means no token."""
    weights: dict[
        str, dict[str, Annotated[float, Field(allow_inf_nan=True)]]
    ] = {}  # check_weights lists all wrong ones
    """Task -> score -> weight, in place of the task table's weights (1 each); naming an optional score turns it on."""
    scorers: dict[str, str] = {}
    """Score name -> `module:function` of your own, importable where the servers run; turn it on in `weights`."""
    settings: ScoreSettings = ScoreSettings()
    """Numbers that scorers use."""
    judge: JudgeConfig = JudgeConfig()
    """The judge of captions and reasoning."""
    min_valid: int = Field(default=2, ge=2)
    """Fewest scored rollouts for a group to be trained on."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds one scoring request may take, retries included."""
    failure_window: int = Field(default=64, ge=1)
    """Rollouts over which the share of failed scores is taken."""
    max_failure_frac: float = Field(default=0.5, gt=0, le=1)
    """Share of rollouts in the window lost to trouble of the servers above which the run pauses; 1 never pauses."""
    max_pause_s: float = Field(default=3600.0, ge=0)
    """Seconds a pause may last before the run ends with an error; 0 waits for ever."""

    @field_validator("url")
    @classmethod
    def _shows_no_secret(cls, url: str | None) -> str | None:
        if url is not None and has_secret(url):
            raise ValueError(
                f"reward.url={masked_url(url)} holds a secret, and URLs are stored and logged; give the token in the "
                "environment variable that reward.token_env names."
            )
        return url

    @model_validator(mode="after")
    def _replicas_agree(self) -> RewardConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"reward.min_replicas={self.min_replicas} is above reward.max_replicas={self.max_replicas}; "
                "lower the first."
            )
        return self

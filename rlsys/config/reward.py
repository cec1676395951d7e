"""Section `reward`: scores, reward servers and the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, FailFast, Field, field_validator, model_validator

from rlsys.config.part import Part, expanded
from rlsys.urls import has_secret, masked_url, why_not_http

Tiers = Annotated[tuple[tuple[float, float], ...], FailFast(), Field(max_length=1000)]
"""Pairs of a bound and a score. One wrong pair is reported: a request could bring half a million of them."""


class ScoreSettings(Part):
    """Parameters of the scorers; they are sent with every request, so one service can serve many jobs."""

    model_config = ConfigDict(allow_inf_nan=True)  # .inf is the bound of a last tier that always applies

    length_window_tokens: tuple[int, int] = (320, 512)
    """Smallest and largest number of response tokens that earn `length_bonus` (Video-R1's values)."""
    relative_error_tiers: Tiers = ()
    """Pairs (upper bound on the relative error, score); the first that applies counts. () uses the mean relative
    accuracy of VSI-Bench."""
    recall_tiers: Tiers = ()
    """Pairs (lower bound on event recall, reward); the highest that applies counts. () rewards the recall itself."""

    @model_validator(mode="after")
    def _scores_are_shares(self) -> ScoreSettings:
        fewest, most = self.length_window_tokens
        if not 0 <= fewest <= most:
            raise ValueError(
                f"reward.settings.length_window_tokens={list(self.length_window_tokens)}: "
                "write [smallest, largest], with 0 <= smallest <= largest."
            )
        for name in ("relative_error_tiers", "recall_tiers"):
            tiers = getattr(self, name)
            if not all(edge >= 0 and 0 <= score <= 1 for edge, score in tiers):
                raise ValueError(
                    f"reward.settings.{name}={[list(tier) for tier in tiers]}: "
                    "bounds must be 0 or more, scores between 0 and 1."
                )
        return self


class JudgeConfig(Part):
    """The judge of captions and reasoning. Without `urls` and `serve_model`, sentence embeddings judge captions."""

    urls: tuple[str, ...] = ()
    """Base URLs of OpenAI-compatible endpoints, such as http://host:8000/v1; a failed call is retried on another."""
    model: str = "Qwen/Qwen2.5-72B-Instruct"
    """Name under which the endpoints serve the model."""
    api_key_env: str = "RLSYS_JUDGE_API_KEY"
    """Environment variable that holds the endpoints' API key; unset sends none."""
    serve_model: str | None = None
    """Model folder or name that Ray Serve LLM serves next to the judge, under the name `model`; null uses `urls`."""
    serve_tensor_parallel_size: int = Field(default=1, ge=1)
    """Number of GPUs that share the served model's weights."""
    serve_replicas: int = Field(default=1, ge=1)
    """Number of replicas of the served model."""
    serve_max_model_len: int = Field(default=8192, ge=256)
    """Context length of the served model, in tokens of prompt plus answer."""
    min_replicas: int = Field(default=1, ge=1)
    """Smallest number of replicas of the judge (not of its model)."""
    max_replicas: int = Field(default=4, ge=1)
    """Largest number of replicas of the judge."""
    target_ongoing_requests: int = Field(default=16, ge=1)
    """Concurrent requests per replica of the judge above which another replica is started."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Largest number of queued requests; further ones are rejected with 429 and Retry-After."""
    max_concurrency: int = Field(default=32, ge=1)
    """Largest number of concurrent calls to one endpoint, over all replicas and jobs."""
    requests_per_minute: int = Field(default=0, ge=0)
    """Largest number of calls per minute to one endpoint; 0 is no limit."""
    tokens_per_minute: int = Field(default=0, ge=0)
    """Largest number of prompt plus answer tokens per minute at one endpoint; 0 is no limit."""
    call_timeout_s: float = Field(default=60.0, gt=0)
    """Time limit for one call, in seconds."""
    max_attempts: int = Field(default=4, ge=1)
    """Largest number of calls for one answer, including the first."""
    max_output_tokens: int = Field(default=2048, ge=32)
    """Largest number of tokens in one answer of the model."""
    hedge: bool = False
    """Repeat a call, on another endpoint if there is one, once it takes longer than the 95th percentile."""
    breaker_failures: int = Field(default=5, ge=1)
    """Number of consecutive failures that opens an endpoint's circuit breaker, after which it gets no calls."""
    breaker_open_s: float = Field(default=10.0, gt=0)
    """Seconds that a circuit breaker stays open before one trial call."""
    cache_path: Path | None = None
    """SQLite file that caches verdicts; null uses a file in the user's cache folder."""
    embedding_threshold: float = Field(default=0.8, gt=0, le=1)
    """Least cosine similarity at which the embedding judge counts an event as recalled."""

    @field_validator("serve_model")
    @classmethod
    def _folder_is_expanded(cls, model: str | None) -> str | None:
        return expanded(model) if model is not None and model.startswith(("~", "$")) else model

    @model_validator(mode="after")
    def _one_source(self) -> JudgeConfig:
        if self.urls and self.serve_model:
            raise ValueError(
                "reward.judge.urls and reward.judge.serve_model are both set: the first uses running endpoints, "
                "the second starts one; remove one of them."
            )
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"reward.judge.min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}; "
                "lower the first."
            )
        return self


class RewardConfig(Part):
    """The settings of scores and reward servers."""

    url: str | None = None
    """Base URL of running reward servers; null starts them on the run's own cluster."""
    host: str = "127.0.0.1"
    """Address that the run's own reward servers bind to."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of the run's own reward servers; 0 picks a free one."""
    min_replicas: int = Field(default=1, ge=1)
    """Smallest number of replicas of the rule-based scorers."""
    max_replicas: int = Field(default=4, ge=1)
    """Largest number of replicas of the rule-based scorers."""
    target_ongoing_requests: int = Field(default=64, ge=1)
    """Concurrent requests per replica, including those waiting for the judge, above which another one is started."""
    max_queued_requests: int = Field(default=512, ge=1)
    """Largest number of queued requests; further ones are rejected with 429 and Retry-After."""
    token_env: str = "RLSYS_REWARD_TOKEN"
    """Environment variable that holds the bearer token; unset sends none."""
    weights: dict[
        str, dict[str, Annotated[float, Field(allow_inf_nan=True)]]
    ] = {}  # check_weights lists all wrong ones
    """Weights as task -> score -> weight, replacing the task table's (1 each); naming an optional score enables it."""
    scorers: dict[str, str] = {}
    """Custom scorers as score name -> `module:function`, importable where the servers run; enable them in `weights`."""
    settings: ScoreSettings = ScoreSettings()
    """Parameters of the scorers."""
    judge: JudgeConfig = JudgeConfig()
    """The judge of captions and reasoning."""
    min_valid: int = Field(default=2, ge=2)
    """Smallest number of scored rollouts that a group needs to be trained on."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Time limit for one scoring request, in seconds, including retries."""
    failure_window: int = Field(default=64, ge=1)
    """Number of recent rollouts over which the failure rate of scoring is computed."""
    max_failure_frac: float = Field(default=0.5, gt=0, le=1)
    """Fraction of failed scores in the window above which the run pauses; 1 never pauses."""
    max_pause_s: float = Field(default=3600.0, ge=0)
    """Longest pause, in seconds, before the run ends with an error; 0 waits indefinitely."""

    @field_validator("url")
    @classmethod
    def _shows_no_secret(cls, url: str | None) -> str | None:
        if url is not None and has_secret(url):
            raise ValueError(
                f"reward.url={masked_url(url)} contains a secret, and URLs are stored and logged; pass the token in "
                "the environment variable that reward.token_env names."
            )
        if url is not None and (why := why_not_http(url)):
            raise ValueError(f"reward.url={url} {why}; write http://HOST:PORT, or null to start the run's own servers.")
        return url

    @model_validator(mode="after")
    def _replicas_agree(self) -> RewardConfig:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"reward.min_replicas={self.min_replicas} is above reward.max_replicas={self.max_replicas}; "
                "lower the first."
            )
        return self

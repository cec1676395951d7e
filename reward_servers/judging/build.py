"""The judge that a config asks for."""

from __future__ import annotations

from reward_servers.judging.embedding import EmbeddingJudge
from reward_servers.judging.endpoints.leases import Board
from reward_servers.judging.endpoints.llm import JudgeLlm
from reward_servers.judging.first_request import ProbedJudge
from reward_servers.judging.judge import EventJudge, Judge
from reward_servers.judging.verdicts import VerdictCache
from rlsys.config.run import JudgeConfig


def build_judge(config: JudgeConfig, board: Board | None, api_key: str | None, *, raises_final: bool = False) -> Judge:
    """Return the judge that `config` asks for: a language model at `config.urls`, or sentence embeddings without one.

    board: owns the limits of the endpoints; needed with `config.urls` only.  raises_final: see `EventJudge`.
    Raises ConfigError when neither is possible, CacheError when the cache of verdicts is another kind of file.
    """
    if not config.urls:
        return EmbeddingJudge(config.embedding_threshold)
    if board is None:
        raise ValueError("reward.judge.urls are set: a board that owns their limits is needed.")
    setups = config.setups if isinstance(config, ProbedJudge) else None
    llm = JudgeLlm(config, board, api_key, setups)
    return EventJudge(llm, config.model, VerdictCache(config.cache_path), raises_final=raises_final)

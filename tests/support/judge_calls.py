"""Questions to a judge whose endpoint is a `FaultServer`, and what becomes of their scores."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from reward_servers.judging.build import build_judge
from reward_servers.judging.endpoints.endpoints import EndpointBoard
from reward_servers.judging.judge import JudgeTask
from rlsys.config.run import JudgeConfig
from rlsys.types import Score
from tests.support.judge_fault_server import FaultServer
from tests.support.pace import patience

KEY = "sk-very-secret-0123456789"
RIGHT = JudgeTask(kind="consistency", question="Which?", reference="So it is B.", prediction="B")


def judge_config(server: FaultServer, folder: Path, **changes: Any) -> JudgeConfig:
    """Return the config of a judge at `server`, which gets three calls for an answer. changes: of its fields."""
    fields = {"urls": (server.url,), "model": "judge", "cache_path": folder / "verdicts.sqlite", "max_attempts": 3}
    return JudgeConfig(**{**fields, **changes})


def judged(
    config: JudgeConfig, *tasks: JudgeTask, key: str | None = KEY, within_s: float = 30.0, raises_final: bool = False
) -> list[Score]:
    """Return the scores of `tasks`, one after the other, as a replica of reward servers gives them."""

    async def scored() -> list[Score]:
        judge = build_judge(config, EndpointBoard(config), key, raises_final=raises_final)
        try:
            return [(await judge.score([task], time.monotonic() + patience(within_s)))[0] for task in tasks]
        finally:
            await judge.close()

    return asyncio.run(scored())


def questions(count: int) -> list[JudgeTask]:
    """Return questions that differ, each with the verdict that its answer is consistent."""
    texts = [f"So it is {number}." for number in range(count)]
    return [JudgeTask(kind="consistency", reference=text, prediction=str(at)) for at, text in enumerate(texts)]


def adapted(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines that say how calls were adapted to an endpoint."""
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    return [record.getMessage() for record in warnings if "adapted to what it takes" in record.getMessage()]

"""The judge over HTTP when its endpoints misbehave: every fault has its status, and none is a score."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_servers.judging.judge import JudgeTask
from reward_servers.judging.local_judge import open_judge
from reward_servers.judging.unusable import JudgeUnusable
from rlsys.config.run import JudgeConfig
from rlsys.types import Score
from tests.support.judge_fault_server import (
    CUT_OFF,
    FILTERED,
    HALF,
    HANG,
    NOT_JSON,
    REFUSAL,
    WRONG_COUNT,
    Fault,
    FaultServer,
    Seen,
    error,
    too_many,
)
from tests.support.pace import patience

pytestmark = pytest.mark.stack

REFERENCE = "A dog runs away. The man waves back. A cat sleeps here."
FIRST = "A dog runs away."


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


def scored(
    server: FaultServer, tmp_path: Path, *predictions: str, seconds: float = 20.0, **others: Any
) -> tuple[list[Score], dict[str, Any]]:
    config = JudgeConfig(
        urls=(server.url,), model="m", cache_path=tmp_path / "cache.sqlite", call_timeout_s=patience(1.5), **others
    )

    async def all_of_them() -> tuple[list[Score], dict[str, Any]]:
        tasks = [JudgeTask(kind="events", reference=REFERENCE, prediction=text) for text in predictions]
        async with open_judge(config) as judge:
            return await judge.score(tasks, time.monotonic() + patience(seconds)), judge.counters()

    return asyncio.run(all_of_them())


def is_verdict(seen: Seen) -> bool:
    return "verdicts" in seen.schema["properties"]


def test_a_group_over_http_costs_one_call_per_different_text(server: FaultServer, tmp_path: Path) -> None:
    scores, counters = scored(server, tmp_path, FIRST, REFERENCE, FIRST, "Nobody is there.", max_concurrency=2)
    assert [score.scores["recall"] for score in scores] == [pytest.approx(recall) for recall in (1 / 3, 1, 1 / 3, 0)]
    assert counters["calls"] == len(server.seen) == 6  # three texts split, the reference being one; three judged
    assert server.max_concurrency <= 2
    assert all(seen.body["temperature"] == 0 for seen in server.seen)
    again, counters = scored(server, tmp_path, FIRST)
    assert again[0].scores == {"recall": pytest.approx(1 / 3)} and counters["cache"]["hit_rate"] == 1.0
    assert len(server.seen) == 6


@pytest.mark.parametrize("fault", [too_many("0"), too_many(), error(500), error(503), HALF, NOT_JSON, WRONG_COUNT])
def test_one_fault_is_made_good(server: FaultServer, tmp_path: Path, fault: Fault) -> None:
    pending = [fault]
    server.rule = lambda seen: pending.pop() if pending and is_verdict(seen) else None
    ((score,), _) = scored(server, tmp_path, FIRST)
    assert (score.status, score.scores) == ("ok", {"recall": pytest.approx(1 / 3)})
    assert not pending


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (too_many("1"), "infra"),
        (error(500), "infra"),
        (HALF, "infra"),
        (HANG, "infra"),
        (NOT_JSON, "malformed"),
        (CUT_OFF, "malformed"),
        (WRONG_COUNT, "malformed"),
        (Fault(content='{"events": []}'), "malformed"),
        (REFUSAL, "abstain"),
        (FILTERED, "abstain"),
    ],
    ids=str,
)
def test_a_fault_that_stays_is_missing_data_and_is_not_kept(
    server: FaultServer, tmp_path: Path, fault: Fault, status: str
) -> None:
    bad = "The sun sets now."
    server.rule = lambda seen: fault if is_verdict(seen) and "sun sets" in seen.user else None
    (lost, fine), _ = scored(server, tmp_path, bad, FIRST, seconds=4.0, max_attempts=2, breaker_failures=100)
    assert (lost.status, lost.scores) == (status, {})
    assert lost.reason
    assert fine.status in ("ok", "infra")  # an endpoint that is asked to be left alone holds others up too
    server.rule = lambda _: None
    ((healed,), counters) = scored(server, tmp_path, bad)
    assert (healed.status, healed.scores) == ("ok", {"recall": 0.0})
    assert counters["calls"] >= 1  # what was not answered was not kept


@pytest.mark.parametrize("fault", [error(401), error(402), error(403)], ids=str)
def test_a_fault_that_never_passes_is_an_error_and_no_score(server: FaultServer, tmp_path: Path, fault: Fault) -> None:
    server.rule = lambda seen: fault if is_verdict(seen) else None
    with pytest.raises(JudgeUnusable, match="made to fail"):
        scored(server, tmp_path, FIRST)


def test_an_endpoint_that_is_gone_is_named_and_one_that_is_back_is_used(server: FaultServer, tmp_path: Path) -> None:
    server.stop()
    ((score,), _) = scored(server, tmp_path, FIRST, seconds=1.0)
    assert (score.status, score.scores) == ("infra", {})
    assert server.url in score.reason
    server.start()
    ((score,), _) = scored(server, tmp_path, FIRST)
    assert score.status == "ok"

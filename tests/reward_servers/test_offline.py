"""Files scored without a cluster: in order, side by side, and with trouble as a status."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from reward_servers import offline
from reward_servers.judging.endpoints.llm import JudgeFailure
from reward_servers.judging.judge import EventJudge
from reward_servers.judging.local_judge import in_order, pumped
from reward_servers.judging.verdicts import VerdictCache
from reward_servers.offline import score_lines
from rlsys.commands.judge import judge_app, score
from rlsys.config.run import ConfigError, JudgeConfig, ScoreSettings
from rlsys.types import Json
from tests.support.judge_oracles import Oracle
from tests.support.paths import TEST_DATA

REFERENCE = "A dog barks. A cat sleeps."
GROUNDING = {"task": "temporal_grounding", "text": "<answer>1 to 3</answer>", "truth": [1, 3], "think": False}


def caption(text: str, truth: Json = REFERENCE, **others: Json) -> Json:
    return {"task": "captioning", "text": f"<answer>{text}</answer>", "truth": truth, "think": False, **others}


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Oracle:
    """Answers in place of the endpoints of any config."""
    oracle = Oracle()

    @asynccontextmanager
    async def opened(config: JudgeConfig) -> Any:
        yield EventJudge(oracle, config.model, VerdictCache(tmp_path / "cache.sqlite"))

    monkeypatch.setattr(offline, "open_judge", opened)
    return oracle


def scored(*rows: Json, at_once: int = 4, **others: Any) -> list[dict[str, Json]]:
    judge = JudgeConfig(urls=("http://judge.example/v1",), model="oracle", max_concurrency=at_once)
    return list(score_lines(map(json.dumps, rows), judge, **others))


def test_every_task_is_scored_in_order_and_captions_by_the_judge(oracle: Oracle) -> None:
    rows = scored(
        GROUNDING,
        caption("A dog barks."),
        caption("A dog barks. A cat sleeps.", {"caption": REFERENCE}),
        caption("A bird.", {"caption": "unused", "events": ["A bird."]}),
        {"task": "captioning", "text": "no answer", "truth": REFERENCE},
    )
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["scores"] for row in rows] == [
        {"format": 1.0, "iou": 1.0},
        {"format": 1.0, "recall": 0.5},
        {"format": 1.0, "recall": 1.0},
        {"format": 1.0, "recall": 1.0},
        {"format": 0.0, "recall": 0.0},
    ]
    assert ["evidence" in row for row in rows] == [False, True, True, True, False]
    assert rows[1]["evidence"]["model"] == "oracle"


def test_trouble_is_a_status_with_its_line_and_never_a_zero(oracle: Oracle) -> None:
    oracle.answers["split"] = [JudgeFailure("infra", "429 from the endpoint")]
    rows = scored(caption("A dog barks."), {"task": "captioning"}, caption("A cat.", 5), GROUNDING, at_once=1)
    assert [row["status"] for row in rows] == ["infra", "malformed", "malformed", "ok"]
    assert [row["scores"] for row in rows[:3]] == [{}] * 3
    assert rows[0]["reason"] == "line 1: 429 from the endpoint"
    assert rows[1]["reason"].startswith("line 2: text") and rows[2]["reason"].startswith("line 3: ")


def test_optional_scores_and_tiers_can_be_asked_for(oracle: Oracle) -> None:
    settings = ScoreSettings(recall_tiers=((0.4, 0.1),))
    (row,) = scored(caption("A dog barks.", scores=["recall", "precision", "f1"]), settings=settings)
    assert row["scores"] == {"recall": 0.1, "precision": 1.0, "f1": pytest.approx(2 / 3)}


def test_no_more_rows_run_at_once_than_allowed_and_the_file_is_read_as_needed() -> None:
    running = most = num_read = 0

    def numbers() -> Iterator[int]:
        nonlocal num_read
        for number in range(100):
            num_read += 1
            yield number

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02 if number == 0 else 0.001)  # the first is slow, and order is kept
        running -= 1
        return number

    results = pumped(in_order(numbers(), work, 5))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert num_read <= 3 + 4 * 5
    assert list(results) == list(range(3, 100))
    assert most == 5


def test_a_caller_who_stops_early_leaves_nothing_running() -> None:
    ended: list[int] = []

    async def work(number: int) -> int:
        try:
            await asyncio.sleep(0 if number == 0 else 60)
        finally:
            ended.append(number)
        return number

    results = pumped(in_order(range(3), work, 3))
    assert next(results) == 0
    started = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert sorted(ended) == [0, 1, 2] and time.monotonic() - started < 60  # which waiting for them would take


def test_errors_behind_the_first_one_are_not_printed() -> None:
    printed: list[dict[str, Any]] = []

    async def work(number: int) -> int:
        raise ConfigError(f"row {number}")

    async def all_rows() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: printed.append(context))
        with pytest.raises(ConfigError, match="row 0"):
            async for _ in in_order(range(5), work, 5):
                pass
        gc.collect()  # a task whose error nobody read says so when it goes

    asyncio.run(all_rows())
    assert not printed


def test_a_file_without_captions_needs_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "judge_kind", _none)
    rows = list(score_lines(map(json.dumps, (GROUNDING, caption("A dog."), GROUNDING))))
    assert [row["status"] for row in rows] == ["ok", "infra", "ok"]
    assert rows[1]["scores"] == {} and "reward.judge.urls" in rows[1]["reason"]
    with pytest.raises(ConfigError):
        list(score_lines([json.dumps(GROUNDING)], JudgeConfig()))  # one that was asked for must work


def _none(_: JudgeConfig) -> str:
    raise ConfigError("no judge")


def test_without_an_endpoint_sentence_embeddings_judge() -> None:
    (row,) = score_lines([json.dumps(caption("The dog is barking."))])
    assert (row["status"], row["scores"]) == ("ok", {"format": 1.0, "recall": 0.5})
    assert row["evidence"]["judge"] == "embedding"


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(score)
    app.add_typer(judge_app, name="judge")
    return app


def called(command: typer.Typer, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.stack
def test_the_commands_on_a_file(command: typer.Typer, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f"{json.dumps(caption('A dog barks.'))}\n{json.dumps(GROUNDING)}\n")
    code, output = called(command, "score", "--jsonl", str(rows))
    assert code == 0 and [json.loads(line)["status"] for line in output.splitlines()] == ["ok", "ok"]
    (tmp_path / "scored.jsonl").write_text(output)
    code, output = called(command, "judge", "rescore", str(tmp_path / "scored.jsonl"), "--tiers", "0.5:0.2,1:1")
    assert code == 0 and "line 1: 0.5000 -> 0.2000" in output
    code, output = called(command, "judge", "rescore", str(tmp_path / "scored.jsonl"), "--rejudge")
    assert code == 0 and "0 of 2 differ" in output
    code, output = called(command, "judge", "probe")
    assert code == 0 and "leaked   0" in output
    pairs = TEST_DATA / "caption_pairs.jsonl"
    code, output = called(command, "judge", "calibrate", str(pairs), "--threshold", "0.8")
    assert code == 0 and "kappa       0.51" in output


def test_a_byte_order_mark_is_no_part_of_the_first_line(command: typer.Typer, tmp_path: Path) -> None:
    row = {"task": "temporal_grounding", "text": "<think>x</think><answer>1 to 2</answer>", "truth": [1, 2]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8-sig")
    done = CliRunner().invoke(command, ["score", "--jsonl", str(tmp_path / "rows.jsonl")])
    assert json.loads(done.stdout.splitlines()[0])["scores"] == {"format": 1.0, "iou": 1.0}


def test_a_config_decides_which_scores_a_file_gets(command: typer.Typer, tmp_path: Path) -> None:
    rows, config = tmp_path / "rows.jsonl", tmp_path / "config.yaml"
    rows.write_text(json.dumps(GROUNDING) + "\n" + json.dumps({**GROUNDING, "scores": ["iou"]}))
    config.write_text(
        "reward:\n"
        "  scorers: {polite: tests.reward_servers.scorers.test_user_scorers:polite}\n"
        "  weights: {temporal_grounding: {polite: 0.5}}\n"
    )
    code, output = called(command, "score", "--jsonl", str(rows), "--config", str(config))
    assert code == 0
    found = [list(json.loads(line)["scores"]) for line in output.splitlines()]
    assert found == [["format", "iou", "polite"], ["iou"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("judge", "probe", "--judge-model", "m"), "--judge-url"),
        (("judge", "probe", "--judge-url", "http://a/v1", "--threshold", "0.5"), "embedding judge"),
        (("judge", "probe", "--judge-url", "nonsense"), "nonsense"),
        (("judge", "calibrate", "missing.jsonl"), "missing.jsonl"),
        (("judge", "rescore", "missing.jsonl"), "missing.jsonl"),
        (("judge", "rescore", "x", "--judge-url", "http://a/v1"), "--rejudge"),
        (("judge", "rescore", "x", "--tiers", "high"), "0.3:0.25"),
        (("judge", "rescore", "x", "--tiers", "0.3:7"), "between 0 and 1"),
    ],
)
def test_a_wrong_option_is_told_with_its_remedy(command: typer.Typer, words: tuple[str, ...], said: str) -> None:
    code, output = called(command, *words)
    assert code == 2 and said in output and "Traceback" not in output


def test_importing_the_commands_loads_nothing_heavy() -> None:
    heavy = ("torch", "ray", "openai", "transformers", "reward_servers")
    code = f"import sys, rlsys.commands.judge; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

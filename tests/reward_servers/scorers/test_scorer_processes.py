"""Custom scorers that misbehave, in the processes that they run in."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from reward_servers.schema import REPLIES, ScoreReply, ScoreRequest, ScoreRow
from reward_servers.scorers.response import read_response
from reward_servers.scorers.scorer_processes import ScorerProcesses, try_scorers
from reward_servers.scorers.user_scorers import UserScorerError
from reward_servers.server.service import RewardService
from rlsys.config.run import ConfigError
from tests.support.pace import patience
from tests.support.paths import REPO

pytestmark = pytest.mark.stack

SCORERS = "tests.support.misbehaving_scorers"
ROW = {"rollout_id": "r", "task": "temporal_grounding", "text": "<answer>2.0 to 6.0</answer>", "truth": [2.0, 6.0]}


@pytest.fixture(scope="module")
def custom() -> Iterator[ScorerProcesses]:
    """All of the scorers, in the processes that the tests of this file share: a test that ends some ends no other."""
    names = (
        "process_id",
        "exits",
        "crashes",
        "hangs",
        "backtracks",
        "half_a_second",
        "meets",
        "vandal",
        "picky",
        "talks",
        "dies_of_a_nameless_signal",
        "forks",
        "leaves_a_process",
        "spoils_json",
    )
    processes = ScorerProcesses({name: f"{SCORERS}:{name}" for name in names})
    yield processes
    processes.close()
    assert not _children(processes)


def _children(processes: ScorerProcesses) -> list[int]:
    return [worker._process.pid for worker in processes._alive]


RESPONSE = read_response(ScoreRow.model_validate(ROW))


def ask(custom: ScorerProcesses, *calls: tuple[str, str], timeout_s: float | None = None) -> list[Any]:
    """The score or error of every call (scorer, text), all at once."""
    limit_s = patience(30.0) if timeout_s is None else timeout_s

    async def everything() -> list[Any]:
        deadline_s = time.monotonic() + limit_s
        asked = [custom.score(name, dataclasses.replace(RESPONSE, text=text), deadline_s) for name, text in calls]
        return list(await asyncio.gather(*asked, return_exceptions=True))

    return asyncio.run(everything())


def test_a_fast_scorer_needs_few_processes_and_never_this_one(custom: ScorerProcesses) -> None:
    for _ in range(10):
        ask(custom, *[("picky", "a")] * 8)
    found = {round(ask(custom, ("process_id", "a"))[0] * 1e9) for _ in range(20)}
    # never more than the eight rows that were asked side by side, however slow the machine
    assert len(found) == 1 and os.getpid() not in found and len(_children(custom)) <= 8


@pytest.mark.parametrize(
    ("scorer", "ending"),
    [
        ("exits", "exit code 7"),
        ("crashes", "signal SIGABRT"),
        ("dies_of_a_nameless_signal", f"signal {signal.SIGRTMIN + 6}"),
    ],
)
def test_a_scorer_that_ends_its_process_is_named_and_the_next_call_works(
    custom: ScorerProcesses, scorer: str, ending: str
) -> None:
    error, other = ask(custom, (scorer, "a"), ("picky", "a"))
    assert isinstance(error, UserScorerError) and error.fault.kind == "ended its process"
    assert f"scorer '{scorer}' ended its process ({ending})" in str(error)
    assert other == 0.75 and ask(custom, ("picky", "a")) == [0.75]


@pytest.mark.parametrize("scorer", ["hangs", "backtracks"])
def test_a_scorer_that_never_returns_costs_the_deadline_and_its_process(custom: ScorerProcesses, scorer: str) -> None:
    assert ask(custom, ("picky", "a")) == [0.75]  # one has started
    before = set(_children(custom))
    (error,) = ask(custom, (scorer, "hang"), timeout_s=0.3)
    assert isinstance(error, UserScorerError) and error.fault.kind == "late"
    assert str(error).startswith(f"scorer '{scorer}' did not return before the request's deadline")
    (stuck,) = before - set(_children(custom))
    assert not psutil.pid_exists(stuck)
    assert ask(custom, ("picky", "a")) == [0.75]


def test_calls_that_find_no_free_process_are_late_as_well_and_the_others_are_served(custom: ScorerProcesses) -> None:
    found = ask(custom, *[("hangs", "hang")] * 20, timeout_s=patience(1.5))
    assert all(isinstance(error, UserScorerError) and error.fault.kind == "late" for error in found)
    assert {str(error).partition(" before")[0] for error in found} == {
        "scorer 'hangs' did not return",
        "scorer 'hangs' was not called",
    }
    assert ask(custom, ("hangs", "a"), ("picky", "a")) == [1.0, 0.75]


def test_calls_run_side_by_side(custom: ScorerProcesses, tmp_path: Path) -> None:
    assert ask(custom, *[("meets", str(tmp_path))] * 4, timeout_s=patience(60.0)) == [1.0] * 4


def test_slow_scorers_are_reported(custom: ScorerProcesses) -> None:
    assert ask(custom, *[("half_a_second", "a")] * 4, *[("picky", "a")] * 8) == [0.5] * 4 + [0.75] * 8
    assert "picky" not in custom.slow() and custom.slow()["half_a_second"] >= 0.5


def test_every_call_has_its_own_copy_of_the_response(custom: ScorerProcesses) -> None:
    assert ask(custom, *[("vandal", "a")] * 4) == [1.0] * 4
    assert ask(custom, ("vandal", "a"), ("vandal", "a")) == [1.0, 1.0]
    assert RESPONSE.truth == [2.0, 6.0] and set(RESPONSE.answers) == {"answer"}


def test_what_a_scorer_prints_or_reads_does_not_disturb_its_answers(custom: ScorerProcesses) -> None:
    assert ask(custom, ("talks", "a"), ("talks", "b")) == [1.0, 1.0]


def test_a_scorer_that_forks_answers_once(custom: ScorerProcesses) -> None:
    for text in ("0.5", "0.25", "0.75"):
        assert ask(custom, ("forks", text)) == [float(text)]


def test_what_a_stopped_scorer_started_ends_with_it(custom: ScorerProcesses, tmp_path: Path) -> None:
    assert ask(custom, ("picky", "a")) == [0.75]  # one has started
    (error,) = ask(custom, ("leaves_a_process", str(tmp_path / "pid")), timeout_s=patience(2.0))
    assert isinstance(error, UserScorerError) and error.fault.kind == "late"
    started = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(started) or psutil.Process(started).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_ends_between_two_calls_is_replaced(custom: ScorerProcesses) -> None:
    assert ask(custom, ("picky", "a")) == [0.75]
    before = set(_children(custom))
    for worker in list(custom._alive):
        worker.kill()
    (answered,) = ask(custom, ("process_id", "a"))
    assert round(answered * 1e9) not in before


def test_a_module_that_cannot_be_loaded_there_is_a_fault_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_at_import.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for reference, reason in (("no_such_module:f", "cannot be imported"), ("ends_at_import:f", "exit code 3")):
        custom = ScorerProcesses({"mine": reference})
        (error,) = ask(custom, ("mine", "a"))
        custom.close()
        assert isinstance(error, UserScorerError) and error.fault.kind == "could not start" and reason in str(error)


def test_variables_that_scorers_must_not_see_are_kept_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSYS_TEST_SECRET", "s3cret")
    for without, seen in (((), 1.0), (("RLSYS_TEST_SECRET",), 0.0)):
        custom = ScorerProcesses({"has_secret": f"{SCORERS}:has_secret"}, without)
        assert ask(custom, ("has_secret", "a")) == [seen]
        custom.close()


WAITS_AT_IMPORT = """
import os, time
from pathlib import Path

IMPORTED = Path(__file__).with_suffix(".pids")
with IMPORTED.open("a") as file:
    file.write(f"{os.getpid()}\\n")
print("imported")
while len(IMPORTED.read_text().split()) > 2:  # the first is the check before the rows, the second scores them
    time.sleep(3600)

def score(response):
    print('{"line": 7}')
    while len(IMPORTED.read_text().split()) < 3:
        time.sleep(0.01)
    return 0.5
"""


def test_a_command_ends_with_its_own_output_alone_and_with_the_processes_that_still_import(tmp_path: Path) -> None:
    module, rows, config = tmp_path / "waits.py", tmp_path / "rows.jsonl", tmp_path / "config.yaml"
    module.write_text(WAITS_AT_IMPORT)
    rows.write_text("".join(json.dumps(ROW) + "\n" for _ in range(3)))
    config.write_text("reward: {scorers: {mine: waits:score}, weights: {temporal_grounding: {mine: 1}}}\n")
    command = [sys.executable, "-m", "rlsys.commands.app", "score", "--jsonl", str(rows), "--config", str(config)]
    path = os.pathsep.join([str(tmp_path), str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=patience(120.0))
    assert done.returncode == 0
    assert [json.loads(line)["scores"]["mine"] for line in done.stdout.splitlines()] == [0.5] * 3
    assert '{"line": 7}' in done.stderr and "Traceback" not in done.stderr
    started = [int(line) for line in module.with_suffix(".pids").read_text().split()]
    gone_by_s = time.monotonic() + patience(30.0)
    while any(psutil.pid_exists(one) for one in started):
        assert time.monotonic() < gone_by_s, started
        time.sleep(0.05)


@pytest.mark.parametrize("code", [0, 3])
def test_a_module_that_ends_python_ends_no_check_of_it(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_at_once.py").write_text(f"import os\nos._exit({code})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=rf"reward.scorers \(ends_at_once:f\): .*exit code {code}"):
        try_scorers({"mine": "ends_at_once:f"})


def test_an_answer_that_is_none_is_the_scorers_fault(custom: ScorerProcesses) -> None:
    error, other = ask(custom, ("spoils_json", "a"), ("picky", "a"))
    assert isinstance(error, UserScorerError) and error.fault.kind == "ended its process"
    assert other == 0.75


def replies(rows: Sequence[dict[str, Any]], timeout_s: float, **scorers: str) -> list[ScoreReply]:
    async def score() -> list[ScoreReply]:
        service = RewardService(None, ScorerProcesses({name: f"{SCORERS}:{at}" for name, at in scorers.items()}))
        request = ScoreRequest.model_validate_json(json.dumps({"rows": rows, "timeout_s": timeout_s}))
        try:
            return await service.score(request)
        finally:
            service.close()

    return asyncio.run(score())


def row(rollout_id: str, text: str, *names: str) -> dict[str, Any]:
    return {**ROW, "rollout_id": rollout_id, "text": text, "think": False, "scores": ["iou", *names]}


def test_rows_that_a_scorer_fails_for_are_missing_data_and_the_others_are_scored() -> None:
    good = "<answer>2.0 to 6.0</answer>"
    rows = [row("a", good, "mine"), row("b", "bad", "mine"), row("c", good), row("d", good, "theirs")]
    a, b, c, d = replies(rows, patience(30.0), mine="picky")
    assert (a.status, dict(a.scores), a.fault) == ("ok", {"iou": 1.0, "mine": 0.75}, None)
    assert (b.status, dict(b.scores)) == ("infra", {}) and b.fault is not None
    assert (
        b.reason.startswith("scorer 'mine' raised ValueError: not this one (") and b.fault.kind == "raised ValueError"
    )
    assert (c.status, dict(c.scores)) == ("ok", {"iou": 1.0})
    assert d.status == "malformed" and "'theirs'" in d.reason and "mine" in d.reason


def test_an_error_that_is_no_text_of_utf8_is_told_all_the_same() -> None:
    (reply,) = replies([row("a", "x", "mine")], patience(30.0), mine="raises_half_a_character")
    assert reply.status == "infra" and reply.fault is not None and reply.fault.kind == "raised ValueError"
    assert b"raised ValueError: ?" in REPLIES.dump_json([reply])


def test_a_row_is_late_and_its_request_is_answered_in_time() -> None:
    rows = [row("a", "hang", "mine"), row("b", "<answer>2.0 to 6.0</answer>", "mine")]
    started_s, limit_s = time.monotonic(), patience(5.0)
    late, fine = replies(rows, limit_s, mine="hangs")
    assert time.monotonic() - started_s < 2 * limit_s
    assert late.status == "infra" and late.fault is not None and late.fault.kind == "late"
    assert (fine.status, fine.scores["mine"]) == ("ok", 1.0)

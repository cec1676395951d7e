"""The judge as a deployment of its own on a real Ray Serve, its language model a server that fails as told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray

from reward_servers.client.transport import fetch_status
from reward_servers.server import app
from reward_servers.server.status import status_lines
from rlsys.config.run import RewardConfig
from rlsys.types import RolloutGroup
from tests.support.judge_fault_server import FaultServer, error, too_many
from tests.support.pace import patience
from tests.support.rewards import NO_TOKEN, captions, score_groups


def judged(server: FaultServer, folder: Path, **judge: Any) -> RewardConfig:
    settings = {
        "urls": [server.url],
        "cache_path": folder / "verdicts.sqlite",
        "call_timeout_s": patience(5.0),
        **judge,
    }
    return RewardConfig.model_validate({"token_env": NO_TOKEN, "judge": settings})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


@pytest.fixture(scope="module")
def url(serve_cluster: Path, endpoint: FaultServer, folder: Path) -> str:
    """Servers whose judge has two replicas and asks `endpoint`, at most three calls at a time."""
    reward = judged(endpoint, folder, max_concurrency=3, min_replicas=2, breaker_failures=1000, max_attempts=40)
    return app.launch(reward, "judged")


@pytest.fixture(autouse=True)
def counts_from_zero(endpoint: FaultServer) -> Iterator[None]:
    endpoint.max_concurrency = 0
    endpoint.seen.clear()
    yield
    endpoint.delay_s = 0.0
    endpoint.rule = lambda _: None


def many(name: str, count: int, size: int = 4) -> list[RolloutGroup]:
    """Groups of captions that nobody has judged before; rollout k recalls k of three events."""
    events = ("A dog runs.", "It stops.", "A man waves.")
    return [
        captions(
            *(" ".join([*events[:recalled], f"Nr {name} {index} {recalled}."]) for recalled in range(size)),
            prompt_id=f"{name}:{index}",
        )
        for index in range(count)
    ]


def recalls(scored: Any) -> np.ndarray:
    return np.round(scored.scores[:, scored.score_names.index("recall")] * 3)


def test_captions_are_judged_over_http_and_the_verdicts_come_back(url: str) -> None:
    (scored,) = score_groups(url, many("first", 1))
    assert scored.is_valid.all()
    np.testing.assert_array_equal(recalls(scored), [0, 1, 2, 3])
    evidence = scored.evidence[1]
    assert evidence["judge"] == "llm"
    assert [verdict["entailed"] for verdict in evidence["recall"]] == [True, False, False]


def test_one_limit_holds_over_replicas_and_jobs(url: str, endpoint: FaultServer, folder: Path) -> None:
    other = app.launch(judged(endpoint, folder, max_concurrency=3), "other-job")
    endpoint.delay_s = 0.1
    results: dict[str, Any] = {}
    jobs = [
        threading.Thread(target=lambda at=at, name=name: results.update({name: score_groups(at, many(name, 6))}))
        for at, name in ((url, "one"), (other, "two"))
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert endpoint.max_concurrency == 3
    for name in ("one", "two"):
        assert all(scored.is_valid.all() and recalls(scored).tolist() == [0, 1, 2, 3] for scored in results[name])


def test_trouble_on_the_way_costs_no_row_and_no_score(url: str, endpoint: FaultServer) -> None:
    endpoint.rule = lambda seen: {0: error(500), 1: too_many("0.1")}.get(seen.number % 4)
    scored = score_groups(url, many("trouble", 4))
    for group in scored:
        assert np.where(group.is_valid, recalls(group) == [0, 1, 2, 3], True).all()  # never a 0 from trouble
    assert sum(group.is_valid.sum() for group in scored) == 16
    assert endpoint.max_concurrency <= 3


def test_an_endpoint_that_is_gone_pauses_the_run_until_it_is_back(
    url: str, endpoint: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    def paused() -> list[str]:
        return [record.message for record in caplog.records if "paused" in record.message]

    def start_when_paused() -> None:
        while not paused():
            time.sleep(0.05)
        endpoint.start()

    endpoint.stop()
    comes_back = threading.Thread(target=start_when_paused, daemon=True)
    comes_back.start()
    # a row in four is more than may be missing, so not one may be
    scored = score_groups(url, many("gone", 4), failure_window=4, max_failure_frac=0.1, timeout_s=patience(3.0))
    comes_back.join(timeout=patience(10.0))
    for group in scored:
        assert group.is_valid.all() and recalls(group).tolist() == [0, 1, 2, 3]
    assert endpoint.url in paused()[0] and "onnect" in paused()[0]


def test_a_known_verdict_costs_no_call(url: str, endpoint: FaultServer) -> None:
    groups = many("known", 2)
    first = score_groups(url, groups)
    num_calls = len(endpoint.seen)
    again = score_groups(url, groups)
    assert num_calls > 0 and len(endpoint.seen) == num_calls
    assert [recalls(group).tolist() for group in again] == [recalls(group).tolist() for group in first]
    assert all(evidence["cached"] for group in again for evidence in group.evidence)


def test_status_shows_replicas_rows_calls_and_endpoint(url: str, endpoint: FaultServer) -> None:
    score_groups(url, many("status", 1))
    text = "\n".join(status_lines(fetch_status(url, None)))
    assert "JudgeServer: healthy, replicas: 2 running" in text
    assert "RuleScorers: healthy, replicas: 1 running" in text
    assert "judge: llm Qwen/Qwen2.5-72B-Instruct, 2 replicas" in text
    assert "cache hits:" in text and endpoint.url in text


def test_limits_of_a_new_deployment_hold_for_the_owner_that_is_there(
    url: str, endpoint: FaultServer, folder: Path
) -> None:
    wider = app.launch(judged(endpoint, folder, max_concurrency=5), "wider")
    endpoint.delay_s = 0.1
    assert all(group.is_valid.all() for group in score_groups(wider, many("wider", 6)))
    assert endpoint.max_concurrency == 5
    app.launch(judged(endpoint, folder, max_concurrency=3, min_replicas=2), "wider")
    score_groups(wider, many("narrower", 1))
    endpoint.max_concurrency = 0
    score_groups(wider, many("narrow again", 4))
    assert endpoint.max_concurrency == 3


def test_too_many_waiting_requests_are_429_with_retry_after(
    serve_cluster: Path, endpoint: FaultServer, folder: Path
) -> None:
    narrow = app.launch(
        judged(endpoint, folder, max_concurrency=3, target_ongoing_requests=1, max_queued_requests=1, max_replicas=1),
        "narrow",
    )
    endpoint.delay_s = patience(0.5)  # so long that the requests meet
    answers: list[httpx.Response] = []

    def ask(number: int) -> None:
        row = {"rollout_id": "a", "task": "captioning", "truth": {"caption": "A dog runs."}}
        row["text"] = f"<think>a</think><answer>A dog runs. Nr {number}.</answer>"
        answers.append(httpx.post(f"{narrow}/v1/score", json={"rows": [row]}, timeout=patience(60.0), trust_env=False))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and all(answer.headers["retry-after"] == "1" for answer in refused)
    assert {answer.status_code for answer in answers} == {200, 429}
    endpoint.delay_s = 0.02
    scored = score_groups(narrow, many("narrow", 6))  # the client waits as it is told
    assert all(group.is_valid.all() for group in scored)


def replicas(kind: str) -> list[Any]:
    return [
        ray.get_actor(actor["name"], namespace=actor["namespace"])
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if kind in actor["name"]
    ]


class SteadyLoad:
    """Groups scored one after another from a thread of their own, while something happens to the servers."""

    def __init__(self, url: str, name: str, **reward: object) -> None:
        self.scored: list[Any] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(url, name, reward))

    def _run(self, url: str, name: str, reward: dict[str, object]) -> None:
        number = 0
        while not self._over.is_set():
            self.scored += score_groups(url, many(f"{name}{number}", 2), **reward)
            number += 1

    def __enter__(self) -> SteadyLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def assert_all_scored(self) -> None:
        assert self.scored
        for group in self.scored:
            assert group.is_valid.all(), group.reasons
            assert recalls(group).tolist() == [0, 1, 2, 3]


def test_a_rolling_update_loses_no_request(url: str, endpoint: FaultServer, folder: Path) -> None:
    endpoint.delay_s = 0.05
    before = {str(actor) for actor in replicas("#JudgeServer#")}
    with SteadyLoad(url, "rolling") as load:
        time.sleep(1.0)
        updated = judged(endpoint, folder, max_concurrency=3, min_replicas=2, max_output_tokens=512)
        assert app.launch(updated, "judged") == url
        time.sleep(1.0)
    load.assert_all_scored()
    assert before.isdisjoint(str(actor) for actor in replicas("judged#JudgeServer#"))


@pytest.mark.long
def test_killed_judge_replicas_and_proxy_cost_time_and_no_row(url: str, endpoint: FaultServer) -> None:
    endpoint.delay_s = 0.05
    with SteadyLoad(url, "killed", timeout_s=patience(60.0)) as load:
        time.sleep(1.0)
        ray.kill(replicas("judged#JudgeServer#")[0])
        time.sleep(2.0)
        ray.kill(replicas("SERVE_PROXY_ACTOR")[0])
        time.sleep(4.0)
        ray.kill(replicas("judged#RuleScorers#")[0])
        time.sleep(2.0)
    load.assert_all_scored()


def test_when_the_owner_of_the_limits_dies_calls_wait_until_the_old_ones_are_over(
    url: str, endpoint: FaultServer
) -> None:
    endpoint.delay_s = 0.5
    with SteadyLoad(url, "owner", timeout_s=patience(60.0)) as load:
        time.sleep(1.5)
        ray.kill(replicas("judge-limits-")[0], no_restart=False)
        time.sleep(1.0)
    load.assert_all_scored()
    assert endpoint.max_concurrency <= 3


def test_callers_that_hang_up_leave_no_lease_behind(url: str, endpoint: FaultServer) -> None:
    endpoint.delay_s = patience(1.5)
    row = {"rollout_id": "a", "task": "captioning", "truth": {"caption": "A dog runs."}}
    for number in range(3):
        row["text"] = f"<think>a</think><answer>It hangs up, nr {number}.</answer>"
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/score", json={"rows": [row]}, timeout=patience(0.4), trust_env=False)
    deadline = time.monotonic() + patience(
        4.0
    )  # a lease that nobody ends would stay for three times as long as a call may take
    while time.monotonic() < deadline:
        (state, *_) = [replica["endpoints"][endpoint.url] for replica in fetch_status(url, None)["judge"]]
        if state["in_flight"] == 0:
            return
        time.sleep(0.2)
    pytest.fail(f"still held: {state}")


def test_prometheus_sees_what_the_dashboard_asks_for(url: str) -> None:
    port = ray.nodes()[0]["MetricsExportPort"]
    expected = {f"ray_rlsys_{name}" for name in ("reward_rows_ok_total", "judge_calls_total", "judge_seconds_bucket")}
    deadline = time.monotonic() + patience(40.0)
    while time.monotonic() < deadline:
        exported = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        missing = {name for name in expected if f"{name}{{" not in exported}
        if not missing:
            return
        time.sleep(1.0)
    pytest.fail(f"not exported: {missing}")

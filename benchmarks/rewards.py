"""Throughput and latency of the reward servers: `python -m benchmarks.rewards [--json FILE] [--only PART …]`.

The servers run on Ray Serve.

The parts are:
- rules: one well-formed response of temporal grounding, tracking and grounded QA, scored in this process and over HTTP
  with 1, 8 and 64 rows a request, 8 requests open, one replica.
- judge: captions that were not judged before, one row a request, two calls a row (split it, judge it), an endpoint that
  takes 0.5 s for a call and has no limit of its own; 1, 2, 4 and 8 replicas of the judge with four requests open in
  each and twice as many offered. "Linear" is the rate of one replica times their number.
- load: seconds of a request with 4 replicas at 70 % of the rate they just had, arrivals evenly spaced.
- cache: the same rows again.
- scale: seconds from the first of 16 open requests until four replicas run, and from the last until one does.
- training: a tiny model that was taught to write captions, 16 prompts x 8 responses a step, the same endpoint; the
  share of judging that other groups' generation hides, in synchronous steps and with one step of lag.
The cost of a row does not depend on the number of rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from benchmarks.judged_step import measure_training
from reward_servers.client.transport import fetch_status
from reward_servers.schema import ScoreRow
from reward_servers.scorers.scorers import rule_scores
from reward_servers.server import app
from rlsys.config.run import RewardConfig, ScoreSettings
from rlsys.tasks.table import default_names
from tests.support.judge_fault_server import FaultServer

CALL_S = 0.5
REPLICAS = (1, 2, 4, 8)
OPEN_PER_REPLICA = 4
NO_TOKEN = "RLSYS_BENCHMARK_NO_TOKEN"
RULE_ROWS: dict[str, dict[str, Any]] = {
    "temporal_grounding": {"text": "<think>a</think><answer>1.5 to 3.0</answer>", "truth": [1.0, 3.0]},
    "tracking": {
        "text": f"<think>a</think><answer>{[[0.1, 0.2, 0.5, 0.6]] * 8}</answer>",
        "truth": [[0.1, 0.2, 0.5, 0.7]] * 8,
    },
    "grounded_qa": {
        "text": "<think>a</think><answer>(B)</answer><glue>[(1.0, 2.0), (4.0, 5.0)]</glue>",
        "truth": {"answer": "(B)", "glue": [[1.0, 2.5]]},
    },
}
Rows = list[dict[str, Any]]


def measure_rules() -> list[dict[str, Any]]:
    """Return the rows per second of the rule scorers, in process and over HTTP."""
    results = []
    for task, fields in RULE_ROWS.items():
        row, names, count = ScoreRow(rollout_id="a", task=task, **fields), default_names(task), 5000
        started = time.perf_counter()
        for _ in range(count):
            rule_scores(row, names, ScoreSettings())
        results.append({"part": "rules", "what": f"in process, {task}", "rows_per_s": count / _since(started)})
    url = app.launch(RewardConfig(token_env=NO_TOKEN), "rules", with_judge=False)
    for size in (1, 8, 64):
        rows = [
            {"rollout_id": str(n), "task": "temporal_grounding", **RULE_ROWS["temporal_grounding"]} for n in range(size)
        ]
        requests = [rows] * (2000 // max(size, 4))
        seconds, took = asyncio.run(_closed_loop(url, requests, num_open=8))
        rate = size * len(requests) / seconds
        results.append({"part": "rules", "what": f"HTTP, {size} rows a request", "rows_per_s": rate, **_latency(took)})
    app.stop("rules")
    return results


def measure_judge(folder: Path) -> list[dict[str, Any]]:
    """Return the rates by number of replicas, then load and cache with four of them."""
    results: list[dict[str, Any]] = []
    with FaultServer(delay_s=CALL_S) as endpoint:
        for replicas in REPLICAS:
            url = app.launch(_judged(endpoint, folder, min_replicas=replicas, max_replicas=replicas), "judge")
            slots = replicas * OPEN_PER_REPLICA
            asyncio.run(_closed_loop(url, _captions(f"warm{replicas}", slots), num_open=slots))
            requests = _captions(f"r{replicas}", 10 * slots)
            seconds, took = asyncio.run(_closed_loop(url, requests, num_open=2 * slots))
            rate = len(requests) / seconds
            one = results[0]["rows_per_s"] if results else rate
            results.append(
                {
                    "part": "judge",
                    "what": f"{replicas} replicas",
                    "rows_per_s": rate,
                    "of_linear": rate / (one * replicas),
                    **_latency(took),
                }
            )
            if replicas == 4:
                results += [*_load(url, 0.7 * rate), _cache(url, requests, rate)]
            app.stop("judge")
    return results


def _load(url: str, rate: float) -> Iterator[dict[str, Any]]:
    took = asyncio.run(_open_loop(url, _captions("load", round(20 * rate)), rate))
    yield {"part": "load", "what": f"4 replicas at {rate:.1f} rows/s", "rows_per_s": rate, **_latency(took)}


def _cache(url: str, known: Sequence[Rows], rate: float) -> dict[str, Any]:
    seconds, took = asyncio.run(_closed_loop(url, [*known] * 4, num_open=32))
    again = 4 * len(known) / seconds
    return {"part": "cache", "what": "known rows", "rows_per_s": again, "times_faster": again / rate, **_latency(took)}


def measure_scaling(folder: Path) -> list[dict[str, Any]]:
    """Return the seconds until the judge has scaled up to its load and down again."""
    with FaultServer(delay_s=CALL_S) as endpoint:
        url = app.launch(_judged(endpoint, folder, min_replicas=1, max_replicas=4), "scaling")
        up_s, down_s = asyncio.run(_grow_and_shrink(url))
        app.stop("scaling")
    return [
        {"part": "scale", "what": "up, 1 to 4 replicas", "seconds": up_s},
        {"part": "scale", "what": "down, 4 to 1 replicas", "seconds": down_s},
    ]


async def _grow_and_shrink(url: str) -> tuple[float, float]:
    started = time.perf_counter()
    load = asyncio.create_task(_open_loop(url, _captions("grow", 20 * 60), rate=20.0))
    while await asyncio.to_thread(_running, url) < 4:
        await asyncio.sleep(0.5)
    up_s = _since(started)
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    started = time.perf_counter()
    while await asyncio.to_thread(_running, url) > 1:
        await asyncio.sleep(0.5)
    return up_s, _since(started)


def _running(url: str) -> int:
    return int(fetch_status(url, None)["deployments"]["JudgeServer"]["replicas"].get("RUNNING", 0))


def _judged(endpoint: FaultServer, folder: Path, **judge: Any) -> RewardConfig:
    settings = {
        "urls": [endpoint.url],
        "cache_path": folder / f"verdicts{endpoint.port}.sqlite",
        "max_concurrency": 1000,
        "target_ongoing_requests": OPEN_PER_REPLICA // 2,
        "max_queued_requests": 1000,
        **judge,
    }
    return RewardConfig.model_validate({"token_env": NO_TOKEN, "judge": settings})


def _captions(name: str, count: int) -> list[Rows]:
    truth = {"caption": "A dog runs. It stops.", "events": ["A dog runs.", "It stops."]}
    return [
        [
            {
                "rollout_id": "a",
                "task": "captioning",
                "text": f"<think>a</think><answer>A dog runs. Nr {name} {number}.</answer>",
                "truth": truth,
            }
        ]
        for number in range(count)
    ]


async def _closed_loop(url: str, requests: Sequence[Rows], num_open: int) -> tuple[float, list[float]]:
    """Return the seconds of all requests with `num_open` of them open at a time, and of each request."""
    slots = asyncio.Semaphore(num_open)
    took: list[float] = []
    async with _http(url, num_open) as http:

        async def one(rows: Rows) -> None:
            async with slots:
                took.append(await _ask(http, rows))

        await one(requests[0])
        took.clear()
        started = time.perf_counter()
        await asyncio.gather(*(one(rows) for rows in requests))
        return _since(started), took


async def _open_loop(url: str, requests: Sequence[Rows], rate: float) -> list[float]:
    """Return the seconds of each request, sent at `rate` per second whether or not earlier ones were answered."""
    async with _http(url, 1000) as http:
        tasks = []
        for rows in requests:
            tasks.append(asyncio.create_task(_ask(http, rows)))
            await asyncio.sleep(1 / rate)
        return list(await asyncio.gather(*tasks))


def _http(url: str, connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=url, timeout=120.0, trust_env=False, limits=limits)


async def _ask(http: httpx.AsyncClient, rows: Rows) -> float:
    started = time.perf_counter()
    response = await http.post("/v1/score", json={"rows": rows})
    response.raise_for_status()
    if bad := [reply["reason"] for reply in response.json() if reply["status"] != "ok"]:
        raise RuntimeError(f"a row was not scored: {bad[0]}")
    return _since(started)


def _latency(took: Sequence[float]) -> dict[str, float]:
    return {f"p{share}_ms": float(np.percentile(took, share)) * 1000 for share in (50, 95, 99)}


def _since(started: float) -> float:
    return time.perf_counter() - started


def show(results: Sequence[dict[str, Any]]) -> None:
    columns = ("rows_per_s", "of_linear", "times_faster", "seconds", "p50_ms", "p95_ms", "p99_ms", "hidden_frac")
    table = Table(title="Reward servers", title_justify="left")
    for heading in ("part", "what"):
        table.add_column(heading)
    for heading in columns:
        table.add_column(heading.replace("_", " "), justify="right")
    for row in results:
        cells = (
            f"{row[key]:,.0f}" if row.get(key, 0) >= 100 else f"{row[key]:.2f}" if key in row else "" for key in columns
        )
        table.add_row(row["part"], row["what"], *cells)
    Console(width=140).print(table)


@contextmanager
def _cluster() -> Iterator[None]:
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=4,
        object_store_memory=100_000_000,
        logging_level=logging.WARNING,
    )
    try:
        yield
    finally:
        app.forget()
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    parser.add_argument("--only", nargs="+", choices=("rules", "judge", "scale", "training"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlsys-rewards-") as name:
        folder = Path(name)
        served: dict[str, Callable[[], list[dict[str, Any]]]] = {
            "rules": measure_rules,
            "judge": lambda: measure_judge(folder),
            "scale": lambda: measure_scaling(folder),
        }
        results: list[dict[str, Any]] = []
        with _cluster():
            for part, measure in served.items():
                if not options.only or part in options.only:
                    results += measure()
        if not options.only or "training" in options.only:
            results += measure_training(folder, CALL_S)
    show(results)
    if options.json:
        options.json.write_text(json.dumps({"rows": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

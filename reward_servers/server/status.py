"""The service's status as lines that a person reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

STATUSES = ("ok", "abstain", "infra", "malformed")


def status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of what GET /v1/status answers: replicas per deployment, counters, the judge's endpoints."""
    yield f"{status['application']}"
    for name, deployment in status["deployments"].items():
        states = ", ".join(f"{count} {state.lower()}" for state, count in deployment["replicas"].items() if count)
        yield f"  {name}: {deployment['status'].lower()}, replicas: {states or 'none'}"
    rules = _summed(status["rules"])
    yield (
        f"  requests: {_n(rules['requests'])} answered, {_n(rules['open'])} open, {_n(rules['refused'])} refused (429)"
    )
    statuses = ", ".join(f"{_n(rules[f'rows_{name}'])} {name}" for name in STATUSES)
    yield f"  rows: {_n(rules['rows'])} ({statuses}), {rules['rows_per_s']:.2f} a second in the last minute"
    for name, seconds in sorted(_scorer_seconds(status["rules"]).items()):
        yield f"  custom scorer {name}: {seconds:.2g} s a call"
    if not status["judge"]:
        yield "  judge: none"
        return
    yield from _judge_lines(status["judge"])


def _judge_lines(replicas: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    counters = _summed(replicas)
    hits, misses = counters["cache_hits"], counters["cache_misses"]
    rate = f"{hits / (hits + misses):.0%}" if hits + misses else "no look-ups yet"
    age_s = max(replica["counters"].get("cache_mean_hit_age_s", 0.0) for replica in replicas)
    yield f"  judge: {replicas[0]['kind']} {replicas[0]['model']}, {len(replicas)} replicas"
    yield f"    cache hits: {rate} ({_n(hits)} of {_n(hits + misses)}), {age_s:.0f} s old on average"
    statuses = ", ".join(f"{_n(counters[f'tasks_{name}'])} {name}" for name in STATUSES)
    yield f"    verdicts: {statuses}; {_n(counters['calls'])} calls, {_n(counters['shared_calls'])} shared"
    if replicas[0]["endpoints"]:
        yield f"    calls waiting for an endpoint: {replicas[0]['waiting']}"
    for url, endpoint in replicas[0]["endpoints"].items():
        yield f"    {url}: " + ", ".join(f"{key} {_shown(value)}" for key, value in endpoint.items())


def _summed(replicas: Sequence[Mapping[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for replica in replicas:
        total.update(replica["counters"])
    return total


def _scorer_seconds(replicas: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean seconds of each custom scorer, of the replica where it is slowest."""
    found: dict[str, float] = {}
    for replica in replicas:
        for key, value in replica["counters"].items():
            if key.startswith("scorer_") and key.endswith("_s"):
                name = key.removeprefix("scorer_").removesuffix("_s")
                found[name] = max(found.get(name, 0.0), value)
    return found


def _n(count: float) -> str:
    return f"{count:.0f}"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

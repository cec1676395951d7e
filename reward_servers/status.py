"""The service's status as lines that a person reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def lines(status: Mapping[str, Any]) -> Iterator[str]:
    """`status` is what GET /v1/status answers: replicas per deployment, counters per replica, the judge's endpoints."""
    yield f"{status['application']}"
    for name, deployment in status["deployments"].items():
        states = ", ".join(f"{count} {state.lower()}" for state, count in deployment["replicas"].items() if count)
        yield f"  {name}: {deployment['status'].lower()}, replicas: {states or 'none'}"
    rules = _summed(status["rules"])
    yield (
        f"  requests: {_n(rules['requests'])} answered, {_n(rules['open'])} open, {_n(rules['refused'])} refused (429)"
    )
    yield (
        f"  rows: {_n(rules['rows'])}, of these {_n(rules['rows_ok'])} ok, {_n(rules['rows_abstain'])} abstain, "
        f"{_n(rules['rows_infra'])} infra, {_n(rules['rows_malformed'])} malformed"
    )
    if not status["judge"]:
        yield "  judge: none"
        return
    yield from _judge_lines(status["judge"])


def _judge_lines(replicas: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    counters = _summed(replicas)
    hits, misses = counters["cache_hits"], counters["cache_misses"]
    rate = f"{hits / (hits + misses):.0%}" if hits + misses else "no look-ups yet"
    yield f"  judge: {replicas[0]['kind']}, {len(replicas)} replicas, cache hits {rate} ({_n(hits)} of {_n(hits + misses)})"
    others = {name: value for name, value in sorted(counters.items()) if name not in ("cache_hits", "cache_misses")}
    yield "    " + ", ".join(f"{name} {value:g}" for name, value in others.items())
    for url, endpoint in replicas[0]["endpoints"].items():
        yield f"    {url}: " + ", ".join(f"{key} {_shown(value)}" for key, value in endpoint.items())


def _summed(replicas: Sequence[Mapping[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for replica in replicas:
        total.update(replica["counters"])
    return total


def _n(count: float) -> str:
    return f"{count:.0f}"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

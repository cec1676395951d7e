"""What Prometheus is told, and the dashboard that shows it."""

from __future__ import annotations

import json
import re

from reward_servers.server.exported_metrics import EXPORTED, SECONDS, flattened
from tests.support.paths import REPO

DASHBOARD = REPO / "cluster" / "grafana" / "reward_servers.json"


def test_the_dashboard_asks_for_metrics_that_exist_and_for_all_of_them() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = set(re.findall(r"ray_(rlsys_\w+)", " ".join(t["expr"] for panel in panels for t in panel["targets"])))
    exported = {f"rlsys_{part}_{name}_total" for part, names in EXPORTED.items() for name in names}
    assert asked <= exported | {f"{SECONDS}_bucket"}
    assert {"rlsys_reward_rows_infra_total", "rlsys_judge_cache_hits_total", f"{SECONDS}_bucket"} <= asked


def test_nested_counters_become_flat_numbers() -> None:
    counters = {"judge": "llm", "tasks": {"ok": 3, "infra": 0}, "cache": {"hits": 2, "hit_rate": 0.5}, "calls": 7}
    assert flattened(counters) == {"tasks_ok": 3, "tasks_infra": 0, "cache_hits": 2, "cache_hit_rate": 0.5, "calls": 7}

"""The report of the demo's second part; the run itself is `make demo TASKS=all`."""

from __future__ import annotations

import pytest

from rlsys.demo.all_tasks import MEASURES, print_table, verdict
from rlsys.demo.synthetic_tasks import ROWS

TASKS = tuple(ROWS)


def results(rewards_after: dict[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    def stage(reward: dict[str, float]) -> dict[str, dict[str, float]]:
        measures = {key: 0.5 for key, _ in MEASURES.values()}
        return {
            f"{decoding}/{task}": {**measures, "format": 0.9, "reward": reward.get(task, 1.0)}
            for decoding in ("sampled", "greedy")
            for task in TASKS
        }

    return {"cold_start": stage({}), "grpo": stage(rewards_after), "shuffled_video": stage({})}


def test_the_verdict_counts_the_tasks_that_gained_and_names_the_others() -> None:
    lines = verdict(results({"captioning": 1.4, "tracking": 0.8}), TASKS)
    assert "captioning: reward 1.000 -> 1.400" in "\n".join(lines)
    assert lines[-1].startswith("GRPO raised the reward of 1 of 5 tasks, but not of ")
    assert "tracking" in lines[-1] and "captioning" not in lines[-1]


def test_the_table_fits_a_terminal_and_has_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Held-out", results({}), TASKS)
    printed = capsys.readouterr().out
    assert all(task in printed for task in TASKS)
    assert max(map(len, printed.splitlines())) <= 80

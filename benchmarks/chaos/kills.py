"""The plan of kills, and what each of them cost: pure functions."""

from __future__ import annotations

import random
import signal
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

KILL, STOP = signal.SIGKILL, signal.SIGSTOP

TITLES: Mapping[str, tuple[str, ...]] = {
    "actor": ("ray::RolloutActor",),
    "rank": ("ray::LearnerWorker",),
    "rules": ("ray::ServeReplica", ":RuleScorers"),
    "judge": ("ray::ServeReplica", ":JudgeServer"),
    "decoder": ("ray::Decoder",),
}
"""Kind of victim -> the start of its process's title, and texts in it. "driver" and "raylet" are known by id."""

ALL: tuple[tuple[str, signal.Signals], ...] = (
    ("actor", KILL),
    ("rank", KILL),
    ("driver", KILL),
    ("actor", STOP),
    ("rules", KILL),
    ("raylet", KILL),
    ("rank", STOP),
    ("judge", KILL),
    ("decoder", KILL),
    ("driver", STOP),
    ("rules", STOP),
    ("raylet", STOP),
    ("decoder", STOP),
    ("judge", STOP),
)
"""Every kind of victim with every signal; those that also exist in a run without a judge come first."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A planned kill, due `delay_s` after step `after_step` was first done."""

    victim: str
    signal: signal.Signals
    after_step: int
    delay_s: float


@dataclass(kw_only=True)
class Deed:
    """A kill that was carried out, or for which there was no victim.

    at_s: seconds since the run began.  pid: 0 for no victim.  where: address of the victim's node.
    step: the newest step done by then.  next_step_s: seconds from the kill until a newer step was done.
    is_recovered: whether that step was done, or no step was left.
    lost_s: seconds by which the following steps exceeded the median step of the run without kills.
    """

    kill: Kill
    at_s: float
    pid: int
    step: int
    where: str = ""
    next_step_s: float | None = None
    is_recovered: bool = False
    lost_s: float = 0.0
    noted: list[str] = field(default_factory=list)


def plan_kills(
    seed: int, victims: Sequence[tuple[str, signal.Signals]], *, first_step: int = 1, spread_s: float = 3.0
) -> list[Kill]:
    """Return kills of the victims in random order and at random times, some during the recovery from the one before.

    Every third kill comes within `spread_s` after the one before it, the others one to three steps later.
    """
    draws = random.Random(seed)
    order = list(victims)
    draws.shuffle(order)
    step, kills = first_step, []
    for index, (victim, number) in enumerate(order):
        if index:
            step += 0 if draws.random() < 1 / 3 else draws.randint(1, 3)
        kills.append(Kill(victim=victim, signal=number, after_step=step, delay_s=draws.uniform(0, spread_s)))
    return kills


def steps_for(kills: Sequence[Kill], behind: int = 4) -> int:
    """Return the number of steps of a run that has room for all kills, and `behind` steps after them."""
    return max(kill.after_step for kill in kills) + behind


def spread_losses(deeds: Sequence[Deed], step_times_s: Mapping[int, float], median_s: float) -> None:
    """Set each deed's `next_step_s` and its share of the time by which steps were longer than `median_s`.

    step_times_s: by step of a finished run, when it was first done, on the clock of `at_s`. The excess time of a step
    is split equally over the deeds during it, or else over the last ones before it.
    """
    times = sorted(step_times_s.items())
    done = [deed for deed in deeds if deed.pid]
    for deed in done:
        later = [at_s for _, at_s in times if at_s > deed.at_s]
        deed.next_step_s = later[0] - deed.at_s if later else None
        deed.is_recovered = bool(later) or deed.step == times[-1][0]
        deed.lost_s = 0.0
    blamed: list[Deed] = []
    for (_, before_s), (_, after_s) in zip(times, times[1:], strict=False):
        during = [deed for deed in done if before_s < deed.at_s <= after_s]
        blamed = during or blamed
        for deed in blamed:
            deed.lost_s += max(0.0, after_s - before_s - median_s) / len(blamed)


def median_step_s(step_times_s: Mapping[int, float]) -> float:
    """Return the median time between steps, without the first ones (warm-up) if there are enough."""
    times = [at_s for _, at_s in sorted(step_times_s.items())]
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    return statistics.median(gaps[2:] or gaps)


def by_kind(deeds: Sequence[Deed]) -> list[dict[str, object]]:
    """Return a row per kind of victim and signal: number of kills, number survived, and seconds lost."""
    rows = []
    for victim, number in dict.fromkeys((deed.kill.victim, deed.kill.signal) for deed in deeds if deed.pid):
        those = [d for d in deeds if d.pid and (d.kill.victim, d.kill.signal) == (victim, number)]
        lost = [deed.lost_s for deed in those]
        rows.append(
            {
                "victim": victim,
                "signal": number.name,
                "kills": len(those),
                "recovered": sum(deed.is_recovered for deed in those),
                "mean_lost_s": statistics.mean(lost),
                "max_lost_s": max(lost),
            }
        )
    return sorted(rows, key=lambda row: (str(row["victim"]), str(row["signal"])))

"""Report the progress of a run: a live line on a terminal or log lines elsewhere, and a table at the end."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich import get_console
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)

PACE_STEPS = 20  # the remaining time is estimated from the newest steps, as lengths and loads change
LINES_PER_RUN = 20
LONGEST_SILENCE_S = 60.0
BAR_FROM_COLUMNS = 110  # narrower terminals have no room for a bar
BAR_COLUMNS = 20


@dataclass(frozen=True)
class Shown:
    """How a metric is displayed. form: a format specification."""

    label: str
    metric: str
    form: str


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is displayed for one kind of run.

    headline: the metric to be optimised.  others: further metrics in the line.  counted: the unit of a step's count.
    means, maxima: over all steps, in the table.
    sums, counters: faults, shown in the table if nonzero; counters are cumulative, so their last value is shown.
    """

    headline: Shown
    others: Sequence[Shown]
    counted: str
    means: Sequence[Shown] = ()
    maxima: Sequence[Shown] = ()
    sums: Sequence[Shown] = ()
    counters: Sequence[Shown] = ()


TRAINING = Kind(
    headline=Shown("reward", "reward/total/mean", ".3f"),
    others=(Shown("rollouts/s", "perf/rollouts_per_s", ".3g"), Shown("staleness", "weights/lag_updates/max", ".0f")),
    counted="rollouts",
    means=(
        Shown("mean staleness", "weights/lag_updates/mean", ".2f"),
        Shown("failed rewards", "reward/failed_frac", ".1%"),
    ),
    maxima=(Shown("largest staleness", "weights/lag_updates/max", ".0f"),),
    sums=(
        Shown("stale groups", "rollout/stale_groups", ".0f"),
        Shown("bad clips", "data/bad_draws", ".0f"),
        Shown("quarantined rows", "data/quarantined_draws", ".0f"),
    ),
    counters=(
        Shown("lost actors", "rollout/lost_actors", ".0f"),
        Shown("learner restarts", "cluster/learner_restarts", ".0f"),
    ),
)
FINE_TUNING = Kind(
    headline=Shown("loss", "loss/nll", ".3f"),
    others=(Shown("epoch", "data/epochs", ".2f"), Shown("tokens/s", "perf/learner_tokens_per_s", ".0f")),
    counted="demonstrations",
    maxima=(Shown("epochs", "data/epochs", ".2f"),),
)


class Pace:
    """The mean seconds per step over the newest `PACE_STEPS` steps."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=PACE_STEPS)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def seconds_for(self, num_steps: int) -> float:
        """Return the expected seconds for `num_steps`, NaN before the first step is done."""
        return num_steps * sum(self._seconds) / len(self._seconds) if self._seconds else math.nan


class RunSummary:
    """Totals and means over all steps of a run."""

    def __init__(self, kind: Kind, first_step: int) -> None:
        self.kind, self.first_step, self.count = kind, first_step, 0
        self._values: dict[str, list[float]] = {}

    def add(self, metrics: Mapping[str, float], count: int) -> None:
        """Add a step. count: its number of rollouts, or of what else the kind counts."""
        self.count += count
        kind = self.kind
        shown = (kind.headline, *kind.means, *kind.maxima, *kind.sums, *kind.counters)
        for metric in {one.metric for one in shown}:
            self._values.setdefault(metric, []).append(metrics.get(metric, math.nan))

    def rows(self, seconds: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return (label, value) rows: steps, headline, counts and means, then seconds by phase, longest first."""
        headline = self.kind.headline
        values = self._values.get(headline.metric, [])
        if not values:
            return [("steps", "none")]
        tenth = math.ceil(len(values) / 10)
        first, last = _mean(values[:tenth]), _mean(values[-tenth:])
        total_s = sum(seconds.values())
        rows = [
            ("steps", f"{len(values)} ({self.first_step} to {self.first_step + len(values) - 1})"),
            (headline.label, f"{first:{headline.form}} in the first 10 %, {last:{headline.form}} in the last"),
            (self.kind.counted, f"{self.count:,}"),
            *((shown.label, f"{_mean(self._values[shown.metric]):{shown.form}}") for shown in self.kind.means),
            *((shown.label, f"{_largest(self._values[shown.metric]):{shown.form}}") for shown in self.kind.maxima),
            *self._troubles(),
            ("time", duration(total_s)),
        ]
        by_length = sorted(seconds.items(), key=lambda phase: -phase[1])
        return rows + [(f"  {phase}", f"{value:.1f} s  {value / total_s:.0%}") for phase, value in by_length if value]

    def _troubles(self) -> Iterator[tuple[str, str]]:
        for shown in self.kind.sums:
            if total := sum(value for value in self._values[shown.metric] if not math.isnan(value)):
                yield shown.label, f"{total:{shown.form}}"
        for shown in self.kind.counters:
            if (last := _largest(self._values[shown.metric])) > 0:
                yield shown.label, f"{last:{shown.form}}"


class Progress:
    """Reports each step of a run, inside a `with` block.

    On a terminal, the newest step is a live line at the bottom, with `gauges` (by label) refreshed twice a second.
    Elsewhere, steps are log lines: the first three, about twenty more, and one per minute.
    """

    def __init__(self, kind: Kind, steps_done: int, num_steps: int, gauges: Mapping[str, Callable[[], float]]) -> None:
        self._kind, self._step, self._num_steps, self._gauges = kind, steps_done, num_steps, gauges
        self._first_step = steps_done + 1
        self.summary = RunSummary(kind, self._first_step)
        self._pace = Pace()
        self._metrics: Mapping[str, float] = {}
        self._live: Live | None = None
        self._step_at = self._logged_at = time.monotonic()

    def __enter__(self) -> Progress:
        self._step_at = self._logged_at = time.monotonic()
        console = get_console()  # the console of the log handler, so that log lines appear above
        if _is_watched(console):
            self._live = Live(get_renderable=self._renderable, console=console, refresh_per_second=2, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            log.info("%s", self._line())

    def step(self, step: int, metrics: Mapping[str, float], count: int) -> None:
        """Report a finished step. count: its number of rollouts, or of what else the kind counts."""
        now = time.monotonic()
        self._pace.add(now - self._step_at)
        self._step, self._metrics, self._step_at = step, metrics, now
        self.summary.add(metrics, count)
        if self._live is None and self._is_logged(step, now):
            self._logged_at = now
            log.info("%s  %s", self._line(), phases(metrics))

    def _is_logged(self, step: int, now: float) -> bool:
        return (
            step < self._first_step + 3
            or step % max(10, self._num_steps // LINES_PER_RUN) == 0
            or step == self._num_steps
            or now - self._logged_at > LONGEST_SILENCE_S
        )

    def _line(self) -> str:
        since_s = time.monotonic() - self._step_at
        left_s = max(0.0, self._pace.seconds_for(self._num_steps - self._step) - since_s)
        gauges = {label: gauge() for label, gauge in self._gauges.items()}
        return line(self._kind, self._step, self._num_steps, self._metrics, left_s=left_s, gauges=gauges)

    def _renderable(self) -> Table:
        grid, text = Table.grid(padding=(0, 1)), self._line()
        if get_console().width < BAR_FROM_COLUMNS:
            grid.add_row(Text(text.removeprefix("step "), no_wrap=True, overflow="ellipsis"))
        else:
            bar = ProgressBar(total=self._num_steps, completed=self._step, width=BAR_COLUMNS)
            grid.add_row(bar, Text(text, no_wrap=True, overflow="ellipsis"))
        return grid


def line(
    kind: Kind,
    step: int,
    num_steps: int,
    metrics: Mapping[str, float],
    *,
    left_s: float,
    gauges: Mapping[str, float],
) -> str:
    """Return `step 10/100  ETA 3:20  reward 0.512  …`, most important first; unknown values are omitted."""
    parts = [f"step {step}/{num_steps}"]
    if step < num_steps and not math.isnan(left_s):
        parts.append(f"ETA {clock_time(left_s)}")
    for shown in (kind.headline, *kind.others):
        if not math.isnan(value := metrics.get(shown.metric, math.nan)):
            parts.append(f"{shown.label} {value:{shown.form}}")
    return "  ".join(parts + [f"{label} {value:.0f}" for label, value in gauges.items()])


def phases(metrics: Mapping[str, float]) -> str:
    """Return the phases of a step in order, as `collect 1.50s update 0.40s`."""
    names = [name for name in metrics if name.startswith("time/") and name.count("/") == 1 and name != "time/step_s"]
    return " ".join(f"{name.removeprefix('time/').removesuffix('_s')} {metrics[name]:.2f}s" for name in names)


def clock_time(seconds: float) -> str:
    """Format seconds as `3:20`, `2:05:00` or `1d 4:00:00`."""
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}:{minutes:02d}:{rest_s:02d}"
    return f"{hours}:{minutes:02d}:{rest_s:02d}" if hours else f"{minutes}:{rest_s:02d}"


def duration(seconds: float) -> str:
    """Format seconds as `12.3 s` below two minutes, above as `clock_time` does."""
    return f"{seconds:.1f} s" if seconds < 120 else clock_time(seconds)


def show_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print a table on a terminal, or log its rows elsewhere."""
    console = get_console()
    if not _is_watched(console):
        log.info("%s", title)
        for label, value in rows:
            log.info("  %-18s %s", label, value)
        return
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, Text(value))
    console.print(table)


def _is_watched(console: Console) -> bool:
    """Return whether the console is a terminal that can redraw a line, not only one with forced colours as in CI."""
    return console.is_interactive and console.file.isatty()


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan


def _largest(values: Sequence[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)

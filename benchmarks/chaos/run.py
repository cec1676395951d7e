"""A run on a cluster of two nodes with kills, and the checks of its results."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from benchmarks.chaos.cluster import SECOND, TwoNodes, is_stopped, signal_all, started, title
from benchmarks.chaos.kills import STOP, Deed, Kill, spread_losses
from rlsys.runs.records import ledger
from rlsys.runs.records.checkpoint import find, load_state
from rlsys.tracking.spool import read_records
from rlsys.tracking.unsent import FOLDER

log = logging.getLogger(__name__)

POLL_S = 0.1
VICTIM_TIMEOUT_S = 90.0
"""Seconds for which a victim that is being started may take to appear."""
STOPPED_S = 15.0
"""Seconds after which the operator ends a stopped driver, or a node whose raylet is stopped."""
TAIL = 6000
COMPARED = ("reward/total", "reward/iou", "reward/format", "advantage", "loss", "policy", "optim")
"""Prefixes of metrics that depend only on weights, prompts and seeds."""


class ChaosFailed(AssertionError):
    """An error for a run that did not continue or ended wrongly; the message has the end of its log."""


@dataclass(kw_only=True)
class Run:
    """The results of a run. step_times_s: by step, seconds from the run's start until it was first done."""

    folder: Path
    deeds: list[Deed]
    step_times_s: dict[int, float]
    wall_s: float
    digest: str
    starts: int = 1
    left_over: list[str] = field(default_factory=list)


class ChaosRun:
    """One run, whose driver is started again whenever it is killed.

    silence_s: seconds without a new step after which it counts as hung.  command: subcommand of `rlsys`.
    """

    def __init__(
        self,
        cluster: TwoNodes,
        config: Mapping[str, Any],
        kills: Sequence[Kill],
        silence_s: float,
        command: Literal["train", "sft"] = "train",
    ) -> None:
        self._command = command
        self._cluster, self._kills, self._silence_s = cluster, list(kills), silence_s
        self._out = Path(config["output_dir"])
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._config = self._out.with_suffix(".yaml")
        whole = {**config, "cluster": {**config.get("cluster", {}), "address": cluster.address}}
        self._config.write_text(yaml.safe_dump(whole))
        self._log = self._out.with_suffix(".log")
        self._steps = StepWatch(self._out)
        self._run = Run(folder=self._out, deeds=[], step_times_s={}, wall_s=0.0, digest="", starts=0)
        self._driver: subprocess.Popen[bytes]
        self._switch_off: list[tuple[float, str]] = []
        self._due_s: float | None = None
        self._progress_s = 0.0

    def run(self) -> Run:
        """Return the results once the run has succeeded. Raises ChaosFailed if it fails or hangs."""
        self._began = time.monotonic()
        self._start_driver()
        try:
            while (code := self._driver.poll()) != 0:
                if code is not None:
                    self._restart_driver(code)
                self._look()
                self._kill_what_is_due()
                time.sleep(POLL_S)
            self._look()
        finally:
            self._end_driver()
        run = self._run
        run.wall_s = self._now()
        run.digest = json.loads((self._out / "summary.json").read_text())["weights_digest"]
        return run

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _start_driver(self) -> None:
        command = [sys.executable, "-m", "rlsys.commands.app", self._command, str(self._config)]
        if self._run.starts:
            command += ["--resume", str(self._out)]
        self._run.starts += 1
        with self._log.open("a") as output:
            output.write(f"--- {self._now():.1f} s: {' '.join(command[2:])}\n")
        environment = {**os.environ, **self._cluster.environment, "PYTHONFAULTHANDLER": "1"}
        self._driver = started(command, environment, self._log)
        self._progress_s = self._now()

    def _restart_driver(self, code: int) -> None:
        if code != -signal.SIGKILL:
            raise ChaosFailed(f"the driver ended with {code}: {self._tail()}")
        self._switch_off = [(at_s, what) for at_s, what in self._switch_off if what != "driver"]
        self._start_driver()

    def _end_driver(self) -> None:
        if self._driver.poll() is None:
            self._driver.kill()
        self._driver.wait()

    def _look(self) -> None:
        """Record new steps, and restart what an operator or a service would restart."""
        for step in self._steps.new():
            self._run.step_times_s[step] = self._progress_s = self._now()
        for at_s, what in list(self._switch_off):
            if self._now() >= at_s:
                self._switch_off.remove((at_s, what))
                if what == "driver":
                    self._driver.kill()
                else:
                    self._cluster.second.end(hard=True)
        if self._cluster.second.has_ended:
            self._cluster.note_processes()
            self._cluster.restart_second()
        if self._now() - self._progress_s > self._silence_s:
            self._dump_stacks()
            raise ChaosFailed(f"no step for {self._silence_s:g} s: {self._tail()}")

    def _kill_what_is_due(self) -> None:
        if not self._kills:
            return
        kill, now_s = self._kills[0], self._now()
        if self._due_s is None and max(self._run.step_times_s, default=0) >= kill.after_step:
            self._due_s = now_s + kill.delay_s
        if self._due_s is None or now_s < self._due_s:
            return
        deed = self._do(kill)
        if deed is None and now_s < self._due_s + VICTIM_TIMEOUT_S and self._driver.poll() is None:
            return
        step = max(self._run.step_times_s, default=0)
        deed = deed or Deed(kill=kill, at_s=now_s, pid=0, step=step, noted=["no victim"])
        log.info("%5.1f s, step %d: %s %s, process %d", deed.at_s, step, kill.signal.name, kill.victim, deed.pid)
        self._run.deeds.append(deed)
        self._kills.pop(0)
        self._due_s = None

    def _do(self, kill: Kill) -> Deed | None:
        """Carry out a kill and return it; None if there is no victim now."""
        self._cluster.note_processes()
        victim = self._victim(kill)
        if victim is None:
            return None
        deed = Deed(
            kill=kill,
            at_s=self._now(),
            pid=victim.pid,
            step=max(self._run.step_times_s, default=0),
            where=self._cluster.where(victim),
        )
        signal_all([victim], kill.signal)
        if kill.signal == STOP and kill.victim in ("driver", "raylet"):
            self._switch_off.append((self._now() + STOPPED_S, kill.victim))
        return deed

    def _victim(self, kill: Kill) -> psutil.Process | None:
        if kill.victim == "driver":
            running = self._driver.poll() is None and not any(what == "driver" for _, what in self._switch_off)
            return psutil.Process(self._driver.pid) if running else None
        if kill.victim == "raylet":
            raylet = self._cluster.second.raylet()
            return None if raylet is None or is_stopped(raylet) else raylet
        found = self._cluster.find(kill.victim)
        # the choice depends on the time, which is random
        return found[int(kill.delay_s * 1000) % len(found)] if found else None

    def _tail(self) -> str:
        return f"{self._log}\n{self._log.read_text(errors='replace')[-TAIL:]}"

    def _dump_stacks(self) -> None:
        """Make the driver write the stacks of its threads into its log (PYTHONFAULTHANDLER), if it can."""
        if self._driver.poll() is None:
            self._driver.send_signal(signal.SIGABRT)
            time.sleep(2.0)
        log.error("processes:\n%s", "\n".join(self._processes()))

    def _processes(self) -> list[str]:
        nodes = (self._cluster.head, self._cluster.second)
        return [
            f"{node.address} {one.pid} {'stopped ' if is_stopped(one) else ''}{title(one)[:100]}"
            for node in nodes
            for one in node.tree()
        ]


class StepWatch:
    """A watch for a run's new steps, in the files that its tracker writes with each step."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / FOLDER
        self._read_to: dict[Path, int] = {}
        self._newest = 0

    def new(self) -> list[int]:
        """Return the steps that were done since the last call, each once."""
        found = []
        for path in sorted(self._folder.glob("*/*.jsonl")):
            try:
                for record, after in read_records(path, self._read_to.get(path, 0)):
                    self._read_to[path] = after
                    if record and record["kind"] == "metrics" and record["step"] > self._newest:
                        self._newest = record["step"]
                        found.append(self._newest)
            except FileNotFoundError:
                continue  # all of it was sent meanwhile
        return found


def check_run(run: Run, reference: Run | None, num_steps: int) -> list[str]:
    """Return the problems of a finished run; [] if there are none. reference: a run that must equal it."""
    final = find(run.folder)
    state = load_state(final)
    entries = ledger.read(final)
    found = [f"left over: {process}" for process in run.left_over]
    found += [f"ledger: {problem}" for problem in ledger.problems(entries, state.prompts_consumed)]
    if [entry.step for entry in entries] != list(range(1, num_steps + 1)):
        found.append(f"ledger: steps {[entry.step for entry in entries]}")
    values = tracked(run.folder, state.mlflow_run_id)
    for name in ("reward/total/mean", "optim/grad_norm"):
        steps = [step for step, _ in values.get(name, [])]
        if steps != list(range(1, num_steps + 1)):
            found.append(f"MLflow: {name} at steps {steps}")
    if reference is None:
        return found
    if run.digest != reference.digest:
        found.append(f"weights: digest {run.digest}, not {reference.digest}")
    wanted = find(reference.folder)
    if [(one.trained, one.skipped) for one in entries] != [(o.trained, o.skipped) for o in ledger.read(wanted)]:
        found.append("ledger: other prompts than without kills")
    expected = tracked(reference.folder, load_state(wanted).mlflow_run_id)
    return found + [
        f"MLflow: {name} is not as without kills"
        for name in sorted(values.keys() | expected.keys())
        if name.startswith(COMPARED) and values.get(name) != expected.get(name)
    ]


def tracked(run_folder: Path, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of every metric in the run's SQLite file, in order of steps."""
    values: dict[str, list[tuple[int, float]]] = {}
    with closing(sqlite3.connect(f"file:{run_folder / 'mlflow.db'}?mode=ro", uri=True)) as database:
        rows = database.execute("select key, step, value from metrics where run_uuid = ? order by step", (run_id,))
        for key, step, value in rows:
            values.setdefault(key, []).append((step, value))
    return values


def finish(run: Run, cluster: TwoNodes, median_s: float) -> Run:
    """Return the run with the losses of its kills computed and the surviving processes listed."""
    spread_losses(run.deeds, run.step_times_s, median_s)
    run.left_over = [f"{one.pid} {title(one)}" for one in cluster.survivors()]
    return run


__all__ = ["SECOND", "ChaosFailed", "ChaosRun", "Run", "check_run", "finish"]

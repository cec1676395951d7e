"""Three steps of a whole run and a resume, each figure beside the plan's."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.gpu_check.figures import GIB, Check, Figure, Skipped, at_least, at_most, found
from rlsys.config.run import RunConfig, load
from rlsys.demo.synthetic import draw_dataset
from rlsys.planning.plan import Section, assumptions
from rlsys.planning.plan_times import Measured
from rlsys.runs.plan_inputs import plan

NUM_STEPS, AFTER_RESUME = 3, 4
SAMPLER_DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Mean difference of log-probs between engine and learner."""
MEMORY_EVERY_S = 1.0
NEEDS = (
    "give --config configs/charades_sta.yaml and --set model.path=FOLDER data.annotations=FILE data.videos=FOLDER, "
    "with more settings where there are fewer than eight GPUs"
)


def run(check: Check) -> Iterator[Figure]:
    """The config's run for three steps, then one more after a resume. Its folder stays beside the report."""
    out = check.out / "run"
    shutil.rmtree(out, ignore_errors=True)
    file, overrides = _of_the_run(check, out)
    config = load(Path(file), [*overrides, f"train.num_steps={NUM_STEPS}"])
    sections = plan(config, assumptions(config.cluster.device, ()), Measured())
    for section in sections:
        for line in section.lines:
            yield found(f"plan, {section.title}: {line.name}", line.value)
    with _watched_memory(check) as peaks:
        started = time.perf_counter()
        _train(file, overrides, NUM_STEPS)
        yield found("three steps, start and end included", time.perf_counter() - started, "s")
    metrics = _metrics(out)
    yield from _beside_the_plan(metrics, sections)
    limit = SAMPLER_DIFFERENCE[config.model.dtype]
    apart = metrics[NUM_STEPS].get("policy/sampler_logprob_diff/mean", float("nan"))
    yield at_most("log-probs of engine and learner, mean difference", apart, limit)
    for index, peak in enumerate(peaks):
        yield _of_the_memory(f"GPU {index}: most memory in use", peak, config)
    first = json.loads((out / "summary.json").read_text())
    _train(file, [*overrides, "--resume", str(out)], AFTER_RESUME)
    second = json.loads((out / "summary.json").read_text())
    yield at_least("steps after the resume", float(second["num_steps"]), AFTER_RESUME)
    yield at_most("MLflow runs beyond the first", float(first["mlflow_run_id"] != second["mlflow_run_id"]), 0)
    yield at_least("steps with metrics", float(len(_metrics(out))), AFTER_RESUME)


def _of_the_run(check: Check, out: Path) -> tuple[str, list[str]]:
    """The run's config file and overrides; on a CPU without --config the demo's, on clips that are drawn here."""
    settings: dict[str, object] = {"output_dir": out, "tracking.uri": f"sqlite:///{out / 'mlflow.db'}"}
    settings |= {"checkpoint.every_steps": NUM_STEPS, "tracking.log_model": "false"}
    if not check.config:
        if not check.is_toy:
            raise Skipped(NEEDS)
        clips = draw_dataset(check.scratch / "clips", num_clips=8, seed=3)
        settings |= {"model.path": check.scratch / "model", "data.annotations": clips.annotations}
        settings |= {"data.videos": clips.videos, "rollout.num_actors": 1, "rollout.group_size": 4}
        settings |= {"learner.num_ranks": 1, "train.prompts_per_step": 2}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return check.config or "demo", [*overrides, *check.overrides]


def _train(file: str, arguments: Sequence[str], num_steps: int) -> None:
    """Run `rlsys train`, whose output goes to this step's log. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "rlsys.commands.app", "train", file, f"train.num_steps={num_steps}", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _metrics(out: Path) -> dict[int, dict[str, float]]:
    """Every metric by step, from the run's own MLflow file."""
    by_step: dict[int, dict[str, float]] = {}
    with closing(sqlite3.connect(f"file:{out / 'mlflow.db'}?mode=ro", uri=True)) as database:
        for key, step, value in database.execute("select key, step, value from metrics"):
            by_step.setdefault(step, {})[key] = value
    return {step: values for step, values in sorted(by_step.items()) if any(key.startswith("time/") for key in values)}


def _beside_the_plan(metrics: dict[int, dict[str, float]], sections: Sequence[Section]) -> Iterator[Figure]:
    """Seconds of the last step's phases; in the place of a bound what the plan says of a phase that it knows."""
    planned = {line.name: line.value for section in sections for line in section.lines}
    this_lag = next(line.name for section in sections for line in section.lines if "this config" in line.how)
    names = {
        "time/update_s": "update, a step",
        "time/sync_s": "sync, a step",
        "time/group_generate_s/mean": "generate a group",
        "time/group_score_s/mean": "score a group",
        "time/step_s": this_lag,
    }
    for name, value in sorted(metrics[NUM_STEPS].items()):
        if name.startswith(("time/", "perf/", "weights/")):
            beside = planned.get(names.get(name, ""))
            yield Figure(name=name, value=value, limit=f"plan: {beside}" if beside else "")


def _of_the_memory(name: str, peak_gib: float, config: RunConfig) -> Figure:
    """A GPU's memory, held against what the plan assumes of a card where the config's ranks and engines fill it."""
    memory_gib = assumptions(config.cluster.device, ()).memory_gib
    return Figure(name=name, value=peak_gib, unit="GiB", limit=f"plan: of {memory_gib:g} GiB")


@contextmanager
def _watched_memory(check: Check) -> Iterator[list[float]]:
    """The most memory in use on each GPU in GiB, as `nvidia-smi` says; complete when the block ends."""
    peaks: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not ended.wait(MEMORY_EVERY_S):
            done = subprocess.run(query, capture_output=True, text=True)
            used = [float(line) * (1 << 20) / GIB for line in done.stdout.split()] if done.returncode == 0 else []
            peaks[:] = [max(pair) for pair in zip(used, peaks or used, strict=False)] or peaks

    thread = threading.Thread(target=watch, daemon=True)
    if not check.is_toy:
        thread.start()
    yield peaks
    ended.set()
    if not check.is_toy:
        thread.join()

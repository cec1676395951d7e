"""The command of the check: every step in a process of its own, a report after each, a table at the end."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu_check.figures import GIB, Check, Outcome, Skipped, read_lines
from benchmarks.gpu_check.steps import STEPS, Step

SHARED_MEMORY = Path("/dev/shm")
ROOM_FOR_MODELS = 40 * GIB
GRACE_S = 10.0
MARK = "RLSYS_GPU_CHECK"
"""Variable in the environment of a step and of all that it starts."""
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0, "B200": 2250.0}
"""Dense bf16 rates of data sheets, by what the GPU's name contains."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when every step that can run here is ok."""
    options = parse_arguments(arguments)
    if options.step:
        return run_here(options)
    chosen = choose(options)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rlsys-gpu-check-", dir=_scratch_parent(options)) as scratch:
        outcomes = run_all(chosen, options, Path(scratch))
    sys.stdout.write("\n" + table(outcomes) + f"\n\n{options.out / 'report.json'}\n")
    return 0 if outcomes and all(outcome.status in ("ok", "skipped") for outcome in outcomes) else 1


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--learner", action="store_true", help="without vLLM, Ray and network; under nine minutes; default"
    )
    mode.add_argument("--full", action="store_true", help="engines, weight sync and a run too")
    parser.add_argument("--cpu", action="store_true", help="the same steps on a CPU, at toy sizes")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps; see benchmarks/gpu_check/steps.py")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_check"), help="folder of report.json and the logs")
    parser.add_argument("--config", default="", help="with --full: the config of the run, its model and its data")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of --config")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="of one GPU, dense bf16; 0: by the GPU's name")
    parser.add_argument("--slack", type=float, default=1.0, help="multiplies the time limits, for a busy machine")
    parser.add_argument("--scratch", type=Path, help="folder for models; default: /dev/shm where it has 40 GiB")
    for name in ("--step", "--figures", "--folder"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)  # of a step's process
    options = parser.parse_args(arguments)
    if unknown := set(options.only or ()) - {step.name for step in STEPS}:
        parser.error(f"--only: no step {', '.join(sorted(unknown))}; the steps are {', '.join(s.name for s in STEPS)}")
    return options


def choose(options: argparse.Namespace) -> list[Step]:
    """Return the steps that the command line asks for."""
    if options.only:
        return [step for step in STEPS if step.name in options.only]
    return [step for step in STEPS if options.full or not step.needs_stack]


def run_all(steps: Iterable[Step], options: argparse.Namespace, scratch: Path) -> list[Outcome]:
    """Run the steps one after another; the report is complete after each."""
    outcomes: list[Outcome] = []
    peak = options.peak_tflops
    for step in steps:
        folder = scratch / step.name
        folder.mkdir()
        outcome = run_step(step, options, folder, peak)
        shutil.rmtree(folder, ignore_errors=True)  # a model may fill the memory that the next one needs
        outcomes.append(outcome)
        peak = peak or _peak_of(outcome)
        sys.stdout.write(table([outcome]) + "\n" + write_report(outcomes, options))
        sys.stdout.flush()
    return outcomes


def write_report(outcomes: Sequence[Outcome], options: argparse.Namespace) -> str:
    """Write the report of the steps so far; return a line that says why it could not be written, "" if it was."""
    report = {"device": "cpu" if options.cpu else "cuda", "steps": [one.as_json() for one in outcomes]}
    new = options.out / "report.json.new"
    try:
        new.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        new.replace(options.out / "report.json")
    except OSError as error:  # a full disk: the steps to come may free it, and the table has everything
        return f"report.json could not be written: {error}\n"
    return ""


def run_step(step: Step, options: argparse.Namespace, folder: Path, peak: float) -> Outcome:
    """Run a step in a process group of its own, which is ended when its time is up."""
    lines = options.out / f"{step.name}.jsonl"
    lines.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--step", step.name, "--figures", str(lines)]
    command += ["--folder", str(folder), "--peak-tflops", str(peak)]
    command += ["--config", options.config] if options.config else []
    command += ["--set", *options.set] if options.set else []
    command += ["--cpu"] if options.cpu else []
    limit_s, started, mark = step.limit_s * options.slack, time.monotonic(), uuid.uuid4().hex
    with (options.out / f"{step.name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, MARK: mark},
        )
        try:
            code: int | None = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_group(process)
            _end_marked(mark)
    figures, error, skipped = read_lines(lines)
    broken = "; ".join(str(figure) for figure in figures if not figure.is_ok)
    if code is None:
        status, error = "timed out", f"not done after {limit_s:g} s; see {step.name}.log"
    elif code:
        status, error = "failed", error or f"the process {ending(code)}; see {step.name}.log"
    elif not figures and not skipped:
        status, error = "failed", f"the process left no figures; see {step.name}.log"
    else:
        status, error = ("failed", broken) if broken else ("skipped", skipped) if skipped else ("ok", "")
    return Outcome(step=step.name, status=status, seconds=time.monotonic() - started, error=error, figures=figures)


def ending(code: int) -> str:
    """Say how a process ended, by its exit status, which is minus the signal that ended it."""
    names = {int(one): one.name for one in signal.Signals}
    return f"was ended by {names.get(-code, f'signal {-code}')}" if code < 0 else f"ended with {code}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what the step started and left behind, and the step itself if it still runs."""
    for number, grace_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, 0.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + grace_s
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    process.wait()


def _end_marked(mark: str) -> None:
    """End what the step left behind in other process groups, as workers of Ray and of engines are.

    They have the step's mark in their environment. One that is left would keep memory of the GPU from later steps.
    """
    deadline = time.monotonic() + GRACE_S
    while (left := _marked(mark)) and time.monotonic() < deadline:
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)


def _marked(mark: str) -> list[int]:
    """Return the processes that were started with the variable MARK, without those that have ended."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
        except OSError:  # another user's, or it has ended meanwhile
            continue
    return found


def run_here(options: argparse.Namespace) -> int:
    """Run one step in this process, writing each figure as it is found."""
    from rlsys import env

    env.be_quiet()
    if options.cpu:
        os.environ.update(env.CPU_WORKERS)  # DeepSpeed reads it when it is imported
    step = next(step for step in STEPS if step.name == options.step)
    check = Check(
        device="cpu" if options.cpu else "cuda",
        scratch=Path(options.folder),
        out=Path(options.figures).parent.resolve(),
        config=options.config,
        overrides=tuple(options.set),
        peak_tflops=options.peak_tflops,
    )
    module, _, function = step.code.partition(":")
    with Path(options.figures).open("a", buffering=1) as lines:
        try:
            for figure in getattr(importlib.import_module(f"benchmarks.gpu_check.{module}"), function)(check):
                lines.write(json.dumps({"figure": asdict(figure)}) + "\n")
        except Skipped as reason:
            lines.write(json.dumps({"skipped": str(reason)}) + "\n")
        except BaseException as error:
            lines.write(json.dumps({"error": f"{type(error).__name__}: {error}"[:2000]}) + "\n")
            raise
    return 0


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the report as text: a line a step, its error, its figures."""
    lines = []
    for outcome in outcomes:
        lines.append(f"{outcome.step:<12}{outcome.status:<10}{outcome.seconds:7.1f} s")
        if outcome.error:
            lines.append(f"    {outcome.status}: {outcome.error.splitlines()[0]}")
        lines += [f"    {figure}" for figure in outcome.figures]
    return "\n".join(lines)


def _peak_of(outcome: Outcome) -> float:
    names = [str(figure.value) for figure in outcome.figures if figure.name == "GPU"]
    return next((rate for part, rate in PEAK_TFLOPS.items() if names and part in names[0]), 0.0)


def _scratch_parent(options: argparse.Namespace) -> Path | None:
    if options.scratch or options.cpu:
        return options.scratch
    has_room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free >= ROOM_FOR_MODELS
    return SHARED_MEMORY if has_room else None

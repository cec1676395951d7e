"""Memory at a published model's width beside what `rlsys plan` says: `python -m benchmarks.true_width --json FILE`.

The model is Qwen2.5-VL-3B at its true width, heads and vocabulary in bfloat16 with random weights, cut to one language
layer and two blocks of the tower, with Qwen's real tokenizer (see `benchmarks.real_vocabulary`). The prompts are videos
of 280 x 280 pixels of 1k, 8k and 32k tokens (half of the last are text) with eight responses of 128 tokens. Each phase
is a process of its own:
- baseline: an engine with a narrow model and the same tokenizer, whose memory is vLLM's own.
- engine: a vLLM engine loads the model and samples a group.
- packed: packing, log-probs of the group in a forward pass, and the head's forward and backward pass.
- adapters: two gloo ranks at ZeRO-3 train LoRA adapters; the 32k prompt is divided between them.
- full: two ranks train all weights, save a checkpoint and export the model; they take 16 GiB of memory.
- sync: two ranks publish all weights, adapters merged in, to a running engine, twice.

Figures go to FILE after each phase, and a further call measures what is missing. A plan's figure stands beside each
that `rlsys plan` computes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.resident import RETURNED, Usage, Watch

log = logging.getLogger("benchmarks.true_width")

ROLES = {"rank": r"ray::LearnerWorker", "engine": r"ray::RolloutActor", "main": r"true_width .*--phase"}
CASES = ("1k", "8k", "32k")
ORDER = [("baseline", "1k")] + [("engine", case) for case in CASES]
ORDER += [("packed", case) for case in CASES] + [("adapters", case) for case in CASES]
ORDER += [("sync", "1k"), ("full", "1k")]
PATIENCE_S = 7200.0
MIB = 1 << 20
Result = dict[str, Any]


def case_named(name: str, quick: bool) -> Any:
    """Return the sizes of a case; in a quick run those of a small prompt."""
    from benchmarks.true_width_prompts import Case

    cases = {
        "1k": Case(name="1k", temporal_patches=9),
        "8k": Case(name="8k", temporal_patches=80, updates=1, threads=2),
        "32k": Case(
            name="32k", temporal_patches=163, questions=780, has_pass=False, sequence_parallel=2, updates=1, threads=2
        ),
    }
    if quick:
        return replace(cases[name], temporal_patches=4, response_tokens=16, side_px=112)
    return cases[name]


def folder_of(phase: str, folder: Path) -> Path:
    """Return the folder with the model of a phase."""
    return folder / ("narrow" if phase == "baseline" else "whole")


def write_model(phase: str, folder: Path, packages: Path, quick: bool) -> None:
    """Write the model of a phase, unless it is there already."""
    from benchmarks.learner_step import Setting
    from benchmarks.real_vocabulary import WIDTHS, install, make_tokenizer, read_ranks, write_folder
    from rlsys.models.tiny import make_tiny

    target = folder_of(phase, folder)
    if (target / "model" / "config.json").exists():
        return
    if quick:
        make_tiny(target / "model", seed=0, size="demo" if target.name == "narrow" else "bench")
        return
    setting = Setting(shape=WIDTHS[target.name], device="cpu", dtype="bfloat16", attention="sdpa", threads=2)
    write_folder(target / "model", make_tokenizer(read_ranks(install(packages))), setting)


def measure(phase: str, case: str, folder: Path, quick: bool) -> list[Result]:
    """Run a phase in a process of its own, and return its steps with the memory of each role's processes."""
    with tempfile.TemporaryDirectory() as scratch:
        steps, output = Path(scratch) / "steps", Path(scratch) / "output"
        command = [sys.executable, "-m", "benchmarks.true_width", "--phase", phase, "--cases", case]
        command += ["--folder", str(folder_of(phase, folder)), "--steps", str(steps), *(["--quick"] if quick else [])]
        with output.open("w") as stream:
            run = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **RETURNED, "OMP_NUM_THREADS": "1"}
            )
            watch = Watch(run.pid, ROLES)
            try:
                run.wait(PATIENCE_S)
            finally:
                watch.stop()
                if run.poll() is None:
                    run.kill()
        if run.returncode:
            raise RuntimeError(f"{phase} {case} failed:\n{output.read_text()[-4000:]}")
        found = []
        for line in map(json.loads, steps.read_text().splitlines()):
            usage = watch.usage(line["start"], line["end"])
            found.append({"phase": phase, "case": case, **line, "memory": _plain(usage)})
        return found


def _plain(usage: dict[str, list[Usage]]) -> dict[str, list[dict[str, int]]]:
    return {role: [vars(one) | {"beyond": one.beyond} for one in each] for role, each in usage.items()}


def shown(step: Result) -> str:
    """Return a line about a step."""
    parts = [f"{step['phase']:9} {step['case']:4} {step['step']:14} {step['end'] - step['start']:7.1f} s"]
    for role, each in step["memory"].items():
        for one in each:
            held, beyond = (one[name] / MIB for name in ("before", "beyond"))
            parts.append(f"{role} {held:.0f}+{beyond:.0f} MiB (shared {one['shared'] / MIB:.0f})")
    return "  ".join(parts)


def table(found: Sequence[Result], folder: Path, quick: bool) -> Iterator[str]:
    """Yield the table of the documentation: what was measured beside what the plan says of exactly that, in MiB."""
    from benchmarks.true_width_plan import compared

    yield "| phase | prompt | measured | MiB | planned | difference | seconds |"
    yield "|---|---|---|---|---|---|---|"
    cases = {name: case_named(name, quick) for name in CASES}
    for one in compared(found, lambda phase: folder_of(phase, folder), cases, case_named("1k", True)):
        planned, difference = "", ""
        if one.planned:
            planned, difference = f"{one.planned / MIB:,.0f}", f"{one.measured / one.planned - 1:+.1%}"
        figures = f"{one.measured / MIB:,.0f} | {planned} | {difference} | {one.seconds:.0f}"
        yield f"| {one.phase} | {one.case} | {one.what} | {figures} |"


def main() -> None:
    """Measure the phases that FILE does not have yet, and print what all took."""
    arguments = _arguments()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO)
    if arguments.phase:
        from benchmarks.true_width_phases import PHASES, Steps

        (case,) = arguments.cases
        is_small = arguments.quick or arguments.phase == "baseline"
        PHASES[arguments.phase](arguments.folder, case_named(case, is_small), Steps(arguments.steps))
        return
    folder = arguments.folder.resolve()
    found: list[Result] = json.loads(arguments.json.read_text()) if arguments.json.exists() else []
    for phase, case in ORDER:
        is_asked = phase in arguments.only and case in arguments.cases
        if not is_asked or any((step["phase"], step["case"]) == (phase, case) for step in found):
            continue
        write_model(phase, folder, arguments.packages.resolve(), arguments.quick)
        _wait_for_memory(arguments.free_gib)
        started = time.monotonic()
        found += measure(phase, case, folder, arguments.quick)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
        log.info("%s %s: %.0f s", phase, case, time.monotonic() - started)
        for step in found:
            if (step["phase"], step["case"]) == (phase, case):
                log.info("%s", shown(step))
    for line in table(found, folder, arguments.quick):
        Console(width=200).print(line, markup=False, soft_wrap=True)


def _wait_for_memory(free_gib: float) -> None:
    """Wait until the machine has this much memory to spare, because a full one would end other processes."""
    while psutil.virtual_memory().available < free_gib * 2**30:
        log.info("waiting for %.0f GiB of free memory", free_gib)
        time.sleep(30)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("runs/bench/true_width.json"), help="file of the results")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/true_width"), help="folder of the model")
    parser.add_argument("--packages", type=Path, default=Path("runs/bench/dashscope"), help="folder for the ranks")
    phases: Sequence[str] = tuple(dict.fromkeys(phase for phase, _ in ORDER))
    parser.add_argument("--only", nargs="+", choices=phases, default=phases, help="these phases")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="these lengths")
    parser.add_argument("--free-gib", type=float, default=0.0, help="wait before each phase until so much is free")
    parser.add_argument("--quick", action="store_true", help="a tiny model and a short prompt, to see that it works")
    parser.add_argument("--phase", choices=phases, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()

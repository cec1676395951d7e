"""The check of the GPU path, at toy sizes: its steps, what becomes of one that fails, and what it needs."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_check.figures import Outcome, at_least, at_most, found, read_lines
from benchmarks.gpu_check.main import choose, parse_arguments, table
from benchmarks.gpu_check.steps import LEARNER_LIMIT_S, STEPS
from benchmarks.plans import MODELS
from rlsys.config.run import load
from rlsys.planning.plan import Assumptions
from rlsys.planning.plan_times import Measured
from rlsys.runs.plan_inputs import plan
from tests.support.pace import patience
from tests.support.paths import REPO

BLOCKED = """
import socket, sys
NAMES = {"vllm", "ray", "decord", "av", "openai", "fastapi"}
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ImportError(f"the learner's steps must not need {name}")
sys.meta_path.insert(0, Blocked())
connect = socket.socket.connect
def guarded(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise OSError(f"the learner's steps must not need a network: {address}")
    return connect(self, address)
socket.socket.connect = guarded
"""
TOY = ("machine", "copies", "ipc", "attention", "zero", "packing", "7b_lora")


def check(out: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str, dict[str, Any]]:
    """Exit status, output and report."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out), *arguments]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=REPO, env=variables, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, json.loads((out / "report.json").read_text())


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.long
def test_the_learners_steps_run_without_vllm_ray_and_network(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    code, said, report = check(
        tmp_path / "out",
        *("--cpu", "--slack", str(patience(4.0)), "--only", *TOY),
        environment={"PYTHONPATH": str(tmp_path)},
    )
    steps = {step["step"]: step for step in report["steps"]}
    assert code == 0, said
    assert tuple(steps) == TOY
    assert {step["status"] for step in steps.values()} == {"ok"}, said
    figures = {(name, figure["name"]): figure for name, step in steps.items() for figure in step["figures"]}
    assert figures["ipc", "difference after a change"]["limit"] == "at most 0"
    assert figures["zero", "ranks"]["value"] == 2
    assert 0 < figures["packing", "bf16: packed against float32, mean error"]["value"] < 0.01
    assert figures["7b_lora", "packed: tokens per second"]["value"] > 0
    assert len([name for step, name in figures if step == "attention" and name.startswith("error of")]) >= 5
    assert "7b_lora     ok" in said


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.long
def test_the_steps_with_engines_run_at_toy_size(tmp_path: Path) -> None:
    steps = ("parity", "parity_v2", "sync_tp2")
    code, said, report = check(tmp_path, "--cpu", "--slack", str(patience(4.0)), "--only", *steps)
    found_steps = {step["step"]: step for step in report["steps"]}
    assert code == 0, said
    assert [found_steps[name]["status"] for name in steps] == ["ok", "skipped", "skipped"], said
    figures = {figure["name"]: figure["value"] for figure in found_steps["parity"]["figures"]}
    assert figures["longest prompt"] > 2048
    assert figures["kept rollouts with tokens of both versions"] >= 1
    assert figures["their earlier tokens under the new weights, largest difference"] > 0.01, (
        "the update changed nothing"
    )


@pytest.mark.stack
@pytest.mark.slow
@pytest.mark.long
def test_rank_and_engine_take_turns_at_toy_size(tmp_path: Path) -> None:
    code, said, report = check(tmp_path, "--cpu", "--slack", str(patience(4.0)), "--only", "colocated")
    assert (code, report["steps"][0]["status"]) == (0, "ok"), said
    bounded = [figure["name"] for figure in report["steps"][0]["figures"] if figure["limit"]]
    assert bounded == [f"turn {turn}: log-probs, largest difference" for turn in (1, 2, 3)]


@pytest.mark.stack
def test_a_step_that_exceeds_its_limit_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    code, said, report = check(tmp_path, "--cpu", "--slack", "0.001", "--only", "machine", "copies")
    assert code == 1
    assert [(step["step"], step["status"]) for step in report["steps"]] == [
        ("machine", "timed out"),
        ("copies", "timed out"),
    ]
    assert "not done after 0.02 s; see machine.log" in said


FAULTY = """
import ctypes, os, signal, sys, time, types
from benchmarks.gpu_check.figures import found
def machine(check):
    yield found("rate", float("nan"), "GB/s")
    FAULT
def copies(check):
    yield found("rate", 2.0, "GB/s")
name = "benchmarks.gpu_check.transfers"
sys.modules[name] = types.ModuleType(name)
sys.modules[name].machine, sys.modules[name].copies = machine, copies
"""


@pytest.mark.stack
@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        ("ctypes.string_at(0)", "failed", "the process was ended by SIGSEGV; see machine.log"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "failed", "the process was ended by SIGKILL; see machine.log"),
        ("os._exit(3)", "failed", "the process ended with 3; see machine.log"),
        ("open('/dev/full', 'w').write('x' * (1 << 20))", "failed", "OSError: [Errno 28] No space left on device"),
        ("for _ in range(256): sys.stdout.buffer.write(os.urandom(4096))", "ok", ""),
        (
            "for file in os.listdir(check.out): os.remove(check.out / file)",
            "failed",
            "the process left no figures; see machine.log",
        ),
        ("(check.out / 'machine.jsonl').open('ab').write(bytes([255, 10]) + b'5\\n[]\\n{\"figure\": 1}\\n')", "ok", ""),
    ],
)
def test_whatever_a_step_does_is_recorded_and_the_next_one_runs(
    tmp_path: Path, fault: str, status: str, error: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAULTY.replace("FAULT", fault))
    environment = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(REPO)))}
    code, said, report = check(
        tmp_path / "out", "--cpu", "--slack", str(patience(4.0)), "--only", "machine", "copies", environment=environment
    )
    assert (code, [step["status"] for step in report["steps"]]) == (int(status != "ok"), [status, "ok"]), said
    assert report["steps"][0]["error"] == error
    assert report["steps"][1]["figures"][0]["value"] == 2.0
    assert error in said


LEFT_BEHIND = """
import ray, subprocess
def sleeper():
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(10_000)"
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True).pid
ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20)
@ray.remote
class Stuck:
    def pids(self):
        return [os.getpid(), sleeper()]
    def hold(self):
        ctypes.PyDLL(None).sleep(10_000)  # with the interpreter's lock, as a kernel that does not return
actor = Stuck.remote()
started = [sleeper(), *ray.get(actor.pids.remote())]
actor.hold.remote()
(check.out / "pids").write_text(" ".join(map(str, started)))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(10_000)
"""


@pytest.mark.stack
@pytest.mark.slow
def test_a_step_that_hangs_leaves_no_process_behind(tmp_path: Path) -> None:
    fault = LEFT_BEHIND.strip().replace("\n", "\n    ")
    (tmp_path / "sitecustomize.py").write_text(FAULTY.replace("FAULT", fault))
    environment = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(REPO)))}
    _, said, report = check(
        tmp_path / "out", "--cpu", "--slack", str(patience(1.5)), "--only", "machine", environment=environment
    )
    assert [step["status"] for step in report["steps"]] == ["timed out"], said
    for pid in (tmp_path / "out" / "pids").read_text().split():
        assert not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.stack
def test_a_report_that_cannot_be_written_stops_no_step(tmp_path: Path) -> None:
    (tmp_path / "out" / "report.json").mkdir(parents=True)
    command = ["--cpu", "--slack", str(patience(4.0)), "--only", "machine", "copies", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", *command], cwd=REPO, capture_output=True, text=True
    )
    assert done.stdout.count("report.json could not be written: ") == 2, done.stdout + done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[-30:] if line.startswith("copies")] == [
        ["copies", "ok"]
    ]


@pytest.mark.stack
def test_a_step_that_fails_is_recorded_with_its_error_and_the_others_run(tmp_path: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # no GPU, also where there is one
    code, _, report = check(
        tmp_path, "--slack", str(patience(4.0)), "--only", "machine", "sync_store", environment=hidden
    )
    machine, sync = report["steps"]
    assert code == 1
    assert machine["status"] == "failed"
    assert "Error: " in machine["error"]
    assert {figure["name"] for figure in machine["figures"]} >= {"CPU", "torch"}, "figures before the error are kept"
    assert (sync["status"], "needs 2 GPUs, 0 are here" in sync["error"]) == ("skipped", True)


def test_the_learners_steps_fit_into_ten_minutes() -> None:
    steps = choose(parse_arguments(["--learner"]))
    assert steps
    assert sum(step.limit_s for step in steps) <= LEARNER_LIMIT_S
    assert not any(step.needs_stack for step in steps)
    assert choose(parse_arguments(["--full"])) == list(STEPS)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_step_has_its_code(step: Any) -> None:
    module, _, name = step.code.partition(":")
    tree = ast.parse((REPO / "benchmarks" / "gpu_check" / f"{module}.py").read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assigned = {ast.unparse(target) for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
    assert name in defined | assigned


def test_the_docs_list_the_steps_in_the_order_in_which_they_run() -> None:
    text = (REPO / "docs" / "gpu.md").read_text()
    rows = text.split("## The check")[1].split("| step |")[1].split("\n\n")[0]
    found = [name for row in rows.splitlines()[2:] for name in re.findall("`([^`]+)`", row.split("|")[1])]
    assert found == [
        step.name for step in STEPS if step.name != "parity"
    ]  # `parity` runs in the place of both on a CPU
    assert "(`parity` on a CPU)" in rows


def test_the_docs_memory_is_the_plans(tmp_path: Path) -> None:
    """The limit of a rank, and what the shipped config takes, as docs/gpu.md says them."""
    text = (REPO / "docs" / "gpu.md").read_text()
    (tmp_path / "config.json").write_text(json.dumps(MODELS["Qwen2.5-VL-7B"]))
    config = load(REPO / "configs" / "charades_sta.yaml", [f"model.path={tmp_path}", "data.annotations=null"])
    given = Assumptions()
    sections = plan(config, given, Measured())
    said = {line.name: line.value for section in sections for line in section.lines}
    assert f"{given.memory_gib:g} GiB of one that is sold as 80 GB, without {given.rank_reserve_gib:g} GiB" in text
    planned = round(float(said["total on the device"].split()[0]), 1)
    tokens = config.learner.micro_batch_tokens
    assert re.search(
        f"plans {planned:g} GiB a rank with `learner.micro_batch_tokens: {tokens}`", " ".join(text.split())
    )
    assert not [problem for section in sections for problem in section.problems]


def test_an_unknown_step_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--only", "copies", "speed"])
    assert "no step speed; the steps are machine, copies" in capsys.readouterr().err


def test_a_figure_out_of_bounds_and_one_that_is_not_a_number_are_not_ok() -> None:
    assert at_most("error", 1.0, 1.0).is_ok
    assert at_least("length", 2.0, 2.0).is_ok
    assert not at_most("error", 1.1, 1.0).is_ok
    assert not at_most("error", float("nan"), 1.0).is_ok
    assert not at_least("length", float("nan"), 1.0).is_ok
    figures = (at_most("error", 1.1, 1.0), found("rate", 2.0, "GB/s"))
    text = table([Outcome(step="copies", status="failed", seconds=1.0, error="why\nmore", figures=figures)])
    assert text.splitlines()[1:] == ["    failed: why", "    error: 1.1  (at most 1: NO)", "    rate: 2 GB/s"]


def test_what_a_killed_step_had_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "step.jsonl"
    assert read_lines(file) == ((), "", "")
    file.write_text('{"figure": {"name": "rate", "value": 2.0, "unit": "GB/s"}}\n{"figure": {"na')
    assert read_lines(file) == ((found("rate", 2.0, "GB/s"),), "", "")

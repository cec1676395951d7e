"""Who may import whom, where the heavy libraries live, how long files and functions are, and the lint gates."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlsys import env
from tests.support.paths import REPO as ROOT

PACKAGES = ("rlsys", "actors", "learner", "reward_servers", "cluster")
SOURCES = sorted(path for package in (*PACKAGES, "benchmarks") for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

LEAVES = {
    "vllm": {
        "actors/engine.py",
        "actors/engine_args.py",
        "actors/linear_attention.py",
        "actors/weights/in_worker.py",
        "learner/weights/nccl.py",
    },
    "deepspeed": {
        "learner/engine.py",
        "learner/checkpoint_files.py",
        "learner/checkpoints.py",
        "learner/offloading.py",
        "learner/sequence/heads.py",
    },
    "peft": {"learner/model/lora.py"},
    "ray.serve": {"reward_servers/server/app.py", "reward_servers/judging/served_model.py"},
    "mlflow": {"rlsys/tracking/mlflow_store.py", "rlsys/tracking/registry.py", "rlsys/tracking/sqlite_store.py"},
    "decord": {"rlsys/data/video/readers/decord_reader.py", "benchmarks/decode.py"},
    "av": {"rlsys/data/video/readers/av_reader.py", "benchmarks/decode.py"},
}
LIGHT = (
    "rlsys.loop.loop",
    "rlsys.types",
    "rlsys.algorithm.advantages",
    "rlsys.tracking.metrics",
    "rlsys.runs.records.checkpoint",
    "rlsys.planning.plan_times",
    "cluster.placement",
)
HEAVY = ("ray", "torch", "vllm", "deepspeed", "transformers", "mlflow", "decord", "av")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, inside functions too. `from ray import serve` counts as ray.serve."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    variables = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def test_the_import_contracts_hold() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("rlsys/tasks/geometry.py", "from rlsys.loop import loop", "downwards only"),
        ("learner/spec.py", "from actors import errors", "never import each other"),
        ("rlsys/loop/loop.py", "import actors.pool", "Only commands"),
        ("reward_servers/schema.py", "from rlsys.data import sampler", "above tasks"),
        ("rlsys/config/part.py", "from rlsys import env", "nothing of ours but errors"),
    ],
)
def test_a_broken_contract_is_named(tmp_path: Path, file: str, line: str, contract: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / file).write_text((tmp_path / file).read_text() + f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert any(contract in found for found in done.stdout.splitlines() if "BROKEN" in found), done.stdout


@pytest.mark.parametrize("library", LEAVES)
def test_a_heavy_library_is_imported_in_its_leaf_only(library: str) -> None:
    found = {name_of(path) for path in SOURCES if any(is_in(module, library) for module in imports(path))}
    assert found <= LEAVES[library]


def test_the_light_modules_load_no_heavy_library() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_files_and_functions_fit_a_screen() -> None:
    long = [
        f"{name_of(path)}: {lines} lines"
        for path in SOURCES
        if (lines := path.read_text().count("\n")) > MAX_FILE_LINES
    ]
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines")
    assert not long


def test_no_file_is_a_drawer_for_everything() -> None:
    assert not [name_of(path) for path in SOURCES if path.stem in ("utils", "util", "helpers", "common", "misc")]


def test_every_environment_variable_that_is_read_is_listed() -> None:
    reading = re.compile(r"""(?:environ\.get\(|getenv\(|environ\[)\s*["'](\w+)["'](?!\]\s*=[^=])""")
    found = {
        f"{name_of(path)} reads {name}"
        for path in SOURCES
        if name_of(path) not in ("rlsys/env.py", "cluster/install/setup.py")  # the latter runs before there is rlsys
        for name in reading.findall(path.read_text())
        if name not in env.READ
    }
    assert not found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("command", [("ruff", "format", "--check", "--quiet", "."), ("ruff", "check", "--quiet", ".")])
def test_ruff_has_nothing_to_say(command: tuple[str, ...]) -> None:
    done = run(*command)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_pure_modules_pass_the_type_checker() -> None:
    done = run("mypy")
    assert done.returncode == 0, done.stdout

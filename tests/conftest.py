"""Fixtures of all parts, each in a file of `tests/support`, and the marks that follow from what a test uses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# an example takes longer on a busy machine, which says nothing of the code
hypothesis.settings.register_profile("rlsys", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("rlsys")

pytest_plugins = [
    "tests.support.pace",
    "tests.support.models",
    "tests.support.actors",
    "tests.support.learner",
    "tests.support.cluster",
    "tests.support.rewards",
    "tests.support.judge",
]

# Ray gives its workers the least of a busy core, a thirtieth of what the tests of another process get, so that actors
# and ranks would start late exactly where `tests.support.pace` sees a machine that is hardly slower
os.environ.setdefault("RAY_worker_niceness", "0")

# threads of several workers that wait for each other on the same cores take four times as long as one for each
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // _WORKERS)))

STARTING_FIXTURES = frozenset({"actor_cluster", "serve_cluster", "ray_head", "cluster", "judge_server", "vllm_says"})
"""Fixtures that start Ray, engines, learner ranks or servers in processes of their own."""
STARTING_FOLDERS = frozenset({"stack", "chaos", "examples"})
LONGEST_FIRST = (
    "stack/test_exact_resume.py",
    "chaos/test_chaos.py",
    "stack/test_end_to_end_judged.py",
    "stack/test_end_to_end.py",
    "docs/test_tutorials.py",
    "reward_servers/server/test_judged_app.py",
    "stack/test_model_server.py",
    "stack/test_parity.py",
    "learner/test_group.py",
    "rlsys/data/video/test_clips.py",
    "actors/test_pool.py",
    "benchmarks/test_gpu_check.py",
    "examples/test_grpo_minimal.py",
    "stack/test_train_in_rounds.py",
    "learner/test_offloading.py",
    "learner/test_stages.py",
    "rlsys/tracking/test_made_anew.py",
    "actors/test_tensor_parallel.py",
    "test_code_shape.py",
)
"""Files that take a minute or more. Workers take whole files, so one of them at the end would leave the others idle."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start real processes, before `-m` selects, and put the longest files first."""
    tests = Path(__file__).parent
    for item in items:
        fixtures = STARTING_FIXTURES & set(getattr(item, "fixturenames", ()))
        if fixtures or item.path.relative_to(tests).parts[0] in STARTING_FOLDERS:
            item.add_marker("stack")
    places = {tests / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def the_store_stays_the_tests_own() -> Iterator[None]:
    """MLflow's `set_tracking_uri` writes the environment, which the commands of later tests would inherit."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before

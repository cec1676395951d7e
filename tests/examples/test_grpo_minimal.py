"""The example runs as its first lines say, and its reward rises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.pace import patience
from tests.support.paths import REPO

COMPARED = 5
"""Steps at either end whose rewards are compared."""


EXAMPLE = REPO / "examples" / "grpo_minimal.py"
FEW_STEPS = """
import runpy, sys
example = runpy.run_path(sys.argv[1])
example["main"].__globals__.update(WARM_UP_STEPS=2, STEPS=2)
example["main"]()
"""


def run(folder: Path, *command: str) -> np.ndarray:
    """Run Python in an empty folder and return (step, reward, its error) of each line that tells a step, f64 [N, 3]."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=patience(400.0),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^step +(\d+) +reward ([\d.]+) \+- ([\d.]+)", done.stdout, flags=re.MULTILINE)
    steps = np.array(found, float)
    assert steps[:, 0].tolist() == list(range(1, len(steps) + 1))
    assert list(folder.iterdir()) == []
    return steps


def test_the_whole_loop_runs_in_one_file(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 250
    assert len(run(tmp_path, "-c", FEW_STEPS, str(EXAMPLE))) == 2


@pytest.mark.slow
@pytest.mark.long
def test_the_reward_of_the_last_steps_is_above_that_of_the_first(tmp_path: Path) -> None:
    """By more than three standard errors, which chance alone exceeds about once in a thousand runs.

    A step's error is that of the mean over its prompts, as the example prints it: responses to one prompt resemble
    each other, so prompts are what was drawn independently.
    """
    _, rewards, errors = run(tmp_path, str(EXAMPLE)).T
    assert len(rewards) >= 2 * COMPARED
    first, last = slice(None, COMPARED), slice(-COMPARED, None)
    error = np.sqrt((errors[first] ** 2).sum() + (errors[last] ** 2).sum()) / COMPARED
    assert rewards[last].mean() - rewards[first].mean() > 3 * error, rewards

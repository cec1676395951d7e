"""The example runs as its first lines say, and its reward rises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support.pace import patience
from tests.support.paths import REPO

COMPARED = 5
"""Steps at either end whose rewards are compared."""


def test_the_reward_of_the_last_steps_is_above_that_of_the_first(tmp_path: Path) -> None:
    """By more than three standard errors, which chance alone exceeds about once in a thousand runs.

    A step's error is that of the mean over its prompts, as the example prints it: responses to one prompt resemble
    each other, so prompts are what was drawn independently.
    """
    example = REPO / "examples" / "grpo_minimal.py"
    assert len(example.read_text().splitlines()) <= 250
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=patience(400.0),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^step +(\d+) +reward ([\d.]+) \+- ([\d.]+)", done.stdout, flags=re.MULTILINE)
    steps, rewards, errors = np.array(found, float).T
    assert steps.tolist() == list(range(1, len(steps) + 1)) and len(steps) >= 2 * COMPARED
    first, last = slice(None, COMPARED), slice(-COMPARED, None)
    error = np.sqrt((errors[first] ** 2).sum() + (errors[last] ** 2).sum()) / COMPARED
    assert rewards[last].mean() - rewards[first].mean() > 3 * error, done.stdout
    assert list(tmp_path.iterdir()) == []

"""The command's table and exit codes; what it compares is tested with a real stack beside LoRA's sync."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlsys.commands.app import app
from rlsys.config.run import RunConfig
from rlsys.weights.check import TensorComparison
from rlsys.weights.manifest import TensorSpec
from tests.support.paths import CONFIGS


@pytest.mark.parametrize(("is_equal", "code", "said"), [(True, 0, "1 tensors, 0 differ."), (False, 1, "1 differ: w")])
def test_a_difference_is_told_and_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, is_equal: bool, code: int, said: str
) -> None:
    spec = TensorSpec(shape=(2, 3), dtype="float32")

    def report(config: RunConfig, checkpoint: Path | None) -> list[TensorComparison]:
        return [TensorComparison(name="w", spec=spec, findings={"actor 0": "as found"}, is_equal=is_equal)]

    monkeypatch.setattr("rlsys.commands.debug.report", report)
    done = CliRunner().invoke(app, ["debug", "weights", str(CONFIGS / "demo.yaml")])
    assert done.exit_code == code
    assert said in done.output
    assert "2 × 3" in done.output


def test_a_config_that_cannot_run_is_told_before_anything_starts() -> None:
    done = CliRunner().invoke(app, ["debug", "weights", str(CONFIGS / "demo.yaml"), "weights.transport=ipc"])
    assert done.exit_code == 2
    assert "needs cluster.device=cuda" in done.output

"""Imports that leave out what is installed and not used."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import subprocess
import sys

import pytest

from rlsys import lean_imports as module
from rlsys.lean_imports import lean_imports
from tests.support.pace import patience


def test_packages_are_absent_within_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNUSED", ("wave", "json"))
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with lean_imports():
        with pytest.raises(ImportError):
            importlib.import_module("wave")
        assert importlib.util.find_spec("wave") is None
        assert importlib.import_module("json").dumps([]) == "[]", "what is imported already stays"
        assert not gc.isenabled()
    assert importlib.import_module("wave").open
    assert gc.isenabled()


@pytest.mark.stack
def test_a_rank_starts_without_them_and_without_compiling_kernels_that_it_does_not_use() -> None:
    code = """
import sys
from rlsys.lean_imports import lean_imports
with lean_imports():
    import learner.engine
learner.engine._import_muon()
print(sorted({"mlflow", "scipy", "sklearn", "torch._inductor.compile_fx"} & sys.modules.keys()))
import mlflow, scipy.stats, sklearn
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(200.0), check=False)
    assert (done.returncode, done.stdout.strip().splitlines()[-1:]) == (0, ["[]"]), done.stderr

"""Checkpoint folders shared by every test that needs a model."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the demo's model (0.71 M parameters, seed 0). Read-only: copy it before changing it."""
    from rlsys.models.tiny import make_tiny  # imports torch and transformers, seconds that other tests need not pay

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def bench_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the benchmark's model (1.55 M parameters, two vision blocks, one of them windowed, seed 0)."""
    from rlsys.models.tiny import make_tiny

    folder = tmp_path_factory.mktemp("models") / "bench"
    make_tiny(folder, seed=0, size="bench")
    return folder

"""Checkpoint folders shared by every test that needs a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from rlsys.models.families.table import DEFAULT, FAMILIES


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


@pytest.fixture(scope="session")
def qwen2_vl_dirs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Write a tiny Qwen2-VL of each size, "tiny" and "bench"."""
    from rlsys.models.tiny import make_tiny

    folder = tmp_path_factory.mktemp("models_of_qwen2_vl")
    make_tiny(folder / "tiny", seed=0, family="qwen2_vl")
    make_tiny(folder / "bench", seed=0, size="bench", family="qwen2_vl")
    return {size: folder / size for size in ("tiny", "bench")}


@pytest.fixture(scope="module", params=FAMILIES)
def family_dirs(request: pytest.FixtureRequest) -> Mapping[str, Path]:
    """Run a test once for each family, with its models of both sizes, "tiny" and "bench"."""
    if request.param == DEFAULT:
        return {size: request.getfixturevalue(f"{size}_model_dir") for size in ("tiny", "bench")}
    return request.getfixturevalue(f"{request.param}_dirs")


@pytest.fixture(scope="module")
def family_dir(family_dirs: Mapping[str, Path]) -> Path:
    """Run a test once for each family, with its smaller model."""
    return family_dirs["tiny"]

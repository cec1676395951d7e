"""Checkpoint folders shared by every test that needs a model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from rlsys.models.families.table import DEFAULT, FAMILIES, FamilyName
from rlsys.models.model_config import read_model_config


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
    return _of_both_sizes(tmp_path_factory, "qwen2_vl")


@pytest.fixture(scope="session")
def qwen3_vl_dirs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Write a tiny Qwen3-VL of each size, "tiny" and "bench"."""
    return _of_both_sizes(tmp_path_factory, "qwen3_vl")


@pytest.fixture(scope="session")
def qwen3_vl_moe_dirs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Write a tiny Qwen3-VL with four experts a layer of each size, "tiny" and "bench"."""
    return _of_both_sizes(tmp_path_factory, "qwen3_vl_moe")


@pytest.fixture(scope="session")
def internvl_dirs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Write a tiny InternVL3.5 of each size, "tiny" and "bench"."""
    return _of_both_sizes(tmp_path_factory, "internvl")


@pytest.fixture(scope="session")
def qwen3_5_dirs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Write a tiny Qwen3.5 of each size, "tiny" and "bench": layers of linear and of full attention in turns."""
    return _of_both_sizes(tmp_path_factory, "qwen3_5")


def _of_both_sizes(tmp_path_factory: pytest.TempPathFactory, family: FamilyName) -> Mapping[str, Path]:
    from rlsys.models.tiny import make_tiny

    folder = tmp_path_factory.mktemp(f"models_of_{family}")
    make_tiny(folder / "tiny", seed=0, family=family)
    make_tiny(folder / "bench", seed=0, size="bench", family=family)
    return {size: folder / size for size in ("tiny", "bench")}


@pytest.fixture(scope="session")
def tiny_dirs_by_family(
    tiny_model_dir: Path,
    qwen2_vl_dirs: Mapping[str, Path],
    qwen3_vl_dirs: Mapping[str, Path],
    qwen3_vl_moe_dirs: Mapping[str, Path],
    internvl_dirs: Mapping[str, Path],
    qwen3_5_dirs: Mapping[str, Path],
) -> Mapping[str, Path]:
    """Write the smaller model of each family, for tests that start one process for all of them."""
    dirs = {
        "qwen2_vl": qwen2_vl_dirs,
        "qwen3_vl": qwen3_vl_dirs,
        "qwen3_vl_moe": qwen3_vl_moe_dirs,
        "internvl": internvl_dirs,
        "qwen3_5": qwen3_5_dirs,
    }
    folders = {DEFAULT: tiny_model_dir, **{family: by_size["tiny"] for family, by_size in dirs.items()}}
    assert folders.keys() == FAMILIES.keys()
    return folders


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


def lora_targets(folder: Path) -> tuple[str, ...]:
    """Return layers of attention and, where the model has MLPs that can have adapters, one of them."""
    return ("q_proj", "v_proj") if read_model_config(folder).experts else ("q_proj", "v_proj", "down_proj")


def part_of(name: str) -> str:
    """Return the part of the model, as `learner.frozen_parts` names it, that a parameter belongs to."""
    # checkpoints may have the names without the prefix; some projectors are in a tower
    prefixes = [prefix for family in FAMILIES.values() for prefix in family.projectors]
    if any(prefix.removeprefix("model.") in name for prefix in prefixes):
        return "projector"
    if any(family.tower.removeprefix("model.") in name for family in FAMILIES.values()):
        return "vision_tower"
    return "language_model"


@pytest.fixture(scope="session")
def served_model_dir(bench_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the benchmark's model with zeros as the embeddings of placeholder tokens, whose logits are then 0.

    The actors never sample these tokens; a server may, and its greedy answers would differ.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from rlsys.models.chat import ChatTokenizer
    from rlsys.models.tiny import SPECIAL_TOKENS

    folder = tmp_path_factory.mktemp("models") / "served"
    shutil.copytree(bench_model_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    (embedding,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    names = [token for token in SPECIAL_TOKENS if "vision" in token or "_pad" in token]
    tokenizer = ChatTokenizer(folder)
    rows = [tokenizer.id_of(name) for name in names]
    tensors[embedding][torch.tensor(rows)] = 0.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

"""Tensors written into files one by one, and read back by the safetensors library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from learner.weights.safetensors_out import plan_files, write_tensors
from rlsys.weights.manifest import NamedTensor, TensorSpec
from rlsys.weights.tensors import as_tensor

SPECS = {
    "a": TensorSpec(shape=(2, 3), dtype="float32"),  # 24 bytes
    "b": TensorSpec(shape=(4,), dtype="float32"),  # 16
    "c": TensorSpec(shape=(5, 5), dtype="float32"),  # 100
    "d": TensorSpec(shape=(1,), dtype="float32"),  # 4
}


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(spec.shape, generator=generator).to(dtype) for name, spec in SPECS.items()}


def named(values: dict[str, torch.Tensor]) -> Iterator[tuple[str, NamedTensor]]:
    for name, tensor in values.items():
        spec = TensorSpec(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
        yield name, NamedTensor(spec=spec, data=tensor.view(-1).view(torch.uint8).numpy())


def read(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, safe_open has no __iter__


def test_files_are_filled_in_order_and_a_large_tensor_has_its_own() -> None:
    assert plan_files(SPECS, 1000) == {"model.safetensors": ["a", "b", "c", "d"]}
    assert plan_files(SPECS, 40) == {
        "model-00001-of-00003.safetensors": ["a", "b"],
        "model-00002-of-00003.safetensors": ["c"],
        "model-00003-of-00003.safetensors": ["d"],
    }


@pytest.mark.parametrize("max_file_bytes", [1000, 40])
def test_the_library_reads_what_was_written(tmp_path: Path, max_file_bytes: int) -> None:
    values = tensors()
    write_tensors(tmp_path, SPECS, named(values), max_file_bytes)
    found = {name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in read(file).items()}
    assert found.keys() == values.keys()
    assert all(torch.equal(found[name], values[name]) for name in values)
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (max_file_bytes == 40)
    if index.exists():
        tree = json.loads(index.read_text())
        assert tree["metadata"]["total_size"] == 24 + 16 + 100 + 4
        assert all(name in read(tmp_path / file) for name, file in tree["weight_map"].items())


def test_bfloat16_keeps_its_bits(tmp_path: Path) -> None:
    values = tensors(torch.bfloat16)
    specs = {name: TensorSpec(shape=spec.shape, dtype="bfloat16") for name, spec in SPECS.items()}
    write_tensors(tmp_path, specs, named(values), 1000)
    found = read(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], values[name]) for name in values)
    assert torch.equal(as_tensor(dict(named(values))["c"]), found["c"])


def test_another_order_too_few_or_too_many_tensors_are_errors(tmp_path: Path) -> None:
    values = tensors()
    backwards = dict(reversed(values.items()))
    for wrong in (backwards, {name: values[name] for name in "abc"}, {**values, "e": values["d"]}):
        with pytest.raises(ValueError, match="came|shorter"):
            write_tensors(tmp_path, SPECS, named(wrong), 1000)

"""Adapters that peft wrote are read without torch, in the type that the engine wants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rlsys.models.adapter import read_adapter
from rlsys.models.model_config import ModelFolderError

TARGETS = ("q_proj", "v_proj")


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q_proj(x) + self.v_proj(x)


def written_by_peft(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save an adapter with random weights, extreme ones among them."""
    import peft

    torch.manual_seed(0)
    settings = peft.LoraConfig(r=3, lora_alpha=12, target_modules=list(TARGETS), init_lora_weights=False)
    model = peft.get_peft_model(Layer(), settings)
    with torch.no_grad():
        for index, weight in enumerate(one for name, one in model.named_parameters() if "lora_" in name):
            weight.view(-1)[:3] = torch.tensor([1e-40, -(1 + index) / 3, 3.0e38])
    model.to(dtype).save_pretrained(str(folder))
    return folder


def change(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_an_adapter_is_read_with_its_settings_and_every_value_is_torchs(
    tmp_path: Path, stored: torch.dtype, wanted: str
) -> None:
    folder = written_by_peft(tmp_path / "adapter")
    tensors = {
        name: value.clamp(-6e4, 6e4).to(stored)
        for name, value in load_file(folder / "adapter_model.safetensors").items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    read = read_adapter(folder, wanted)
    assert (read.rank, read.alpha, read.targets) == (3, 12.0, TARGETS)
    assert read.tensors.keys() == tensors.keys() and len(tensors) == 4
    for name, tensor in read.tensors.items():
        expected = tensors[name].to(getattr(torch, wanted)).contiguous()
        assert (tensor.spec.shape, tensor.spec.dtype) == (tuple(expected.shape), wanted)
        assert np.array_equal(tensor.data, expected.view(torch.uint8).flatten().numpy()), name


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'; only LORA can be loaded"),
        ({"use_dora": True}, "use_dora is set; merge the adapter into its model"),
        ({"use_rslora": True, "modules_to_save": ["lm_head"]}, "use_rslora, modules_to_save is set"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is set"),
    ],
)
def test_an_adapter_that_computes_something_else_is_refused(
    tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    folder = written_by_peft(tmp_path / "adapter")
    change(folder, **settings)
    with pytest.raises(ModelFolderError, match="adapter_config.json") as error:
        read_adapter(folder, "float32")
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_an_adapter_or_with_broken_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="adapter_config.json"):
        read_adapter(tmp_path, "float32")
    folder = written_by_peft(tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    save_file({"base.weight": torch.zeros(2)}, weights)
    with pytest.raises(ModelFolderError, match="it is not a LoRA adapter"):
        read_adapter(folder, "float32")
    save_file({"a.lora_A.weight": torch.zeros(2, dtype=torch.int64)}, weights)
    with pytest.raises(ModelFolderError, match=r"a.lora_A.weight is I64; save it as float32 or bfloat16"):
        read_adapter(folder, "float32")
    weights.write_bytes(b"short")
    with pytest.raises(ModelFolderError, match="cannot be read"):
        read_adapter(folder, "float32")

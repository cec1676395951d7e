"""Low-rank adapters on the language model (LoRA, arXiv:2106.09685). The only file that imports peft."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from learner.model.families import family_of
from rlsys.config.run import ConfigError, LoraConfig
from rlsys.models.model_config import read_model_config

ADAPTER = "default"


@dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """The adapter of one linear layer: its weight is changed by scale x up @ down.

    down: [rank, inputs], `lora_A` in peft.  up: [outputs, rank], `lora_B`.
    """

    down: nn.Parameter
    up: nn.Parameter
    scale: float

    def change(self) -> torch.Tensor:
        """The change of the weight, f32 [outputs, inputs]."""
        return self.scale * (self.up.detach().float() @ self.down.detach().float())


def add_adapters(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Add adapters that do not change the output yet to the target layers, and freeze everything else.

    The model is changed in place. Raises ConfigError for a target that is not a linear layer of the language model.
    """
    prefix = family_of(model).language_model
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if name.startswith(prefix) and isinstance(module, nn.Linear)
    }
    if unknown := sorted(set(lora.targets) - linear):
        raise ConfigError(
            f"learner.lora.targets: {', '.join(unknown)} are not linear layers of the language model; "
            f"it has {', '.join(sorted(linear))}."
        )
    model.requires_grad_(False)
    peft.inject_adapter_in_model(_peft_config(lora, prefix), model, ADAPTER)


def _peft_config(lora: LoraConfig, prefix: str, base: str = "") -> peft.LoraConfig:
    # a pattern, because the vision tower has layers of the same names
    pattern = rf"{re.escape(prefix)}.*\.({'|'.join(map(re.escape, lora.targets))})"
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        target_modules=pattern,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base or None,
        inference_mode=bool(base),
    )


def adapters(model: nn.Module) -> dict[str, LowRank]:
    """Return the adapters by the name of their layer; {} for a model without adapters."""
    return {
        name: LowRank(
            down=module.lora_A[ADAPTER].weight, up=module.lora_B[ADAPTER].weight, scale=module.scaling[ADAPTER]
        )
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Disable the adapters while the context is open, which gives the reference policy."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def write_adapter_config(lora: LoraConfig, base: Path, folder: Path) -> None:
    """Write `adapter_config.json`, which peft and vLLM read beside the adapter's tensors. base: the adapted model."""
    prefix = read_model_config(base).family.language_model
    _peft_config(lora, prefix, base=str(base)).save_pretrained(str(folder))

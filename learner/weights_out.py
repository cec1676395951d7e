"""Weights leave the learner: as named bytes for the engines, as a Hugging Face folder for everyone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from rlsys.weights import NamedTensor, TensorSpec

HEAD = "lm_head.weight"
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.gguf")

Gather = Callable[[torch.nn.Parameter], AbstractContextManager[None]]
"""Makes a partitioned parameter whole while the context is open; every rank must open it."""


def checkpoint_names(model: PreTrainedModel) -> dict[str, str]:
    """Parameter name in the module -> name in the checkpoint that the model was read from.

    They differ: transformers reads `visual.*` and `model.*` into `model.visual.*` and
    `model.language_model.*`, and writes the file's own names again.
    """
    # one by one, so that a change of shape (which no weight of this family has) cannot pass unseen
    names = {
        name: list(revert_weight_conversion(model, {name: parameter})) for name, parameter in model.named_parameters()
    }
    return {name: found for name, (found,) in names.items()}


def collect(model: PreTrainedModel, names: Mapping[str, str], gather: Gather, *, keep: bool) -> dict[str, NamedTensor]:
    """All weights under their checkpoint names, the tied output head included; {} when not `keep`.

    The head must be there: an engine has a copy of it that an update without it leaves stale.
    names: see `checkpoint_names`. Parameters are gathered one at a time. On CPU the bytes alias
    the live weights: use them before the next update, or copy.
    """
    payload: dict[str, NamedTensor] = {}
    tied_to = _tied_embedding(model)
    for name, parameter in model.named_parameters():
        with gather(parameter):
            if keep:
                payload[names[name]] = _named(parameter)
                if parameter is tied_to:
                    payload[HEAD] = payload[names[name]]
    return payload


def _tied_embedding(model: PreTrainedModel) -> torch.nn.Parameter | None:
    embedding = model.get_input_embeddings().weight
    return embedding if model.get_output_embeddings().weight is embedding else None


def _named(parameter: torch.nn.Parameter) -> NamedTensor:
    tensor = parameter.detach()
    spec = TensorSpec(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
    return NamedTensor(spec=spec, data=tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())


def write_folder(payload: Mapping[str, NamedTensor], model: PreTrainedModel, source: Path, folder: Path) -> None:
    """The weights as a checkpoint folder like `source`, which `from_pretrained` and vLLM load.

    Everything but the weights is `source`'s: config, tokenizer, processor. A tied head is left out
    of the file, as `save_pretrained` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*_WEIGHT_FILES), dirs_exist_ok=True)
    tied = _tied_embedding(model) is not None
    tensors = {name: as_tensor(tensor) for name, tensor in payload.items() if not (tied and name == HEAD)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def as_tensor(named: NamedTensor) -> torch.Tensor:
    """The tensor in torch; it shares the bytes where they may be written to, else it is a copy."""
    data = named.data if named.data.flags.writeable else named.data.copy()
    return torch.from_numpy(data).view(getattr(torch, named.spec.dtype)).view(named.spec.shape)


def read_folder(folder: Path) -> dict[str, NamedTensor]:
    """The payload that a checkpoint folder's weights would make, tied head included; its digest names them."""
    payload: dict[str, NamedTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, safe_open has no __iter__
                payload[name] = _named(torch.nn.Parameter(file.get_tensor(name), requires_grad=False))
    if not payload:
        raise FileNotFoundError(f"{folder}: no *.safetensors in it; a checkpoint folder has weights.")
    embedding = next((name for name in payload if name.endswith("embed_tokens.weight")), None)
    if HEAD not in payload and embedding is not None:
        payload[HEAD] = payload[embedding]
    return payload

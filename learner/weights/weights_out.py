"""Weights leave the learner: as named bytes for the engines, as a Hugging Face folder for everyone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from learner.model.lora import FILE_PREFIX, LowRank, adapters, write_adapter_config
from learner.weights.safetensors_out import write_tensors
from rlsys.config.run import LoraConfig
from rlsys.models.folder import companions
from rlsys.weights.manifest import NamedTensor, RunningDigest, TensorSpec

HEAD = "lm_head.weight"
ADAPTER_FOLDER = "adapter"
MAX_FILE_BYTES = 2 << 30

Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager[None]]
"""Makes partitioned parameters whole while the context is open; every rank must open it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outlet:
    """One tensor that leaves. spec: of the whole tensor.  parameters: must be whole when `read` makes it."""

    spec: TensorSpec
    parameters: tuple[nn.Parameter, ...]
    read: Callable[[], torch.Tensor]


def checkpoint_names(model: PreTrainedModel) -> dict[str, str]:
    """Parameter name in the module -> name in the checkpoint that the model was read from.

    They differ: transformers reads `visual.*` and `model.*` into `model.visual.*` and
    `model.language_model.*`, and writes the file's own names again. Ask before adapters are added.
    """
    # one by one, so that a change of shape (which no weight of this family has) cannot pass unseen
    names = {
        name: list(revert_weight_conversion(model, {name: parameter})) for name, parameter in model.named_parameters()
    }
    return {name: found for name, (found,) in names.items()}


def model_outlets(model: PreTrainedModel, names: Mapping[str, str]) -> dict[str, Outlet]:
    """All weights by checkpoint name, in the order of the names; adapters are merged into their layers.

    The output head is there even where it is tied to the embedding: an engine has a copy of it
    that an update without it leaves stale.  names: see `checkpoint_names`.
    """
    by_layer = adapters(model)
    outlets: dict[str, Outlet] = {}
    for name, parameter in model.named_parameters():
        plain = name.replace(".base_layer.", ".")
        if plain in names:
            low_rank = by_layer.get(plain.removesuffix(".weight"))
            outlets[names[plain]] = _merged(parameter, low_rank) if low_rank else as_it_is(parameter)
    embedding = model.get_input_embeddings().weight
    if model.get_output_embeddings().weight is embedding:
        outlets[HEAD] = next(outlet for outlet in outlets.values() if outlet.parameters[0] is embedding)
    return dict(sorted(outlets.items()))


def has_tied_head(outlets: Mapping[str, Outlet]) -> bool:
    """Whether the output head is the embedding too."""
    return any(outlet is outlets[HEAD] for name, outlet in outlets.items() if name != HEAD)


def adapter_outlets(model: PreTrainedModel) -> dict[str, Outlet]:
    """The adapters' weights by their names in peft's files, in the order of the names."""
    outlets = {}
    for layer, low_rank in adapters(model).items():
        outlets[f"{FILE_PREFIX}{layer}.lora_A.weight"] = as_it_is(low_rank.down)
        outlets[f"{FILE_PREFIX}{layer}.lora_B.weight"] = as_it_is(low_rank.up)
    return dict(sorted(outlets.items()))


def stream(outlets: Mapping[str, Outlet], gather: Gather) -> Iterator[tuple[str, NamedTensor]]:
    """The tensors one by one, each gathered when its turn comes and gone when the next one's does.

    On CPU the bytes may alias the live weights: use them before the next update, or copy.
    """
    for name, outlet in outlets.items():
        with gather(outlet.parameters):
            yield name, _named(outlet.read())


def collect(outlets: Mapping[str, Outlet], gather: Gather) -> dict[str, NamedTensor]:
    """All tensors at once, for the engines. What leaves under two names is one object, and so is sent once.

    On CPU the bytes may alias the live weights: use them before the next update, or copy.
    """
    made: dict[Outlet, NamedTensor] = {}
    for outlet in outlets.values():
        if outlet not in made:
            with gather(outlet.parameters):
                made[outlet] = _named(outlet.read())
    return {name: made[outlet] for name, outlet in outlets.items()}


def assist(outlets: Iterable[Outlet], gather: Gather) -> None:
    """What the ranks do that write nothing while another one streams or collects: the same gathers."""
    for outlet in outlets:
        with gather(outlet.parameters):
            pass


def as_it_is(parameter: nn.Parameter) -> Outlet:
    """A parameter that leaves unchanged."""
    return Outlet(spec=_spec(parameter), parameters=(parameter,), read=parameter.detach)


def _merged(weight: nn.Parameter, low_rank: LowRank) -> Outlet:
    def read() -> torch.Tensor:
        return (weight.detach().float() + low_rank.change()).to(weight.dtype)

    return Outlet(spec=_spec(weight), parameters=(weight, low_rank.down, low_rank.up), read=read)


def _spec(parameter: nn.Parameter) -> TensorSpec:
    # DeepSpeed empties a parameter that it has partitioned, and notes its shape
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return TensorSpec(shape=tuple(shape), dtype=str(parameter.dtype).removeprefix("torch."))


def _named(tensor: torch.Tensor) -> NamedTensor:
    spec = TensorSpec(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
    return NamedTensor(spec=spec, data=tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def write_folder(
    outlets: Mapping[str, Outlet],
    tensors: Iterable[tuple[str, NamedTensor]],
    source: Path,
    folder: Path,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> str:
    """The weights as a checkpoint folder like `source`, which `from_pretrained` and vLLM load; their digest.

    Everything but the weights is `source`'s: config, tokenizer, processor. A tied head is left out
    of the files, as `save_pretrained` does, but is in the digest.  tensors: `stream` of `outlets`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in companions(source):
        shutil.copyfile(file, folder / file.name)  # bytes alone: the owner's permissions may forbid writing
    running = RunningDigest()
    left_out = HEAD if has_tied_head(outlets) else ""

    def for_the_files() -> Iterator[tuple[str, NamedTensor]]:
        for name, tensor in tensors:
            running.add(name, tensor)
            if name != left_out:
                yield name, tensor

    specs = {name: outlet.spec for name, outlet in outlets.items() if name != left_out}
    write_tensors(folder, specs, for_the_files(), max_file_bytes)
    return running.hexdigest()


def write_adapter(payload: Mapping[str, NamedTensor], lora: LoraConfig, source: Path, folder: Path) -> None:
    """Adapters as a folder that peft and vLLM load on top of the model in `source`."""
    write_adapter_config(lora, source, folder)
    tensors = {name: as_tensor(tensor) for name, tensor in payload.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


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
                payload[name] = _named(file.get_tensor(name))
    if not payload:
        raise FileNotFoundError(f"{folder}: no *.safetensors in it; a checkpoint folder has weights.")
    embedding = next((name for name in payload if name.endswith("embed_tokens.weight")), None)
    if HEAD not in payload and embedding is not None:
        payload[HEAD] = payload[embedding]
    return payload

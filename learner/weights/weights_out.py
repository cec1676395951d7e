"""Export of the learner's weights: as named bytes for engines, and as Hugging Face folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from learner.model.families import family_of
from learner.model.lora import LowRank, adapters, write_adapter_config
from learner.weights.safetensors_out import write_tensors
from rlsys.config.run import LoraConfig
from rlsys.models.folder import companions
from rlsys.weights.manifest import NamedTensor, NamedTensors, RunningDigest, TensorEntry, TensorSpec, manifest_of
from rlsys.weights.tensors import (
    ADAPTER_PREFIX,
    HEAD,
    as_named,
    as_tensor,
    embedding_name,
    fetched_sums,
    has_head,
    spec_of,
    sums_on_device,
)

ADAPTER_FOLDER = "adapter"
MAX_FILE_BYTES = 2 << 30

Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager[None]]
"""A context in which partitioned parameters are complete; every rank must enter it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedTensor:
    """One tensor to export. spec: of the whole tensor.  parameters: must be gathered while `read` computes it.

    is_made: whether `read` computes it anew, so that it does not lie in a parameter's memory.
    """

    spec: TensorSpec
    parameters: tuple[nn.Parameter, ...]
    read: Callable[[], torch.Tensor]
    is_made: bool = False


def checkpoint_names(model: PreTrainedModel) -> dict[str, str]:
    """Map each parameter's name in the module to its name in the checkpoint that the model was read from.

    They differ: transformers reads `visual.*` and `model.*` into `model.visual.*` and
    `model.language_model.*`, and writes the file's own names again. Call it before adapters are added.
    """
    # one by one, so that tensors which are joined or divided in a checkpoint are noticed
    names = {
        name: list(revert_weight_conversion(model, {name: parameter})) for name, parameter in model.named_parameters()
    }
    return {name: found for name, (found,) in names.items()}


def exported_model(model: PreTrainedModel, names: Mapping[str, str]) -> dict[str, ExportedTensor]:
    """Return all weights by checkpoint name, sorted by name; adapters are merged into their layers.

    The output head is included even if it is tied to the embedding: an engine has a copy of it
    that an update without it leaves stale.  names: see `checkpoint_names`.
    """
    by_layer, transposed = adapters(model), family_of(model).transposed
    exported: dict[str, ExportedTensor] = {}
    for name, parameter in model.named_parameters():
        plain = name.replace(".base_layer.", ".")
        if plain in names:
            low_rank = by_layer.get(plain.removesuffix(".weight"))
            if low_rank:
                exported[names[plain]] = _merged(parameter, low_rank)
            else:
                is_turned = bool(transposed) and plain.endswith(transposed)
                exported[names[plain]] = _turned(parameter) if is_turned else unchanged(parameter)
    embedding = model.get_input_embeddings().weight
    if model.get_output_embeddings().weight is embedding:
        exported[HEAD] = next(tensor for tensor in exported.values() if tensor.parameters[0] is embedding)
    return dict(sorted(exported.items()))


def has_tied_head(exported: Mapping[str, ExportedTensor]) -> bool:
    """Return whether the output head is tied to the embedding."""
    head = exported.get(HEAD)  # one of its own may have a prefix
    return any(tensor is head for name, tensor in exported.items() if name != HEAD)


def exported_adapter(model: PreTrainedModel) -> dict[str, ExportedTensor]:
    """Return the adapters' weights by their names in peft's files, sorted by name."""
    exported = {}
    for layer, low_rank in adapters(model).items():
        exported[f"{ADAPTER_PREFIX}{layer}.lora_A.weight"] = unchanged(low_rank.down)
        exported[f"{ADAPTER_PREFIX}{layer}.lora_B.weight"] = unchanged(low_rank.up)
    return dict(sorted(exported.items()))


def names_of(exported: Mapping[str, ExportedTensor]) -> dict[ExportedTensor, list[str]]:
    """Return the names of each tensor, in the order of the first ones; a tied head is the embedding's second name."""
    names: dict[ExportedTensor, list[str]] = {}
    for name, tensor in exported.items():
        names.setdefault(tensor, []).append(name)
    return names


def stream(exported: Mapping[str, ExportedTensor], gather: Gather) -> Iterator[tuple[str, NamedTensor]]:
    """Yield the tensors one by one in the order of `names_of`, each gathered once and released before the next.

    On CPU the bytes may alias the live weights: use them before the next update, or copy.
    """
    for tensor, names in names_of(exported).items():
        with gather(tensor.parameters):
            made = as_named(tensor.read())
            for name in names:
                yield name, made


def collect(exported: Mapping[str, ExportedTensor], gather: Gather) -> dict[str, NamedTensor]:
    """Return all tensors, for the engines. A tensor with two names is one object, and is sent once.

    On CPU the bytes may alias the live weights: use them before the next update, or copy.
    """
    return _collected(exported, gather, lambda tensor: tensor.read())


def _collected(
    exported: Mapping[str, ExportedTensor], gather: Gather, read: Callable[[ExportedTensor], torch.Tensor]
) -> dict[str, NamedTensor]:
    made: dict[ExportedTensor, NamedTensor] = {}
    for tensor in names_of(exported):
        with gather(tensor.parameters):
            made[tensor] = as_named(read(tensor))
    return {name: made[tensor] for name, tensor in exported.items()}


def gathered(
    exported: Mapping[str, ExportedTensor], gather: Gather
) -> tuple[dict[str, NamedTensor], dict[ExportedTensor, torch.Tensor]]:
    """Return `collect`, and the sums of tensors that are on a GPU, computed and left there."""
    on_gpu: dict[ExportedTensor, torch.Tensor] = {}

    def noting(tensor: ExportedTensor) -> torch.Tensor:
        value = tensor.read()
        if value.is_cuda:
            on_gpu[tensor] = sums_on_device(value)
        return value

    return _collected(exported, gather, noting), on_gpu


def identified(
    exported: Mapping[str, ExportedTensor],
    tensors: NamedTensors,
    on_gpu: Mapping[ExportedTensor, torch.Tensor],
) -> dict[str, TensorEntry]:
    """Return the manifest of what `gathered` returned."""
    if not on_gpu:
        return manifest_of(tensors)
    sums = dict(zip(on_gpu, fetched_sums(on_gpu.values()), strict=True))
    return {name: TensorEntry(spec=tensor.spec, checksum=sums[tensor].hex) for name, tensor in exported.items()}


def identified_in_place(exported: Mapping[str, ExportedTensor], gather: Gather) -> dict[str, TensorEntry]:
    """Return the manifest of parameters that are whole, without a copy of those on a GPU."""
    read = {tensor: tensor.read() for tensor in exported.values()}
    on_gpu = {tensor: sums_on_device(value) for tensor, value in read.items() if value.is_cuda}
    return identified(exported, {} if on_gpu else collect(exported, gather), on_gpu)


def assist(exported: Mapping[str, ExportedTensor], gather: Gather) -> None:
    """Take part in the gathers of the rank that streams or collects; for ranks that write nothing."""
    for tensor in names_of(exported):
        with gather(tensor.parameters):
            pass


def unchanged(parameter: nn.Parameter) -> ExportedTensor:
    """Export a parameter as it is."""
    return ExportedTensor(spec=_spec(parameter), parameters=(parameter,), read=parameter.detach)


def _merged(weight: nn.Parameter, low_rank: LowRank) -> ExportedTensor:
    def read() -> torch.Tensor:
        return (weight.detach().float() + low_rank.change()).to(weight.dtype)

    return ExportedTensor(spec=_spec(weight), parameters=(weight, low_rank.down, low_rank.up), read=read, is_made=True)


def _turned(parameter: nn.Parameter) -> ExportedTensor:
    def read() -> torch.Tensor:
        return parameter.detach().transpose(-2, -1).contiguous()

    spec = _spec(parameter)
    *first, rows, columns = spec.shape
    turned = replace(spec, shape=(*first, columns, rows))
    return ExportedTensor(spec=turned, parameters=(parameter,), read=read, is_made=True)


def _spec(parameter: nn.Parameter) -> TensorSpec:
    # DeepSpeed empties a partitioned parameter and records its shape
    return spec_of(parameter, getattr(parameter, "ds_shape", None))


def write_folder(
    exported: Mapping[str, ExportedTensor],
    tensors: Iterable[tuple[str, NamedTensor]],
    source: Path,
    folder: Path,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> str:
    """Write the weights as a checkpoint folder like `source`, for `from_pretrained` and vLLM; return their digest.

    All other files (config, tokenizer, processor) are copied from `source`. A tied head is not written, as with
    `save_pretrained`, but is part of the digest.  tensors: `stream` of `exported`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in companions(source):
        shutil.copyfile(
            file, folder / file.name
        )  # only the bytes, because the permissions of the source may forbid writing
    running = RunningDigest()
    omitted = HEAD if has_tied_head(exported) else ""

    def for_the_files() -> Iterator[tuple[str, NamedTensor]]:
        for name, tensor in tensors:
            running.add(name, tensor)
            if name != omitted:
                yield name, tensor

    specs = {name: tensor.spec for tensor, names in names_of(exported).items() for name in names if name != omitted}
    write_tensors(folder, specs, for_the_files(), max_file_bytes)
    return running.hexdigest()


def write_adapter(tensors: NamedTensors, lora: LoraConfig, source: Path, folder: Path) -> None:
    """Write adapters as a folder that peft and vLLM load on top of the model in `source`."""
    write_adapter_config(lora, source, folder)
    by_name = {name: as_tensor(tensor) for name, tensor in tensors.items()}
    save_file(by_name, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def read_folder(folder: Path) -> dict[str, NamedTensor]:
    """Return the tensors of a checkpoint folder as they would be published, tied head included."""
    tensors: dict[str, NamedTensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, safe_open has no __iter__
                tensors[name] = as_named(file.get_tensor(name))
    if not tensors:
        raise FileNotFoundError(f"{folder}: it has no *.safetensors; use a folder written by save_pretrained.")
    embedding = embedding_name(tensors)
    if embedding is not None and not has_head(tensors):
        tensors[HEAD] = tensors[embedding]
    return tensors

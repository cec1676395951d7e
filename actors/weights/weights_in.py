"""Checks of the weights that an engine is sent, before they are loaded.

A wrong shape inside vLLM makes the engine hang, so names, shapes, dtypes, bytes and finiteness are checked first,
against the checkpoint that the engine was loaded from.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from actors.errors import WeightsRefused
from rlsys.config.run import LoraConfig
from rlsys.models.folder import tensor_shapes
from rlsys.weights.manifest import (
    Manifest,
    NamedTensor,
    NamedTensors,
    TensorSpec,
    WeightTransfer,
    differences,
    digest_of,
    manifest_of,
)
from rlsys.weights.tensors import ADAPTER_PREFIX, HEAD, as_tensor, embedding_name, has_head, is_finite
from rlsys.weights.version import WeightVersion

TEXT_LAYERS = "language_model.model.layers."
FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
    "in_proj_qkv": ("in_proj_qkvz", 0),
    "in_proj_z": ("in_proj_qkvz", 1),
    "in_proj_b": ("in_proj_ba", 0),
    "in_proj_a": ("in_proj_ba", 1),
}
"""Layers that vLLM fuses: name in the checkpoint -> (name of the fused layer, index of the part in it)."""
UNFUSED = ("vision_tower.",)
"""Modules of vLLM in which it computes each of these layers by itself."""
_SHOWN = 8  # number of problems named in an error; a wrong model has hundreds


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The tensors of an update. tied_to: the tensor whose values the output head must have, "" if it has its own."""

    specs: Mapping[str, TensorSpec]
    tied_to: str


def expected_weights(model_path: Path, dtype: str, unused: tuple[str, ...] = ()) -> Expected:
    """Return name, shape and dtype of every tensor of an update, from the headers of the checkpoint's files.

    Names are the files' own, plus the output head if it is tied to the embedding and therefore in no file: an update
    without it would leave vLLM's head stale. dtype: the run's number format, regardless of the files'.  unused:
    beginnings of the names of tensors that neither learner nor engine reads.
    Raises FileNotFoundError if the folder has no *.safetensors.
    """
    files = sorted(Path(model_path).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{model_path}: no *.safetensors in it; save the checkpoint with save_pretrained.")
    shapes = {
        name: shape for file in files for name, shape in tensor_shapes(file).items() if not name.startswith(unused)
    }
    specs = {name: TensorSpec(shape=shape, dtype=dtype) for name, shape in shapes.items()}
    if has_head(specs):
        return Expected(specs=specs, tied_to="")
    embedding = embedding_name(specs)
    if embedding is None:
        raise ValueError(f"{model_path}: neither {HEAD} nor an embed_tokens.weight that it could be tied to.")
    return Expected(specs={**specs, HEAD: specs[embedding]}, tied_to=embedding)


def expected_adapter(full: Expected, lora: LoraConfig) -> Expected:
    """Return name, shape and dtype of every tensor of an adapter: two for each target layer of the language model.

    Names are peft's: "base_model.model.", the layer as transformers calls it, "lora_A" (down to the rank) or "lora_B".
    """
    specs: dict[str, TensorSpec] = {}
    for name, spec in full.specs.items():
        layer = name.removesuffix(".weight")
        if (
            name == layer
            or layer.rsplit(".", 1)[-1] not in lora.targets
            or not engine_name(name).startswith(TEXT_LAYERS)
        ):
            continue
        outputs, inputs = spec.shape
        module = f"{ADAPTER_PREFIX}{engine_name(layer).replace(TEXT_LAYERS, 'model.language_model.layers.', 1)}"
        specs[f"{module}.lora_A.weight"] = TensorSpec(shape=(lora.rank, inputs), dtype=spec.dtype)
        specs[f"{module}.lora_B.weight"] = TensorSpec(shape=(outputs, lora.rank), dtype=spec.dtype)
    return Expected(specs=specs, tied_to="")


def write_adapter(tensors: NamedTensors, lora: LoraConfig, folder: Path) -> None:
    """Write an adapter as the folder that vLLM reads, in peft's format."""
    settings = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(lora.targets),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({name: as_tensor(tensor) for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def refused(version: WeightVersion, problems: Sequence[str]) -> WeightsRefused:
    """Return the error that names a version and its problems."""
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    lines = "\n  ".join(problems[:_SHOWN])
    return WeightsRefused(f"weights version {version.version} refused, {len(problems)} problem(s):\n  {lines}{more}")


def check_manifest(version: WeightVersion, expected: Expected, transfer: WeightTransfer) -> None:
    """Raise WeightsRefused unless the model can load all tensors of `version` and the transfer has all of them."""
    manifest = version.manifest
    problems = differences(expected.specs, {name: entry.spec for name, entry in manifest.items()})
    if not problems and (found := digest_of(manifest)) != version.digest:
        problems = [
            f"the manifest's digest is {found}, but version {version.version} was announced as {version.digest}"
        ]
    if not problems and expected.tied_to and manifest[HEAD].checksum != manifest[expected.tied_to].checksum:
        problems = [f"{HEAD}: differs from {expected.tied_to}, to which this model ties it"]
    shipped = {name for bucket in transfer.buckets for name in bucket.names}
    problems = problems or [f"{name}: in no bucket of the transfer" for name in manifest if name not in shipped]
    if problems:
        raise refused(version, problems)


def bucket_problems(tensors: NamedTensors, names: Collection[str], manifest: Manifest) -> list[str]:
    """Return one line for each tensor of a bucket that is not the manifest's or not finite; [] if there is none."""
    expected = {name: manifest[name].spec for name in names}
    problems = differences(expected, {name: tensor.spec for name, tensor in tensors.items()})
    problems = problems or [line for name, tensor in tensors.items() if (line := _bytes_problem(name, tensor))]
    if problems:
        return problems
    problems = [
        f"{name}: its checksum is {entry.checksum}, but it was announced as {manifest[name].checksum}"
        for name, entry in manifest_of(tensors).items()
        if entry != manifest[name]
    ]
    return problems or [
        f"{name}: holds NaN or infinity; the update that produced it diverged"
        for name, tensor in tensors.items()
        if not is_finite(as_tensor(tensor))
    ]


def _bytes_problem(name: str, tensor: NamedTensor) -> str:
    wanted = tensor.spec.num_bytes
    if tensor.data.dtype != np.uint8 or tensor.data.shape != (wanted,):
        return f"{name}: {tensor.data.dtype}{list(tensor.data.shape)} is not the {wanted} bytes of {tensor.spec}"
    return ""


def engine_name(name: str) -> str:
    """Return the parameter of vLLM's model that a tensor of a checkpoint, old style or new, is loaded into."""
    for old, new in (
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("model.visual.", "visual."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", "language_model.model."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def engine_module(name: str) -> str:
    """Return the module of vLLM's model that a checkpoint's tensor belongs to; fused layers are one module."""
    module = engine_name(name).rpartition(".")[0]
    fused = fused_layer(module)
    return f"{module.rpartition('.')[0]}.{fused[0]}" if fused else module


def fused_layer(module: str) -> tuple[str, int] | None:
    """Return the fused layer of which a layer is a part, and the part's index; None if vLLM does not fuse it.

    module: of vLLM, as if nothing were fused.
    """
    return None if module.startswith(UNFUSED) else FUSED.get(module.rpartition(".")[2])

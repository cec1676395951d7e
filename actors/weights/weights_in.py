"""Weights arrive at an engine: everything that can be wrong is found before they touch it.

A wrong shape inside vLLM ends the engine (later calls spin), so names, shapes, dtypes, bytes and
finiteness are checked here, against the checkpoint that the engine was loaded from.
"""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from actors.errors import WeightsRefused
from rlsys.config.run import LoraConfig
from rlsys.weights.manifest import (
    Manifest,
    NamedTensor,
    Shipment,
    TensorSpec,
    differences,
    digest_of,
    entry_of,
    manifest_of,
)
from rlsys.weights.version import WeightVersion

HEAD = "lm_head.weight"
ADAPTER_PREFIX = "base_model.model."
TEXT_LAYERS = "language_model.model.layers."
FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""Layers that are a part of another one in vLLM."""
_SHOWN = 8  # problems named in an error; a wrong model has hundreds


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an update must bring. tied_to: the tensor whose values the output head must have, "" when it has its own."""

    specs: Mapping[str, TensorSpec]
    tied_to: str


def expected_weights(model_path: Path, dtype: str) -> Expected:
    """Name, shape and dtype of every tensor of an update, read from the headers of the checkpoint's files.

    Names are the files' own, plus the output head where it is tied to the embedding and so in no file:
    an update without it would leave vLLM's head stale. dtype: the run's number format, whatever the files'.
    Raises FileNotFoundError when the folder has no *.safetensors.
    """
    files = sorted(Path(model_path).glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{model_path}: no *.safetensors in it; save the checkpoint with save_pretrained.")
    specs: dict[str, TensorSpec] = {}
    for file in files:
        for name, entry in _header(file).items():
            specs[name] = TensorSpec(shape=tuple(entry["shape"]), dtype=dtype)
    if HEAD in specs:
        return Expected(specs=specs, tied_to="")
    embedding = next((name for name in specs if name.endswith("embed_tokens.weight")), None)
    if embedding is None:
        raise ValueError(f"{model_path}: neither {HEAD} nor an embed_tokens.weight that it could be tied to.")
    return Expected(specs={**specs, HEAD: specs[embedding]}, tied_to=embedding)


def expected_adapter(full: Expected, lora: LoraConfig) -> Expected:
    """Name, shape and dtype of every tensor of an adapter: two matrices for each target layer of the language model.

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


def write_adapter(payload: Mapping[str, NamedTensor], lora: LoraConfig, folder: Path) -> None:
    """The adapter as the folder that vLLM reads: peft's format."""
    settings = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(lora.targets),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({name: as_tensor(tensor) for name, tensor in payload.items()}, folder / "adapter_model.safetensors")


def _header(file: Path) -> dict[str, Any]:
    # safetensors: u64 length of a JSON header, little endian, then the header
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header


def refused(version: WeightVersion, problems: Sequence[str]) -> WeightsRefused:
    """The error that names a version and what is wrong with it."""
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    lines = "\n  ".join(problems[:_SHOWN])
    return WeightsRefused(f"weights version {version.version} refused, {len(problems)} problem(s):\n  {lines}{more}")


def check_manifest(version: WeightVersion, expected: Expected, shipment: Shipment) -> None:
    """Raises WeightsRefused unless the model can take what `version` announces and the shipment has all of it."""
    manifest = version.manifest
    problems = differences(expected.specs, {name: entry.spec for name, entry in manifest.items()})
    if not problems and (found := digest_of(manifest)) != version.digest:
        problems = [f"the manifest's digest is {found}, version {version.version} was announced as {version.digest}"]
    if not problems and expected.tied_to and manifest[HEAD].sha256 != manifest[expected.tied_to].sha256:
        problems = [f"{HEAD}: differs from {expected.tied_to}, to which this model ties it"]
    shipped = {name for bucket in shipment.buckets for name in bucket.names}
    problems = problems or [f"{name}: in no bucket of the shipment" for name in manifest if name not in shipped]
    if problems:
        raise refused(version, problems)


def bucket_problems(payload: Mapping[str, NamedTensor], names: Collection[str], manifest: Manifest) -> list[str]:
    """One line for each tensor of a bucket that is not what the manifest says, or not finite; [] when none."""
    expected = {name: manifest[name].spec for name in names}
    problems = differences(expected, {name: tensor.spec for name, tensor in payload.items()})
    problems = problems or [line for name, tensor in payload.items() if (line := _bytes_problem(name, tensor))]
    if problems:
        return problems
    problems = [
        f"{name}: its digest is {entry.sha256}, it was announced as {manifest[name].sha256}"
        for name, entry in manifest_of(payload).items()
        if entry != manifest[name]
    ]
    return problems or [
        f"{name}: holds NaN or infinity; the update that made it diverged"
        for name, tensor in payload.items()
        if not bool(torch.isfinite(as_tensor(tensor)).all())
    ]


def _bytes_problem(name: str, tensor: NamedTensor) -> str:
    wanted = tensor.spec.num_bytes
    if tensor.data.dtype != np.uint8 or tensor.data.shape != (wanted,):
        return f"{name}: {tensor.data.dtype}{list(tensor.data.shape)} is not the {wanted} bytes of {tensor.spec}"
    return ""


def as_tensor(named: NamedTensor) -> torch.Tensor:
    """The tensor over the same bytes, without a copy. Never write to it: the bytes may be Ray's shared memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(named.data)
    return flat.view(getattr(torch, named.spec.dtype)).view(named.spec.shape)


def engine_name(name: str) -> str:
    """The parameter of vLLM's Qwen2.5-VL that a checkpoint name, old style or new, is loaded into."""
    for old, new in (
        ("model.language_model.", "language_model.model."),
        ("model.visual.", "visual."),
        ("lm_head.", "language_model.lm_head."),
        ("model.", "language_model.model."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def engine_module(name: str) -> str:
    """The module of vLLM's Qwen2.5-VL that a checkpoint's tensor is loaded into; fused projections are one module."""
    module = engine_name(name).rpartition(".")[0]
    parent, _, kind = module.rpartition(".")
    return f"{parent}.{FUSED[kind][0]}" if kind in FUSED else module


def readable(model: torch.nn.Module, specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that vLLM holds as they came, by checkpoint name; a part of a fused projection as a slice of it.

    Not readable: on CPU the matrices of linear layers, which vLLM packs anew and frees, and what is split over
    several processes. Every adapter's layer keeps the plain one as its `base_layer`.
    """
    parameters = {
        name.replace(".base_layer.", "."): held for name, held in model.named_parameters(remove_duplicate=False)
    }
    for name, spec in specs.items():
        held = parameters.get(f"{engine_module(name)}.{name.rpartition('.')[2]}")
        if held is None or tuple(held.shape[1:]) != spec.shape[1:] or held.numel() < math.prod(spec.shape):
            continue
        kind = engine_name(name).split(".")[-2]
        if kind in FUSED:
            parts = [specs.get(part) for part in _parts(name, kind)]
            sizes = [part.shape[0] for part in parts if part is not None]
            if len(sizes) < len(parts) or sum(sizes) != held.shape[0]:
                continue
            held = held.split(sizes)[FUSED[kind][1]]
        # an embedding may be padded to a multiple of 64 rows
        yield name, held[: spec.shape[0]].detach()


def _parts(name: str, kind: str) -> list[str]:
    """The checkpoint's names of all that is fused with `name`, in their order."""
    fused = FUSED[kind][0]
    return [name.replace(f".{kind}.", f".{part}.") for part, (whole, _) in FUSED.items() if whole == fused]


def stale_parameters(model: torch.nn.Module, manifest: Manifest) -> tuple[int, list[str]]:
    """How many tensors can be read back from vLLM's model, and which of them are not what the manifest says."""
    num_read, stale = 0, []
    for name, held in readable(model, {name: entry.spec for name, entry in manifest.items()}):
        num_read += 1
        if entry_of(as_named(held)) != manifest[name]:
            stale.append(name)
    return num_read, stale


def as_named(tensor: torch.Tensor) -> NamedTensor:
    """A tensor of the engine as bytes; shared with it where it lies in memory as it would in a file."""
    spec = TensorSpec(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
    return NamedTensor(spec=spec, data=tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def compared(
    model: torch.nn.Module, payload: Mapping[str, NamedTensor], specs: Mapping[str, TensorSpec]
) -> dict[str, float | None]:
    """By name, the largest absolute difference between what vLLM holds and `payload`; None where it is not readable.

    specs: of the whole model, for a fused projection's place in its module depends on the others'.
    """
    found: dict[str, float | None] = dict.fromkeys(payload)
    for name, held in readable(model, specs):
        if name in payload:
            sent = as_tensor(payload[name])
            found[name] = (held.cpu().double() - sent.double()).abs().max().item()
    return found


def stale_adapter(model: torch.nn.Module, payload: Mapping[str, NamedTensor]) -> tuple[int, list[str]]:
    """How many matrices of an adapter can be read back from vLLM's layers, and which of them differ there.

    Those that lead down to the rank; vLLM has multiplied the others with the scale.
    """
    layers = dict(model.named_modules())
    num_read, stale = 0, []
    for name, named in payload.items():
        layer = name.removeprefix(ADAPTER_PREFIX).removesuffix(".lora_A.weight")
        if layer + ".lora_A.weight" != name.removeprefix(ADAPTER_PREFIX):
            continue
        parent, _, kind = engine_name(layer).rpartition(".")
        fused, part = FUSED.get(kind, (kind, 0))
        held = layers[f"{parent}.{fused}"].lora_a_stacked[part][0, 0]
        num_read += 1
        sent = as_tensor(named)
        if not torch.equal(held[: sent.shape[0], : sent.shape[1]].cpu(), sent):
            stale.append(name)
    return num_read, stale

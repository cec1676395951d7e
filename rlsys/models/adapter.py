"""Low-rank adapters in peft's format, read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from rlsys.models.model_config import ModelFolderError, read_json
from rlsys.weights.manifest import NamedTensor, NamedTensors, TensorSpec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
UNREADABLE = ("use_dora", "use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform")
"""Settings of peft that change what an adapter computes, and that the engine is not given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """An adapter: its settings as in `learner.lora`, and its tensors by peft's names."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    tensors: NamedTensors


def read_adapter(folder: Path, dtype: str) -> Adapter:
    """Return the LoRA adapter in `folder`, its tensors in `dtype` ("float32" or "bfloat16").

    Raises ModelFolderError for a folder without an adapter, or with one that is not plain LoRA.
    """
    folder = Path(folder)
    settings = read_json(folder, CONFIG)
    if settings.get("peft_type") != "LORA":
        raise ModelFolderError(f"{folder / CONFIG}: peft_type={settings.get('peft_type')!r}; only LORA can be loaded.")
    if unreadable := [name for name in UNREADABLE if settings.get(name)]:
        raise ModelFolderError(
            f"{folder / CONFIG}: {', '.join(unreadable)} is set; merge the adapter into its model "
            "(peft's merge_and_unload), and use that folder."
        )
    try:
        found = deserialize((folder / WEIGHTS).read_bytes())
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(f"{folder / WEIGHTS}: cannot be read ({error}); save the adapter again.") from error
    tensors = {name: _converted(name, one, dtype, folder) for name, one in found}
    layers = {name.partition(".lora_")[0] for name in tensors if ".lora_" in name}
    if not layers:
        raise ModelFolderError(f"{folder / WEIGHTS}: no tensor is named …lora_A.weight; it is not a LoRA adapter.")
    return Adapter(
        rank=int(settings["r"]),
        alpha=float(settings["lora_alpha"]),
        targets=tuple(sorted({layer.rsplit(".", 1)[-1] for layer in layers})),
        tensors=tensors,
    )


def _converted(name: str, stored: dict[str, object], dtype: str, folder: Path) -> NamedTensor:
    found = DTYPES.get(str(stored["dtype"]))
    if found is None:
        raise ModelFolderError(f"{folder / WEIGHTS}: {name} is {stored['dtype']}; save it as float32 or bfloat16.")
    spec = TensorSpec(shape=tuple(stored["shape"]), dtype=dtype)  # type: ignore[arg-type]
    data = np.frombuffer(stored["data"], np.uint8)  # type: ignore[call-overload]
    if found == dtype:
        return NamedTensor(spec=spec, data=data)
    values = data.view(np.uint16).astype(np.uint32) << 16 if found == "bfloat16" else data.view(found)
    exact = values.view(np.float32) if found == "bfloat16" else values.astype(np.float32)
    return NamedTensor(spec=spec, data=_as_bfloat16(exact) if dtype == "bfloat16" else exact.view(np.uint8))


def _as_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return finite float32 values rounded to the nearest bfloat16, ties to even, as bytes."""
    words = values.view(np.uint32)
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16).view(np.uint8)

"""The name of one set of weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlsys.weights.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class WeightVersion:
    """Weights by name.

    version: batches learned from, however many updates each took.  digest: see `rlsys.weights.manifest.digest`.
    manifest: what each tensor is; an engine takes nothing that is not in it.
    kind: all weights of the model ("full"), or LoRA adapters for the model that the engine was started with.
    """

    version: int
    transport: str
    num_tensors: int
    num_bytes: int
    digest: str
    kind: Literal["full", "adapter"] = "full"
    manifest: Manifest = field(default_factory=dict, repr=False)

"""The record that names one set of weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rlsys.weights.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class WeightVersion:
    """One set of weights: its number, its contents and its digest.

    version: number of batches trained on so far, regardless of the number of optimiser updates for each.
    digest: see `rlsys.weights.manifest.digest`.
    manifest: the spec and hash of every tensor; an engine loads only tensors that it lists.
    kind: all weights of the model ("full"), LoRA adapters for the model that the engine was started with ("adapter"),
    or that model as it is ("own"): nothing is sent, and `digest` is that of its folder, see `model_digest`.
    """

    version: int
    transport: str
    num_tensors: int
    num_bytes: int
    digest: str
    kind: Literal["full", "adapter", "own"] = "full"
    manifest: Manifest = field(default_factory=dict, repr=False)

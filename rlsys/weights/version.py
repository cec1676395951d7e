"""The record that names one set of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlsys.weights.manifest import Manifest, PublishStats


@dataclass(frozen=True, kw_only=True)
class WeightVersion:
    """One set of weights: its number, its contents and its digest.

    version: number of batches trained on so far, regardless of the number of optimiser updates for each.
    digest: see `rlsys.weights.manifest.digest`.
    manifest: the spec and checksum of every tensor; an engine loads only tensors that it lists.
    kind: all weights of the model ("full"), LoRA adapters for the model that the engine was started with ("adapter"),
    or that model as it is ("own"): nothing is sent, and `digest` is that of its folder, see `content_digest`.
    published: of the learner's end.  parts_s: seconds of an actor's update by part, in what it acknowledges. Neither
    counts for equality.
    """

    version: int
    transport: str
    num_tensors: int
    num_bytes: int
    digest: str
    kind: Literal["full", "adapter", "own"] = "full"
    manifest: Manifest = field(default_factory=dict, repr=False)
    published: PublishStats | None = field(default=None, repr=False, compare=False)
    parts_s: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)

"""Do learner, engines and checkpoint hold the same weights? Tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rlsys.weights.manifest import Manifest, NamedTensor, Shipment, TensorSpec
from rlsys.weights.version import WeightVersion


@dataclass(frozen=True, kw_only=True)
class Held:
    """What one holder has. place: "actor 0", "checkpoint", ...

    manifest: what it was sent, or is.  differences: by name, the largest absolute difference from the learner's
    tensor as read back; None where it is not readable there (then the manifest alone speaks).
    """

    place: str
    manifest: Manifest
    differences: Mapping[str, float | None]


class Learner(Protocol):
    """See `learner.group.LearnerGroup`."""

    def publish(self, version: int) -> tuple[Shipment, WeightVersion]: ...

    def compare(self, folder: Path, shipment: Shipment) -> tuple[Manifest, dict[str, float | None]]: ...


class Pool(Protocol):
    """See `actors.pool.RolloutPool`."""

    def compare_weights(self, shipment: Shipment) -> dict[str, tuple[Manifest, dict[str, float | None]]]: ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor of the learner's. findings: by place, as text.  is_equal: nobody has another value."""

    name: str
    spec: TensorSpec
    findings: Mapping[str, str]
    is_equal: bool


def compare(learner: Learner, pool: Pool, version: int, model_folder: Path | None) -> list[Row]:
    """What the learner, every actor and perhaps a model folder hold, tensor by tensor.

    The actors are compared with what the learner would publish now; nothing is loaded into them. For a live run too,
    with its stack's learner and pool, between two steps.
    """
    shipment, published = learner.publish(version)
    found = pool.compare_weights(shipment)
    if model_folder is not None:
        found["checkpoint"] = learner.compare(model_folder, shipment)
    holders = [Held(place=place, manifest=held, differences=by_name) for place, (held, by_name) in found.items()]
    return check_holders(published.manifest, holders)


def check_holders(learner: Manifest, holders: Sequence[Held]) -> list[Row]:
    """A row for each tensor of the learner's, and one for each that somebody has beyond them, by name."""
    rows = []
    for name in sorted(learner.keys() | {name for held in holders for name in held.manifest}):
        spec = (
            learner[name].spec
            if name in learner
            else next(h.manifest[name].spec for h in holders if name in h.manifest)
        )
        findings = {held.place: finding(name, learner, held) for held in holders}
        is_equal = name in learner and all(is_good for _, is_good in findings.values())
        rows.append(
            Row(name=name, spec=spec, findings={p: text for p, (text, _) in findings.items()}, is_equal=is_equal)
        )
    return rows


def finding(name: str, learner: Manifest, held: Held) -> tuple[str, bool]:
    """What one holder has of one tensor, and whether that is the learner's value."""
    if name not in held.manifest:
        return "missing", False
    if name not in learner:
        return "not the learner's", False
    difference = held.differences.get(name)
    if held.manifest[name].spec != learner[name].spec:
        have = held.manifest[name].spec
        return f"is {have.dtype}{list(have.shape)}", False
    if difference is not None and difference != 0:
        return ("not a number" if math.isnan(difference) else f"differs by {difference:.3g}"), False
    if held.manifest[name] != learner[name]:
        return "was sent other bytes" if difference is None else "other bytes, same numbers", False
    return ("not readable, sent as it is" if difference is None else "equal"), True


def largest_difference(one: NamedTensor, other: NamedTensor) -> float | None:
    """The largest absolute difference between their numbers; None where shape or dtype differ."""
    if one.spec != other.spec:
        return None
    if one.data.size == 0:
        return 0.0
    return float(np.abs(_numbers(one) - _numbers(other)).max())


def _numbers(tensor: NamedTensor) -> np.ndarray:
    data = np.ascontiguousarray(tensor.data)
    if tensor.spec.dtype == "bfloat16":  # the upper half of a float32
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return data.view(tensor.spec.dtype).astype(np.float64)

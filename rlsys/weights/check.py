"""Tensor-by-tensor comparison of the weights that learner, engines and checkpoint hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlsys.weights.delivery import Learner, Pool
from rlsys.weights.manifest import Manifest, NamedTensor, TensorSpec


@dataclass(frozen=True, kw_only=True)
class HeldWeights:
    """The weights that one holder has. holder: "actor 0", "checkpoint", ...

    manifest: of the weights that it was sent or that are on disk.
    differences: by name, the largest absolute difference of the value read back from the learner's tensor; None if it
    cannot be read back, in which case the manifest decides.
    """

    holder: str
    manifest: Manifest
    differences: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class TensorComparison:
    """The comparison of one tensor. findings: text by holder.  is_equal: all holders have the learner's value."""

    name: str
    spec: TensorSpec
    findings: Mapping[str, str]
    is_equal: bool


def compare(learner: Learner, pool: Pool, version: int, model_folder: Path | None) -> list[TensorComparison]:
    """Compare the weights of the learner, every actor and, if given, a model folder, tensor by tensor.

    The actors are compared with what the learner would publish now; nothing is loaded into them. This also works
    between two steps of a live run, with its stack's learner and pool.
    """
    transfer, published = learner.publish(version)
    found = dict(pool.compare_weights(transfer))
    if model_folder is not None:
        found["checkpoint"] = learner.compare(model_folder, transfer)
    holders = [HeldWeights(holder=name, manifest=held, differences=by_name) for name, (held, by_name) in found.items()]
    return check_holders(published.manifest, holders)


def check_holders(learner: Manifest, holders: Sequence[HeldWeights]) -> list[TensorComparison]:
    """Return a comparison for each tensor that the learner or any holder has, sorted by name."""
    compared = []
    for name in sorted(learner.keys() | {name for held in holders for name in held.manifest}):
        spec = (
            learner[name].spec
            if name in learner
            else next(h.manifest[name].spec for h in holders if name in h.manifest)
        )
        findings = {held.holder: finding(name, learner, held) for held in holders}
        is_equal = name in learner and all(is_good for _, is_good in findings.values())
        texts = {holder: text for holder, (text, _) in findings.items()}
        compared.append(TensorComparison(name=name, spec=spec, findings=texts, is_equal=is_equal))
    return compared


def finding(name: str, learner: Manifest, held: HeldWeights) -> tuple[str, bool]:
    """Return a description of one tensor at one holder, and whether it has the learner's value."""
    if name not in held.manifest:
        return "missing", False
    if name not in learner:
        return "not in the learner", False
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
    """Return the largest absolute difference between two tensors' numbers; None if shape or dtype differ."""
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

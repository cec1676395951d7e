"""Comparison of the weights of several holders, tensor by tensor."""

from __future__ import annotations

import numpy as np
import torch

from rlsys.weights.check import HeldWeights, check_holders, largest_difference
from rlsys.weights.manifest import NamedTensor, TensorSpec, manifest_of
from tests.support.transfers import named


def test_each_finding_is_reported_and_only_equal_weights_are_equal() -> None:
    one, other = named(np.zeros(2, np.float32)), named(np.ones(2, np.float32))
    learner = manifest_of({name: one for name in ("read", "sent", "stale", "spoilt", "lost")})
    sent = {"read": one, "sent": one, "stale": other, "spoilt": one, "more": one}
    differences = {"read": 0.0, "sent": None, "stale": None, "spoilt": 0.25}
    rows = check_holders(learner, [HeldWeights(holder="actor 0", manifest=manifest_of(sent), differences=differences)])
    assert {row.name: (row.findings["actor 0"], row.is_equal) for row in rows} == {
        "read": ("equal", True),
        "sent": ("not readable, sent as it is", True),
        "stale": ("was sent other bytes", False),
        "spoilt": ("differs by 0.25", False),
        "lost": ("missing", False),
        "more": ("not in the learner", False),
    }


def test_differences_are_those_of_the_numbers_in_bfloat16_too() -> None:
    def bfloat(values: list[float]) -> NamedTensor:
        data = torch.tensor(values, dtype=torch.bfloat16).view(torch.uint8).numpy()
        return NamedTensor(spec=TensorSpec(shape=(len(values),), dtype="bfloat16"), data=data)

    assert largest_difference(bfloat([1.0, -2.0]), bfloat([1.0, 0.5])) == 2.5
    assert largest_difference(named(np.zeros(2, np.float32)), named(np.zeros(3, np.float32))) is None

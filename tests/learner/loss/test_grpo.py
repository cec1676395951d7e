"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from learner.loss.grpo import Surrogate, cispo, clipped_surrogate, mean_by_response, nll, sequence_ratio, token_ratio
from tests.support.rounding import FLOAT32

Outcome = tuple[float, float, bool, bool, bool]


def outcome(found: Surrogate, logprob: torch.Tensor) -> Outcome:
    """Return the loss, its gradient by the log-prob, and the active bounds: low, high, dual."""
    found.loss.sum().backward()
    bounds = (found.is_clipped_low, found.is_clipped_high, found.is_dual_clipped)
    return found.loss.item(), logprob.grad.item(), *(bound.item() for bound in bounds)


def surrogate_of(ratio: float, advantage: float, dual_clip: float | None = None) -> Outcome:
    logprob = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    found = clipped_surrogate(
        token_ratio(logprob, torch.tensor([-1.0])),
        torch.tensor([advantage]),
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=dual_clip,
    )
    return outcome(found, logprob)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "is_low", "is_high"),
    [
        (1.0, 2.0, -2.0, -2.0, False, False),
        (1.1, 2.0, -2.2, -2.2, False, False),
        (1.5, 2.0, -2.56, 0.0, False, True),  # 1.28 x 2: good enough already, no more push
        (0.5, 2.0, -1.0, -1.0, False, False),  # good and unlikely: full gradient
        (0.5, -2.0, 1.6, 0.0, True, False),  # 0.8 x 2: bad and unlikely enough already
        (1.5, -2.0, 3.0, 3.0, False, False),  # bad and likely: full gradient
        (1.5, 0.0, 0.0, 0.0, False, False),
    ],
)
def test_clipped_surrogate_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float, is_low: bool, is_high: bool
) -> None:
    found = surrogate_of(ratio, advantage)
    assert found[:2] == pytest.approx((loss, gradient), abs=FLOAT32)
    assert found[2:] == (is_low, is_high, False)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "is_dual"),
    [
        (2.9, -2.0, 5.8, 5.8, False),
        (10.0, -2.0, 6.0, 0.0, True),  # 3 x 2 and no further
        (0.5, -2.0, 1.6, 0.0, False),  # the lower bound as ever
        (10.0, 2.0, -2.56, 0.0, False),  # the dual bound is for negative advantages alone
    ],
)
def test_dual_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float, is_dual: bool) -> None:
    found = surrogate_of(ratio, advantage, dual_clip=3.0)
    assert found[:2] == pytest.approx((loss, gradient), abs=FLOAT32 * 10)
    assert found[4] == is_dual


def test_on_policy_gradient_is_the_plain_policy_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = torch.tensor([0.7, -1.3, 0.0])
    ratio = token_ratio(logprobs, logprobs.detach())
    clipped_surrogate(ratio, advantages, clip_low=0.2, clip_high=0.2).loss.sum().backward()
    assert torch.equal(logprobs.grad, -advantages)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "is_low", "is_high"),
    [
        (1.0, 2.0, 1.0, False, False),
        (1.1, -2.0, 1.1, False, False),
        (1.5, 2.0, 1.28, False, True),  # capped and still in the gradient
        (1.5, -2.0, 1.28, False, True),
        (0.5, -2.0, 0.8, True, False),
    ],
)
def test_cispo_by_hand(ratio: float, advantage: float, weight: float, is_low: bool, is_high: bool) -> None:
    logprob = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    found = cispo(
        logprob,
        token_ratio(logprob, torch.tensor([-1.0])),
        torch.tensor([advantage]),
        clip_low=0.2,
        clip_high=0.28,
    )
    got = outcome(found, logprob)
    expected = (-weight * advantage * (math.log(ratio) - 1.0), -weight * advantage)
    assert got == (*(pytest.approx(value, abs=FLOAT32) for value in expected), is_low, is_high, False)


def test_inside_the_bounds_cispo_has_the_gradient_of_ppo() -> None:
    advantages, old = torch.tensor([0.7, -1.3, 2.0]), torch.tensor([-1.1, -1.9, -0.5])
    gradients = []
    for policy_loss in ("clip", "cispo"):
        logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
        ratio = token_ratio(logprobs, old)
        bounds = {"clip_low": 0.2, "clip_high": 0.2}
        if policy_loss == "clip":
            found = clipped_surrogate(ratio, advantages, **bounds)
        else:
            found = cispo(logprobs, ratio, advantages, **bounds)
        found.loss.sum().backward()
        gradients.append(logprobs.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_lower_bound_of_one_or_more_leaves_cispo_unbounded_below() -> None:
    logprob = torch.tensor([-9.0], requires_grad=True)
    found = cispo(logprob, token_ratio(logprob, torch.tensor([-1.0])), torch.tensor([1.0]), clip_low=1.0, clip_high=0.2)
    assert found.loss.item() == pytest.approx(9 * math.exp(-8))
    assert not found.is_clipped_low.item()


def test_the_mean_over_a_response_is_at_each_of_its_tokens() -> None:
    # the second of three responses has no token
    index = torch.tensor([0, 0, 2, 2, 2])
    found = mean_by_response(torch.tensor([1.0, 2.0, 3.0, 4.0, 8.0]), index, 3)
    assert found.tolist() == [1.5, 1.5, 5.0, 5.0, 5.0]


def test_the_sequence_ratio_is_the_geometric_mean_and_its_gradient_goes_to_every_token() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -1.0], requires_grad=True)
    old = torch.tensor([-1.0 - math.log(4), -2.0, -1.5])
    ratio = sequence_ratio(logprobs, old, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(ratio.detach(), torch.tensor([2.0, 2.0, math.exp(0.5)]))
    ratio[0].backward()
    # d s / d lp = s / 2 for both tokens of the response
    torch.testing.assert_close(logprobs.grad, torch.tensor([1.0, 1.0, 0.0]))


def test_nll_weighs_tokens() -> None:
    assert nll(torch.tensor([-1.5, -2.0]), torch.tensor([1.0, 0.5])).tolist() == [1.5, 1.0]

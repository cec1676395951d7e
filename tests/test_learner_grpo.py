"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from learner.grpo import clipped_surrogate, kl_to_reference, nll


def surrogate_of(ratio: float, advantage: float) -> tuple[float, float, bool, bool]:
    """Loss, its gradient by the log-probability, and which clip is active."""
    logprob = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    found = clipped_surrogate(logprob, torch.tensor([-1.0]), torch.tensor([advantage]), clip_low=0.2, clip_high=0.28)
    found.loss.sum().backward()
    return found.loss.item(), logprob.grad.item(), found.is_clipped_low.item(), found.is_clipped_high.item()


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
    assert found[:2] == pytest.approx((loss, gradient), abs=1e-6)
    assert found[2:] == (is_low, is_high)


def test_on_policy_gradient_is_the_plain_policy_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = torch.tensor([0.7, -1.3, 0.0])
    clipped_surrogate(logprobs, logprobs.detach(), advantages, clip_low=0.2, clip_high=0.2).loss.sum().backward()
    assert torch.equal(logprobs.grad, -advantages)


def test_kl_by_hand() -> None:
    # d = ref - policy = ln 2: 2 - ln 2 - 1; d = -ln 2: 0.5 + ln 2 - 1; d = 0: 0
    policy = torch.tensor([-1.0, -1.0, -1.0])
    reference = policy + torch.tensor([math.log(2), -math.log(2), 0.0])
    expected = torch.tensor([1 - math.log(2), math.log(2) - 0.5, 0.0])
    torch.testing.assert_close(kl_to_reference(policy, reference), expected)


def test_kl_estimate_is_the_kl_on_average() -> None:
    policy, reference = torch.tensor([0.1, 0.2, 0.7]), torch.tensor([0.3, 0.3, 0.4])
    estimate = (policy * kl_to_reference(policy.log(), reference.log())).sum()
    torch.testing.assert_close(estimate, (policy * (policy / reference).log()).sum())


def test_kl_pulls_towards_the_reference() -> None:
    policy = torch.tensor([-1.0], requires_grad=True)
    kl_to_reference(policy, torch.tensor([-3.0])).sum().backward()
    # gradient of exp(r - p) - (r - p) - 1 by p is 1 - exp(r - p): down to the reference
    assert policy.grad.item() == pytest.approx(1 - math.exp(-2.0))


def test_nll_weighs_tokens() -> None:
    assert nll(torch.tensor([-1.5, -2.0]), torch.tensor([1.0, 0.5])).tolist() == [1.5, 1.0]

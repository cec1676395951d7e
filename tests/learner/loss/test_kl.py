"""KL estimates by hand, and their mean gradients over samples of the distribution."""

from __future__ import annotations

import math

import pytest
import torch

from learner.loss.kl import kl_estimate

POLICY, REFERENCE = torch.tensor([0.1, 0.2, 0.7]).double(), torch.tensor([0.3, 0.3, 0.4]).double()


@pytest.mark.parametrize(
    ("estimator", "double", "half"),
    [
        ("k1", math.log(2), -math.log(2)),
        ("k2", math.log(2) ** 2 / 2, math.log(2) ** 2 / 2),
        ("k3", math.log(2) - 0.5, 1 - math.log(2)),
    ],
)
def test_kl_by_hand(estimator: str, double: float, half: float) -> None:
    reference = torch.tensor([-1.0, -1.0, -1.0])
    policy = reference + torch.tensor([math.log(2), -math.log(2), 0.0])
    torch.testing.assert_close(kl_estimate(policy, reference, estimator), torch.tensor([double, half, 0.0]))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator: str) -> None:
    estimate = (POLICY * kl_estimate(POLICY.log(), REFERENCE.log(), estimator)).sum()
    torch.testing.assert_close(estimate, (POLICY * (POLICY / REFERENCE).log()).sum())


def test_k3_is_never_negative() -> None:
    difference = torch.linspace(-3, 3, 101)
    assert (kl_estimate(difference, torch.zeros(101), "k3") >= 0).all()


def mean_gradient(estimator: str) -> torch.Tensor:
    """Return the mean gradient of the estimate as a loss, by the logits, over the policy's own tokens."""
    logits = POLICY.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    (POLICY * kl_estimate(logprobs, REFERENCE.log(), estimator)).sum().backward()
    return logits.grad


def exact_gradient(direction: str) -> torch.Tensor:
    logits = POLICY.log().requires_grad_()
    policy = logits.softmax(0)
    if direction == "reverse":
        (policy * (policy / REFERENCE).log()).sum().backward()
    else:
        (REFERENCE * (REFERENCE / policy).log()).sum().backward()
    return logits.grad


def test_k2_as_a_loss_has_the_gradient_of_the_kl() -> None:
    torch.testing.assert_close(mean_gradient("k2"), exact_gradient("reverse"))


def test_k3_as_a_loss_has_the_gradient_of_the_reverse_kl() -> None:
    torch.testing.assert_close(mean_gradient("k3"), exact_gradient("forward"))


def test_k1_as_a_loss_has_no_gradient_on_average() -> None:
    torch.testing.assert_close(mean_gradient("k1"), torch.zeros(3).double())


def test_k1_in_the_reward_has_the_gradient_of_the_kl() -> None:
    logits = POLICY.log().requires_grad_()
    penalty = kl_estimate(POLICY.log(), REFERENCE.log(), "k1")
    (POLICY * penalty * logits.log_softmax(0)).sum().backward()
    torch.testing.assert_close(logits.grad, exact_gradient("reverse"))

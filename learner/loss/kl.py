"""Estimates of a KL divergence from the log-probabilities of sampled tokens: pure torch on flat [T] arrays."""

from __future__ import annotations

from typing import Literal

import torch

MAX_LOG_RATIO = 20.0
"""Differences beyond it are counted as it in metrics: a probability ratio of 5e8, whose square float32 still holds."""


def kl_estimate(
    logprobs: torch.Tensor, other_logprobs: torch.Tensor, estimator: Literal["k1", "k2", "k3"]
) -> torch.Tensor:
    """Estimate of KL(p || other) per token, f32 [T], of tokens drawn from p, with d = log p - log other.

    k1 = d: right on average, may be negative.  k2 = d^2 / 2: biased, small error where p and other are near.
    k3 = exp(-d) - 1 + d: right on average and never negative.
    Source: http://joschu.net/blog/kl-approx.html; k3 in GRPO, arXiv:2402.03300, eq. 4.

    As a loss another thing counts: the mean gradient over tokens drawn from p. That of k2, d times the gradient of
    log p, is the gradient of KL(p || other). That of k3 is the gradient of KL(other || p), equal to it to first
    order. That of k1 is 0, whatever d is: it adds noise and pulls nowhere. See arXiv:2506.09477 and
    arXiv:2512.21852.
    """
    difference = logprobs - other_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return torch.expm1(-difference) + difference

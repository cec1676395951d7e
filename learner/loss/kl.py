"""Estimates of a KL divergence from the log-probs of sampled tokens, on flat [T] tensors."""

from __future__ import annotations

from typing import Literal

import torch

MAX_LOG_RATIO = 20.0
"""Bound on log-prob differences in metrics: a probability ratio of 5e8, whose square fits float32."""


def kl_estimate(
    logprobs: torch.Tensor, other_logprobs: torch.Tensor, estimator: Literal["k1", "k2", "k3"]
) -> torch.Tensor:
    """Return an estimate of KL(p || other) for each token sampled from p, f32 [T], with d = log p - log other.

    k1 = d: unbiased, may be negative.  k2 = d^2 / 2: biased, with a small error if p and other are close.
    k3 = exp(-d) - 1 + d: unbiased and never negative.
    Source: http://joschu.net/blog/kl-approx.html; k3 in GRPO, arXiv:2402.03300, eq. 4.

    In a loss the expected gradient over tokens sampled from p matters. That of k2, d times the gradient of log p, is
    the gradient of KL(p || other). That of k3 is the gradient of KL(other || p), which equals it to first order. That
    of k1 is 0 for any d, so k1 only adds noise. See arXiv:2506.09477 and arXiv:2512.21852.
    """
    difference = logprobs - other_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    return torch.expm1(-difference) + difference

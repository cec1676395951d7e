"""Corrections and metrics of the mismatch between the sampler's and the learner's probabilities of the same tokens.

The sampling engine computes the same weights with other kernels, or has older weights, so its tokens come from another
policy than the learner's. A correction multiplies a token's policy loss by a constant, or masks it; masked tokens stay
in the loss's denominator, so that no other token gains weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from learner.loss.grpo import mean_by_response
from learner.loss.kl import MAX_LOG_RATIO, kl_estimate


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """The factor of each token's policy loss, [T], and whether it was truncated or masked."""

    factor: torch.Tensor
    is_capped: torch.Tensor
    is_masked: torch.Tensor


def truncated(log_ratio: torch.Tensor, *, high: float) -> Correction:
    """Return min(r, high) with r = exp(log_ratio), the learner's probability over the sampler's.

    Source: truncated importance sampling (Ionides 2008), applied to rollouts in "Your efficient RL framework
    secretly brings you off-policy RL training" (Yao et al. 2025).
    """
    ratio = torch.exp(log_ratio)
    is_capped = ratio > high
    return Correction(factor=ratio.clamp(max=high), is_capped=is_capped, is_masked=torch.zeros_like(is_capped))


def masked(log_ratio: torch.Tensor, *, low: float, high: float) -> Correction:
    """Return r where it is within [low, high], else 0. Source: IcePop, arXiv:2510.18855, with bounds 0.5 and 5."""
    ratio = torch.exp(log_ratio)
    is_masked = (ratio < low) | (ratio > high)
    return Correction(
        factor=ratio.masked_fill(is_masked, 0.0), is_capped=torch.zeros_like(is_masked), is_masked=is_masked
    )


def sequence_masked(
    log_ratio: torch.Tensor, response_index: torch.Tensor, num_responses: int, *, low: float, high: float
) -> Correction:
    """Return 0 for all tokens of a response whose geometric mean of r is outside [low, high], else 1.

    The mean over many tokens is much closer to 1 than a token's own ratio, so it needs bounds such as 0.99 and 1.01.
    Source: masking of sequences in "When speed kills stability: demystifying RL collapse from the
    training-inference mismatch" (Liu et al. 2025), with the mean over the response instead of the product.
    """
    mean = torch.exp(mean_by_response(log_ratio, response_index, num_responses))
    is_masked = (mean < low) | (mean > high)
    return Correction(factor=(~is_masked).float(), is_capped=torch.zeros_like(is_masked), is_masked=is_masked)


def corrected(
    method: Literal["tis", "icepop", "sequence_mask"],
    log_ratio: torch.Tensor,
    response_index: torch.Tensor,
    num_responses: int,
    *,
    low: float,
    high: float,
) -> Correction:
    """Return the correction that `method` names. log_ratio: learner's minus sampler's log-probs, f32 [T]."""
    log_ratio = log_ratio.detach()
    if method == "tis":
        return truncated(log_ratio, high=high)
    if method == "icepop":
        return masked(log_ratio, low=low, high=high)
    return sequence_masked(log_ratio, response_index, num_responses, low=low, high=high)


def mismatch(logprobs: torch.Tensor, sampler_logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return metrics of the distance between the current policy and the sampler, by name, f32 [T] without graph.

    policy/sampler_kl estimates KL(sampler || learner) with k3. The effective sample size is computed from
    policy/sampler_ratio and its square, see `learner.loss.metrics`.
    """
    log_ratio = logprobs.detach() - sampler_logprobs
    difference = log_ratio.abs()
    bounded = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = torch.exp(bounded)
    return {
        "policy/sampler_logprob_diff/mean": difference,
        "policy/sampler_logprob_diff/max": difference,
        "policy/sampler_kl": kl_estimate(torch.zeros_like(bounded), bounded, "k3"),
        "policy/sampler_ratio/mean": ratio,
        "policy/sampler_ratio_squared/mean": ratio.square(),
    }

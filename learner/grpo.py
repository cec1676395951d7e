"""The losses, token by token: pure torch on flat [T] arrays of response tokens.

Which log-probabilities are "old"? Those that the sampler reported. The ratio is then taken to the
policy that really drew the tokens, so one formula serves fresh rollouts (ratio 1 up to rounding),
rollouts that are a few updates old, and an engine whose arithmetic differs from the learner's
(bfloat16); and no second forward pass is needed. The price is that rounding in the sampler enters
the gradient as a factor exp(difference), about 1e-6 in float32 and 1e-2 in bfloat16; the
difference is reported with every update as policy/sampler_logprob_diff.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Surrogate:
    """Per token, [T]: the loss (to be summed and minimised), the ratio, and where which clip took its gradient."""

    loss: torch.Tensor
    ratio: torch.Tensor
    is_clipped_low: torch.Tensor
    is_clipped_high: torch.Tensor


def clipped_surrogate(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, *, clip_low: float, clip_high: float
) -> Surrogate:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(logprobs - old_logprobs), all f32 [T].

    Source: PPO, arXiv:1707.06347, eq. 7; per token with group advantages in GRPO, arXiv:2402.03300,
    eq. 3 (VideoChat-R1 eq. 2); separate bounds in DAPO, arXiv:2503.14476, eq. 10.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return Surrogate(
        loss=-torch.minimum(ratio * advantages, clipped * advantages),
        ratio=ratio.detach(),
        is_clipped_low=(ratio < 1.0 - clip_low) & (advantages < 0),
        is_clipped_high=(ratio > 1.0 + clip_high) & (advantages > 0),
    )


def kl_to_reference(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Estimate of KL(policy || reference) per token, f32 [T]: exp(d) - d - 1 with d = ref - policy; never negative.

    Source: the k3 estimator, http://joschu.net/blog/kl-approx.html; GRPO, arXiv:2402.03300, eq. 4.
    """
    difference = ref_logprobs - logprobs
    return torch.expm1(difference) - difference


def nll(logprobs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Supervised loss per token, f32 [T]: the negative log-probability, weighted (1 = an ordinary sample)."""
    return -logprobs * weights

"""The policy losses of each token, on flat [T] tensors of response tokens.

By default the "old" log-probs are those that the sampler reported, so the ratio is relative to the policy that sampled
the tokens. One formula then serves fresh rollouts (ratio 1 up to rounding), rollouts that are a few updates old, and an
engine whose arithmetic differs from the learner's (bfloat16), and no second forward pass is needed. In return, rounding
in the sampler enters the gradient as a factor exp(difference), off by about 1e-6 in float32 and 1e-2 in bfloat16; the
difference is reported with every update as policy/sampler_logprob_diff. With `algorithm.old_policy=learner`,
`learner.loss.correction` treats that factor instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Surrogate:
    """The surrogate loss of each token, [T], to be summed and minimised, with the ratio and the clipped tokens."""

    loss: torch.Tensor
    ratio: torch.Tensor
    is_clipped_low: torch.Tensor
    is_clipped_high: torch.Tensor
    is_dual_clipped: torch.Tensor


def token_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """Return exp(logprobs - old_logprobs), f32 [T]. Source: PPO, arXiv:1707.06347; GRPO, arXiv:2402.03300."""
    return torch.exp(logprobs - old_logprobs)


def sequence_ratio(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, response_index: torch.Tensor, num_responses: int
) -> torch.Tensor:
    """Return for each token its response's probability ratio to the power of 1 / its length, f32 [T].

    That is exp(mean of logprobs - old_logprobs over the response); its gradient reaches all tokens of the
    response. Source: GSPO, arXiv:2507.18071.
    """
    return torch.exp(mean_by_response(logprobs - old_logprobs, response_index, num_responses))


def mean_by_response(values: torch.Tensor, response_index: torch.Tensor, num_responses: int) -> torch.Tensor:
    """Return for each token the mean of `values` over its response, f32 [T]. response_index: i64 [T]."""
    sums = values.new_zeros(num_responses).index_add(0, response_index, values)
    lengths = torch.bincount(response_index, minlength=num_responses)
    # a response without tokens has no mean, and no token needs it
    return (sums / lengths.clamp(min=1))[response_index]


def clipped_surrogate(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Surrogate:
    """Return the clipped surrogate -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), all f32 [T].

    dual_clip: for A < 0 the loss is at most -dual_clip A, because otherwise a token that has become likely could
    outweigh the rest.
    Source: PPO, arXiv:1707.06347, eq. 7; per token with group advantages in GRPO, arXiv:2402.03300,
    eq. 3 (VideoChat-R1 eq. 2); separate bounds in DAPO, arXiv:2503.14476, eq. 10; dual clip:
    arXiv:1912.09729.
    """
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    is_dual_clipped = torch.zeros_like(ratio, dtype=torch.bool)
    if dual_clip is not None:
        is_dual_clipped = (advantages < 0) & (ratio > dual_clip)
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    return Surrogate(
        loss=-gain,
        ratio=ratio.detach(),
        is_clipped_low=(ratio < 1.0 - clip_low) & (advantages < 0),
        is_clipped_high=(ratio > 1.0 + clip_high) & (advantages > 0),
        is_dual_clipped=is_dual_clipped,
    )


def cispo(
    logprobs: torch.Tensor, ratio: torch.Tensor, advantages: torch.Tensor, *, clip_low: float, clip_high: float
) -> Surrogate:
    """Return the CISPO loss -sg(clip(r, 1 - clip_low, 1 + clip_high)) A logprobs, all f32 [T]; sg stops the gradient.

    The ratio is only a weight: a bound caps it but, unlike PPO's, removes no token from the gradient.
    Source: CISPO, MiniMax-M1, arXiv:2506.13585, eq. 4 and 5, without a lower bound (clip_low >= 1).
    """
    weights = ratio.detach()
    return Surrogate(
        loss=-weights.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages * logprobs,
        ratio=weights,
        is_clipped_low=weights < 1.0 - clip_low,
        is_clipped_high=weights > 1.0 + clip_high,
        is_dual_clipped=torch.zeros_like(weights, dtype=torch.bool),
    )


def nll(logprobs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the supervised loss of each token, f32 [T]: its weighted negative log-prob (1 = an ordinary sample)."""
    return -logprobs * weights

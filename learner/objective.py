"""A packed batch's log-probabilities to the loss that is minimised and the metrics that explain it."""

from __future__ import annotations

from typing import Literal

import torch

from learner.grpo import clipped_surrogate, kl_to_reference, nll
from learner.packing import PackedBatch
from rlsys.algorithm_config import AlgorithmConfig


def total_loss(
    objective: Literal["grpo", "nll"],
    batch: PackedBatch,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor | None,
    algorithm: AlgorithmConfig,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, a scalar, and its parts per token by metric name, f32 [T] without graph.

    The loss is the sum over tokens, each times its weight: losses of all passes and ranks of an update add up.
    ref_logprobs: f32 [T] of the reference policy, None without a KL penalty.
    """
    if objective == "nll":
        loss = nll(logprobs, batch.advantages)
        return (loss * batch.weights).sum(), {"loss/nll": loss.detach()}
    surrogate = clipped_surrogate(
        logprobs, batch.sampler_logprobs, batch.advantages, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high
    )
    difference = (logprobs.detach() - batch.sampler_logprobs).abs()
    is_low, is_high = surrogate.is_clipped_low.float(), surrogate.is_clipped_high.float()
    parts = {
        "loss/policy": surrogate.loss.detach(),
        "policy/ratio/mean": surrogate.ratio,
        "policy/ratio/max": surrogate.ratio,
        "policy/clip_frac": is_low + is_high,
        "policy/clip_low_frac": is_low,
        "policy/clip_high_frac": is_high,
        "policy/sampler_logprob_diff/mean": difference,
        "policy/sampler_logprob_diff/max": difference,
    }
    loss = surrogate.loss
    if ref_logprobs is not None:
        divergence = kl_to_reference(logprobs, ref_logprobs)
        parts["policy/kl_to_ref"] = divergence.detach()
        parts["loss/kl"] = algorithm.kl_coef * divergence.detach()
        loss = loss + algorithm.kl_coef * divergence
    return (loss * batch.weights).sum(), parts

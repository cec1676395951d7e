"""The loss of a packed batch from its log-probs, and the metrics that explain it."""

from __future__ import annotations

from typing import Literal

import torch

from learner.loss.correction import corrected, mismatch
from learner.loss.grpo import Surrogate, cispo, clipped_surrogate, nll, sequence_ratio, token_ratio
from learner.loss.kl import kl_estimate
from learner.packing.packing import PackedBatch
from rlsys.config.algorithm import AlgorithmConfig


def total_loss(
    objective: Literal["grpo", "nll"],
    batch: PackedBatch,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor | None,
    algorithm: AlgorithmConfig,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the scalar loss, and its parts per token by metric name, f32 [T] without graph.

    The loss is the weighted sum over tokens, so the losses of all passes and ranks of an update add up. The parts
    named loss/... are weighted too, so that their sums are the loss.
    ref_logprobs: f32 [T] of the reference policy, None without a KL penalty in the loss.
    """
    if objective == "nll":
        loss = nll(logprobs, batch.advantages) * batch.weights
        return loss.sum(), {"loss/nll": loss.detach()}
    old_logprobs = _old_logprobs(batch, logprobs, algorithm)
    surrogate = _surrogate(batch, logprobs, old_logprobs, algorithm)
    parts = {**_ratio_parts(surrogate), **mismatch(logprobs, batch.sampler_logprobs)}
    loss = surrogate.loss
    if algorithm.sampler_correction != "none":
        correction = corrected(
            algorithm.sampler_correction,
            old_logprobs - batch.sampler_logprobs,
            batch.response_index,
            batch.num_responses,
            low=algorithm.correction_low,
            high=algorithm.correction_high,
        )
        loss = loss * correction.factor
        parts["policy/correction_factor/mean"] = correction.factor
        parts["policy/correction_capped_frac"] = correction.is_capped.float()
        parts["policy/correction_masked_frac"] = correction.is_masked.float()
    loss = loss * batch.weights
    parts["loss/policy"] = loss.detach()
    if ref_logprobs is not None:
        penalty = algorithm.kl_coef * kl_estimate(logprobs, ref_logprobs, algorithm.kl_estimator) * batch.weights
        parts["policy/kl_to_ref"] = kl_estimate(logprobs.detach(), ref_logprobs, "k3")
        parts["loss/kl"] = penalty.detach()
        loss = loss + penalty
    parts["loss/total"] = loss.detach()
    return loss.sum(), parts


def _old_logprobs(batch: PackedBatch, logprobs: torch.Tensor, algorithm: AlgorithmConfig) -> torch.Tensor:
    """Return the log-probs in the ratio's denominator, without graph.

    Before the first update the learner's old policy is its current one.
    """
    if algorithm.old_policy == "sampler":
        return batch.sampler_logprobs
    return logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs


def _surrogate(
    batch: PackedBatch, logprobs: torch.Tensor, old_logprobs: torch.Tensor, algorithm: AlgorithmConfig
) -> Surrogate:
    bounds = {"clip_low": algorithm.clip_low, "clip_high": algorithm.clip_high}
    if algorithm.policy_loss == "cispo":
        return cispo(logprobs, token_ratio(logprobs, old_logprobs), batch.advantages, **bounds)
    if algorithm.ratio == "sequence":
        ratio = sequence_ratio(logprobs, old_logprobs, batch.response_index, batch.num_responses)
    else:
        ratio = token_ratio(logprobs, old_logprobs)
    return clipped_surrogate(ratio, batch.advantages, dual_clip=algorithm.dual_clip, **bounds)


def _ratio_parts(surrogate: Surrogate) -> dict[str, torch.Tensor]:
    is_low, is_high = surrogate.is_clipped_low.float(), surrogate.is_clipped_high.float()
    is_dual = surrogate.is_dual_clipped.float()
    return {
        "policy/ratio/mean": surrogate.ratio,
        "policy/ratio/max": surrogate.ratio,
        "policy/clip_frac": is_low + is_high + is_dual,
        "policy/clip_low_frac": is_low,
        "policy/clip_high_frac": is_high,
        "policy/dual_clip_frac": is_dual,
    }

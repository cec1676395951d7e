"""How rewards become a gradient: every variant with its paper. Formulas: `docs/algorithms.md`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlsys.config_part import Part


class AlgorithmConfig(Part):
    """The defaults are GRPO as in VideoChat-R1 (eq. 1 and 2), with DAPO's mean over tokens."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "gdpo"] = "grpo"
    """Minus the group's mean, over its deviation (grpo, arXiv:2402.03300); mean only (dr_grpo, 2503.20783); minus the
    others' mean (rloo, 2402.14740); each score normalised by itself before the weighted sum (gdpo, 2601.05242)."""
    loss_mean: Literal["token", "sequence", "constant"] = "token"
    """Each token weighs the same (token, DAPO), each response (sequence, GRPO), or tokens are divided by responses x
    rollout.max_tokens, so that length has no part in it (constant, Dr. GRPO)."""
    policy_loss: Literal["clip", "cispo"] = "clip"
    """PPO's clipped surrogate, or the clipped ratio as a constant weight of log-probs (cispo, arXiv:2506.13585)."""
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratio of each token, or of the whole response per token (sequence, GSPO, arXiv:2507.18071)."""
    clip_low: float = Field(default=0.2, gt=0)
    """The probability ratio is clipped below 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0)
    """The probability ratio is clipped above 1 + clip_high."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Most that a negative advantage is multiplied with, however large the ratio (arXiv:1912.09729); null: no bound."""
    old_policy: Literal["sampler", "learner"] = "sampler"
    """Whose log-probs the ratio is taken to: the sampler's as reported, or the learner's own before the first update
    on the batch. With "learner", `sampler_correction` accounts for what lies between the two."""
    sampler_correction: Literal["none", "tis", "icepop", "sequence_mask"] = "none"
    """Learner's over sampler's probability as a factor of the loss: cut off above (tis), tokens outside the bounds left
    out (icepop, arXiv:2510.18855), or whole responses whose mean ratio is outside (sequence_mask)."""
    correction_low: float = Field(default=0.5, ge=0)
    """Least ratio that icepop and sequence_mask let pass."""
    correction_high: float = Field(default=2.0, gt=1)
    """Greatest ratio that icepop and sequence_mask let pass, and where tis cuts off."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty to the starting policy; 0 loads no reference model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """d, d^2 / 2 or exp(-d) - 1 + d of d = log-prob minus the reference's (http://joschu.net/blog/kl-approx.html)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Penalty beside the policy loss, or taken off each response's reward before advantages."""
    mini_batches: int = Field(default=1, ge=1)
    """Parts of a batch, each with an optimiser update of its own."""
    epochs_per_batch: int = Field(default=1, ge=1)
    """Times that a batch is gone through."""
    max_extra_groups: int = Field(default=0, ge=0)
    """Groups drawn in place of those without spread, at most, in one step (dynamic sampling, DAPO); 0 draws none."""
    overlong_buffer_tokens: int = Field(default=0, ge=0)
    """Last tokens before rollout.max_tokens over which the reward falls by overlong_penalty (DAPO eq. 13); 0: none."""
    overlong_penalty: float = Field(default=1.0, gt=0)
    """What a response that fills rollout.max_tokens loses of its reward."""

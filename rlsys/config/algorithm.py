"""Section `algorithm`: how rewards become a gradient. `docs/algorithms.md` has the formulas and when to use which."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlsys.config.part import Part


class AlgorithmConfig(Part):
    """The settings of the algorithm; by default GRPO as in VideoChat-R1 (eq. 1 and 2) with DAPO's mean over tokens."""

    advantage: Literal["grpo", "dr_grpo", "rloo", "gdpo"] = "grpo"
    """Advantage of a response: reward minus the group's mean, over its standard deviation (grpo, arXiv:2402.03300);
    minus the mean only (dr_grpo, 2503.20783); minus the mean of the others (rloo, 2402.14740); each score normalised
    separately before the weighted sum (gdpo, 2601.05242)."""
    loss_mean: Literal["token", "sequence", "constant"] = "token"
    """How token losses are averaged: equally over tokens (token, DAPO), equally over responses (sequence, GRPO), or
    divided by responses x rollout.max_tokens, independent of response lengths (constant, Dr. GRPO)."""
    policy_loss: Literal["clip", "cispo"] = "clip"
    """PPO's clipped surrogate (clip), or the clipped ratio as a constant weight of log-probs (cispo,
    arXiv:2506.13585)."""
    ratio: Literal["token", "sequence"] = "token"
    """Probability ratio of each token, or of the whole response per token (sequence, GSPO, arXiv:2507.18071)."""
    clip_low: float = Field(default=0.2, gt=0)
    """The probability ratio is clipped below 1 - clip_low; 1 or more leaves it unclipped below."""
    clip_high: float = Field(default=0.2, gt=0)
    """The probability ratio is clipped above 1 + clip_high."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Upper bound on the factor of a negative advantage, however large the ratio (arXiv:1912.09729); null: none."""
    old_policy: Literal["sampler", "learner"] = "sampler"
    """Denominator of the probability ratio: the log-probs that the sampler reported, or the learner's own before its
    first update on the batch. With "learner", `sampler_correction` accounts for the difference between the two."""
    sampler_correction: Literal["none", "tis", "icepop", "sequence_mask"] = "none"
    """Weight of a token's loss by the ratio of learner's to sampler's probability: truncated above (tis), or 0 outside
    the bounds (icepop, arXiv:2510.18855). sequence_mask drops responses whose geometric mean ratio is out of bounds."""
    correction_low: float = Field(default=0.5, ge=0, lt=1)
    """Lower bound on the ratio for icepop and sequence_mask."""
    correction_high: float = Field(default=2.0, gt=1)
    """Upper bound on the ratio for icepop and sequence_mask, and the value at which tis truncates."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty to the starting policy; 0 loads no reference model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """d, d^2 / 2 or exp(-d) - 1 + d of d = log-prob minus the reference's (http://joschu.net/blog/kl-approx.html).
    In the loss k2 has the KL's own gradient, k3 nearly, and k1 none but noise; in the reward k1 is the exact choice."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL penalty goes: added to the policy loss, or, summed over the response, subtracted from its reward."""
    mini_batches: int = Field(default=1, ge=1)
    """Number of mini-batches per batch, each with its own optimiser update."""
    epochs_per_batch: int = Field(default=1, ge=1)
    """Number of passes over each batch."""
    max_extra_groups: int = Field(default=0, ge=0)
    """Largest number of groups without reward spread that a step replaces by further ones (dynamic sampling, DAPO);
    0 replaces none."""
    overlong_buffer_tokens: int = Field(default=0, ge=0)
    """Number of tokens before rollout.max_tokens over which the reward falls linearly by overlong_penalty (DAPO,
    eq. 13); 0 penalises no length."""
    overlong_penalty: float = Field(default=1.0, gt=0)
    """Penalty subtracted from the reward of a response that fills rollout.max_tokens."""

    @model_validator(mode="after")
    def _variants_agree(self) -> AlgorithmConfig:
        if self.sampler_correction != "none" and self.old_policy == "sampler":
            raise ValueError(
                f"algorithm.sampler_correction={self.sampler_correction} with algorithm.old_policy=sampler: the ratio "
                "to the sampler already contains the correction; set old_policy=learner, or sampler_correction=none."
            )
        if self.policy_loss == "cispo" and self.dual_clip is not None:
            raise ValueError(
                f"algorithm.dual_clip={self.dual_clip} with algorithm.policy_loss=cispo: its weights are bounded by "
                "clip_high already; set dual_clip=null."
            )
        if self.policy_loss == "cispo" and self.ratio == "sequence":
            raise ValueError(
                "algorithm.ratio=sequence with algorithm.policy_loss=cispo: CISPO weighs each token by its own ratio; "
                "set ratio=token, or policy_loss=clip for GSPO."
            )
        if self.advantage == "gdpo":
            self._gdpo_sees_every_reward()
        return self

    def _gdpo_sees_every_reward(self) -> None:
        """Raise ValueError for penalties on the sum of the scores, because GDPO never forms that sum."""
        reason = "GDPO normalises each score separately and never forms their sum"
        if self.overlong_buffer_tokens:
            raise ValueError(
                f"algorithm.overlong_buffer_tokens={self.overlong_buffer_tokens} with algorithm.advantage=gdpo: "
                f"{reason}; set it to 0 and give length a score of its own in reward.weights, or choose another "
                "advantage."
            )
        if self.kl_coef and self.kl_in == "reward":
            raise ValueError(
                f"algorithm.kl_in=reward (kl_coef={self.kl_coef}) with algorithm.advantage=gdpo: {reason}; "
                "set kl_in=loss, or choose another advantage."
            )


def check_against_run(algorithm: AlgorithmConfig, *, prompts_per_step: int, max_tokens: int) -> None:
    """Raise ValueError if the section contradicts `train.prompts_per_step` or `rollout.max_tokens`."""
    if prompts_per_step % algorithm.mini_batches:
        raise ValueError(
            f"train.prompts_per_step={prompts_per_step} is not a multiple of "
            f"algorithm.mini_batches={algorithm.mini_batches}, but all mini-batches must have the same number of "
            "groups; change one of the two."
        )
    if algorithm.overlong_buffer_tokens > max_tokens:
        raise ValueError(
            f"algorithm.overlong_buffer_tokens={algorithm.overlong_buffer_tokens} is above "
            f"rollout.max_tokens={max_tokens}: even an empty response would be penalised; lower the first."
        )

"""Corrections for the sampler's log-probs, and metrics of the mismatch, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from learner.loss.correction import corrected, masked, mismatch, sequence_masked, truncated

LOG_RATIO = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0]).log()


def test_truncated_importance_sampling_cuts_off_above() -> None:
    found = truncated(LOG_RATIO, high=2.0)
    torch.testing.assert_close(found.factor, torch.tensor([0.25, 0.5, 1.0, 2.0, 2.0]))
    assert found.is_capped.tolist() == [False, False, False, False, True]
    assert not found.is_masked.any()


def test_icepop_masks_tokens_outside_the_bounds() -> None:
    found = masked(LOG_RATIO, low=0.4, high=2.5)
    torch.testing.assert_close(found.factor, torch.tensor([0.0, 0.5, 1.0, 2.0, 0.0]))
    assert found.is_masked.tolist() == [True, False, False, False, True]


def test_sequence_mask_drops_responses_by_their_geometric_mean() -> None:
    # geometric means: sqrt(0.25 x 0.5), and cbrt(1 x 2 x 4) = 2
    index = torch.tensor([0, 0, 1, 1, 1])
    found = sequence_masked(LOG_RATIO, index, 2, low=0.3, high=1.9)
    assert found.factor.tolist() == [1, 1, 0, 0, 0]
    assert found.is_masked.tolist() == [False, False, True, True, True]
    assert sequence_masked(LOG_RATIO, index, 2, low=0.4, high=2.1).factor.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("method", ["tis", "icepop", "sequence_mask"])
def test_without_mismatch_nothing_is_corrected(method: str) -> None:
    found = corrected(method, torch.zeros(3), torch.tensor([0, 1, 1]), 2, low=0.5, high=2.0)
    assert found.factor.tolist() == [1, 1, 1]
    assert not found.is_capped.any() and not found.is_masked.any()


@pytest.mark.parametrize("method", ["tis", "icepop", "sequence_mask"])
def test_an_impossible_ratio_leaves_the_factor_finite_and_without_gradient(method: str) -> None:
    log_ratio = torch.tensor([1000.0, -1000.0], requires_grad=True)
    found = corrected(method, log_ratio, torch.tensor([0, 1]), 2, low=0.5, high=2.0)
    assert torch.isfinite(found.factor).all()
    assert not found.factor.requires_grad


def test_mismatch_by_hand() -> None:
    found = mismatch(torch.tensor([-1.0, -1.0], requires_grad=True), torch.tensor([-1.0 - math.log(2), -1.0]))
    assert found["policy/sampler_logprob_diff/max"].tolist() == pytest.approx([math.log(2), 0])
    # KL(sampler || learner) of a token drawn by the sampler, learner twice as likely: 2 - 1 - ln 2
    assert found["policy/sampler_kl"].tolist() == pytest.approx([1 - math.log(2), 0])
    assert found["policy/sampler_ratio/mean"].tolist() == pytest.approx([2, 1])
    assert found["policy/sampler_ratio_squared/mean"].tolist() == pytest.approx([4, 1])
    assert not any(values.requires_grad for values in found.values())


def test_the_estimate_of_the_kl_is_unbiased_over_the_samplers_tokens() -> None:
    sampler, learner = torch.tensor([0.1, 0.2, 0.7]), torch.tensor([0.3, 0.3, 0.4])
    estimate = (sampler * mismatch(learner.log(), sampler.log())["policy/sampler_kl"]).sum()
    torch.testing.assert_close(estimate, (sampler * (sampler / learner).log()).sum())


def test_measures_of_an_impossible_token_are_finite() -> None:
    found = mismatch(torch.tensor([-0.1, -500.0]), torch.tensor([-500.0, -0.1]))
    assert all(torch.isfinite(values).all() for values in found.values())

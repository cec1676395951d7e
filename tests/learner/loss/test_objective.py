"""Every variant's loss and gradient against the formulas written out as loops over responses and tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch

from learner.loss.metrics import REDUCTIONS, RankStats, combine
from learner.loss.objective import total_loss
from learner.packing.packing import PackedBatch
from learner.packing.rows import Response, Row
from learner.packing.shards import weighted
from rlsys.config.algorithm import AlgorithmConfig
from rlsys.types import Prompt
from tests.support.rounding import FLOAT64

VOCABULARY, MAX_TOKENS = 5, 8
LOSS_INPUTS = {
    "response_index",
    "num_responses",
    "sampler_logprobs",
    "old_logprobs",
    "advantages",
    "weights",
    "is_dummy",
}
MODEL_INPUTS = {field.name for field in fields(PackedBatch)} - LOSS_INPUTS
PROMPT = Prompt(
    engine_ids=np.zeros(1, np.int32),
    prompt_ids=np.zeros(1, np.int32),
    position_ids=np.zeros((3, 1), np.int32),
    next_position=1,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Toy:
    """Responses to one prompt under a softmax policy with separate logits for every token, all f64."""

    responses: tuple[Response, ...]
    logits: tuple[torch.Tensor, ...]
    reference: tuple[torch.Tensor, ...]

    def logprobs(self, index: int) -> torch.Tensor:
        ids = torch.from_numpy(self.responses[index].ids).long()
        return self.logits[index].log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def make_toy(lengths: Sequence[int] = (3, 1, 5, 2), seed: int = 0, spread: float = 0.3, old: bool = False) -> Toy:
    """Return a random case. spread: distance of sampler, old policy and reference from the policy, in nats."""
    rng = np.random.default_rng(seed)
    logits = tuple(torch.from_numpy(rng.normal(size=(n, VOCABULARY))).requires_grad_() for n in lengths)
    ids = [rng.integers(0, VOCABULARY, n).astype(np.int32) for n in lengths]
    now = [
        torch.log_softmax(one.detach(), -1).gather(-1, torch.from_numpy(tokens).long()[:, None])[:, 0].numpy()
        for one, tokens in zip(logits, ids, strict=True)
    ]
    responses = tuple(
        Response(
            ids=tokens,
            sampler_logprobs=logprobs + spread * rng.normal(size=len(tokens)),
            advantage=float(rng.normal()),
            old_logprobs=logprobs + spread * rng.normal(size=len(tokens)) if old else None,
        )
        for tokens, logprobs in zip(ids, now, strict=True)
    )
    reference = tuple(torch.from_numpy(one + spread * rng.normal(size=len(one))) for one in now)
    return Toy(responses=responses, logits=logits, reference=reference)


def pack_toy(toy: Toy, algorithm: AlgorithmConfig, order: Sequence[int] | None = None) -> list[PackedBatch]:
    """Return one pass with all responses, or with `order` one pass for each."""
    row = Row(prompt_id="toy", prompt=PROMPT, clips=(), responses=toy.responses)
    responses = weighted([row], algorithm.loss_mean, MAX_TOKENS)[0].responses
    passes = [responses] if order is None else [(responses[index],) for index in order]
    return [flat_batch(part) for part in passes]


def flat_batch(responses: Sequence[Response]) -> PackedBatch:
    def flat(values: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(values))

    has_old = responses[0].old_logprobs is not None
    return PackedBatch(
        **dict.fromkeys(MODEL_INPUTS),
        response_index=flat([np.full(len(r.ids), index) for index, r in enumerate(responses)]),
        num_responses=len(responses),
        sampler_logprobs=flat([r.sampler_logprobs for r in responses]),
        old_logprobs=flat([r.old_logprobs for r in responses]) if has_old else None,
        advantages=flat([np.full(len(r.ids), r.advantage) for r in responses]),
        weights=flat([np.full(len(r.ids), r.weight) for r in responses]),
        is_dummy=False,
    )


def total(toy: Toy, algorithm: AlgorithmConfig) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    (batch,) = pack_toy(toy, algorithm)
    logprobs = torch.cat([toy.logprobs(index) for index in range(len(toy.responses))])
    reference = torch.cat(toy.reference) if algorithm.kl_coef else None
    return total_loss("grpo", batch, logprobs, reference, algorithm)


def gradient(toy: Toy, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, toy.logits, materialize_grads=True)])


# --- the formulas again, one token at a time ---


def written_out(toy: Toy, algorithm: AlgorithmConfig) -> torch.Tensor:
    num_responses = len(toy.responses)
    num_tokens = sum(len(response.ids) for response in toy.responses)
    loss = torch.zeros((), dtype=torch.float64)
    for index, response in enumerate(toy.responses):
        logprobs = toy.logprobs(index)
        length = len(response.ids)
        divisor = {
            "token": num_tokens,
            "sequence": num_responses * length,
            "constant": num_responses * MAX_TOKENS,
        }[algorithm.loss_mean]
        old = old_of(response, logprobs, algorithm)
        factors = factors_of(response, old, algorithm)
        for token in range(length):
            if algorithm.ratio == "sequence":
                ratio = torch.exp(sum(logprobs[t] - old[t] for t in range(length)) / length)
            else:
                ratio = torch.exp(logprobs[token] - old[token])
            policy = token_loss(logprobs[token], ratio, response.advantage, algorithm)
            penalty = token_kl(logprobs[token] - toy.reference[index][token], algorithm) if algorithm.kl_coef else 0.0
            loss = loss + (factors[token] * policy + algorithm.kl_coef * penalty) / divisor
    return loss


def old_of(response: Response, logprobs: torch.Tensor, algorithm: AlgorithmConfig) -> list[float]:
    if algorithm.old_policy == "sampler":
        return response.sampler_logprobs.tolist()
    return (logprobs.detach().numpy() if response.old_logprobs is None else response.old_logprobs).tolist()


def factors_of(response: Response, old: Sequence[float], algorithm: AlgorithmConfig) -> list[float]:
    low, high = algorithm.correction_low, algorithm.correction_high
    ratios = [float(np.exp(o - s)) for o, s in zip(old, response.sampler_logprobs, strict=True)]
    if algorithm.sampler_correction == "tis":
        return [min(ratio, high) for ratio in ratios]
    if algorithm.sampler_correction == "icepop":
        return [ratio if low <= ratio <= high else 0.0 for ratio in ratios]
    if algorithm.sampler_correction == "sequence_mask":
        mean = float(np.prod(ratios) ** (1 / len(ratios)))
        return [1.0 if low <= mean <= high else 0.0] * len(ratios)
    return [1.0] * len(ratios)


def token_loss(
    logprob: torch.Tensor, ratio: torch.Tensor, advantage: float, algorithm: AlgorithmConfig
) -> torch.Tensor:
    low, high = 1 - algorithm.clip_low, 1 + algorithm.clip_high
    if algorithm.policy_loss == "cispo":
        return -min(max(ratio.item(), low), high) * advantage * logprob
    if advantage >= 0:
        return -advantage * (ratio if ratio <= high else torch.tensor(high, dtype=torch.float64))
    bounded = ratio if ratio >= low else torch.tensor(low, dtype=torch.float64)
    if algorithm.dual_clip is not None and bounded > algorithm.dual_clip:
        bounded = torch.tensor(algorithm.dual_clip, dtype=torch.float64)
    return -advantage * bounded


def token_kl(difference: torch.Tensor, algorithm: AlgorithmConfig) -> torch.Tensor:
    if algorithm.kl_estimator == "k1":
        return difference
    return difference**2 / 2 if algorithm.kl_estimator == "k2" else torch.exp(-difference) - 1 + difference


SURROGATES = (
    {},
    {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1.4},
    {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.1},
    {"ratio": "sequence", "dual_clip": 1.2},
    {"policy_loss": "cispo", "clip_low": 1.0, "clip_high": 0.3},
)
OLDS = (
    {},
    {"old_policy": "learner"},
    {"old_policy": "learner", "sampler_correction": "tis", "correction_high": 1.2},
    {"old_policy": "learner", "sampler_correction": "icepop", "correction_low": 0.8, "correction_high": 1.2},
    {"old_policy": "learner", "sampler_correction": "sequence_mask", "correction_low": 0.9, "correction_high": 1.1},
)
KLS = ({}, *({"kl_coef": 0.1, "kl_estimator": name} for name in ("k1", "k2", "k3")))
VARIANTS = [
    {**surrogate, **old, "loss_mean": loss_mean, **KLS[number % len(KLS)]}
    for number, (surrogate, old, loss_mean) in enumerate(
        itertools.product(SURROGATES, OLDS, ("token", "sequence", "constant"))
    )
]


@pytest.mark.parametrize("has_old", [False, True], ids=["first update", "later update"])
def test_every_variant_is_its_formula(has_old: bool) -> None:
    for number, variant in enumerate(VARIANTS):
        algorithm, toy = AlgorithmConfig(**variant), make_toy(seed=number, old=has_old)
        loss, expected = total(toy, algorithm)[0], written_out(toy, algorithm)
        torch.testing.assert_close(loss, expected, rtol=FLOAT64, atol=FLOAT64, msg=lambda m, v=variant: f"{v}: {m}")
        torch.testing.assert_close(
            gradient(toy, loss),
            gradient(toy, expected),
            rtol=FLOAT64,
            atol=FLOAT64,
            msg=lambda m, v=variant: f"{v}: {m}",
        )


@pytest.mark.parametrize("loss_mean", ["token", "sequence", "constant"])
def test_for_responses_of_one_token_gspo_is_grpo(loss_mean: str) -> None:
    toy = make_toy(lengths=(1, 1, 1))
    losses = [total(toy, AlgorithmConfig(ratio=ratio, loss_mean=loss_mean))[0] for ratio in ("token", "sequence")]
    torch.testing.assert_close(gradient(toy, losses[0]), gradient(toy, losses[1]), rtol=FLOAT64, atol=FLOAT64)


def test_gspo_with_the_mean_over_sequences_is_the_objective_of_the_paper() -> None:
    toy = make_toy()
    loss, _ = total(toy, AlgorithmConfig(ratio="sequence", loss_mean="sequence", clip_low=0.99, clip_high=99))
    ratios = [
        torch.exp((toy.logprobs(index) - torch.from_numpy(response.sampler_logprobs)).mean())
        for index, response in enumerate(toy.responses)
    ]
    expected = -sum(ratio * r.advantage for ratio, r in zip(ratios, toy.responses, strict=True)) / len(ratios)
    torch.testing.assert_close(gradient(toy, loss), gradient(toy, expected))


@pytest.mark.parametrize("method", ["tis", "icepop", "sequence_mask"])
def test_without_mismatch_a_correction_changes_nothing(method: str) -> None:
    toy = make_toy(spread=0.0)
    plain = total(toy, AlgorithmConfig())[0]
    found, parts = total(toy, AlgorithmConfig(old_policy="learner", sampler_correction=method))
    torch.testing.assert_close(gradient(toy, found), gradient(toy, plain))
    assert not parts["policy/correction_capped_frac"].any() and not parts["policy/correction_masked_frac"].any()


def test_the_ratio_is_one_in_the_first_update_with_the_learners_old_policy() -> None:
    _, parts = total(make_toy(), AlgorithmConfig(old_policy="learner", ratio="token"))
    assert (parts["policy/ratio/max"] == 1).all()
    assert (parts["policy/sampler_ratio/mean"] != 1).all()


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[9], VARIANTS[34], VARIANTS[41], VARIANTS[70]])
def test_passes_add_up_and_the_order_of_responses_does_not_matter(variant: dict[str, object]) -> None:
    algorithm, toy = AlgorithmConfig(**variant), make_toy(seed=3)
    loss, parts = total(toy, algorithm)
    order = [2, 0, 3, 1]
    losses, by_rank = [], []
    for index, batch in zip(order, pack_toy(toy, algorithm, order), strict=True):
        reference = toy.reference[index] if algorithm.kl_coef else None
        one, one_parts = total_loss("grpo", batch, toy.logprobs(index), reference, algorithm)
        losses.append(one)
        by_rank.append(rank_stats(one_parts))
    torch.testing.assert_close(gradient(toy, sum(losses)), gradient(toy, loss))
    assert combine([by_rank]) == pytest.approx(combine([[rank_stats(parts)]]))
    assert combine([by_rank])["loss/total"] == pytest.approx(loss.item())


def rank_stats(parts: dict[str, torch.Tensor]) -> RankStats:
    stats = RankStats(num_tokens=len(next(iter(parts.values()))))
    for name, values in parts.items():
        stats.add(name, float(values.max() if REDUCTIONS[name] == "max" else values.sum()))
    return stats


def test_the_parts_explain_the_loss() -> None:
    algorithm = AlgorithmConfig(
        old_policy="learner", sampler_correction="icepop", correction_low=0.8, correction_high=1.2, kl_coef=0.1
    )
    toy = make_toy()
    _, parts = total(toy, algorithm)
    always = {
        "loss/total",
        "loss/policy",
        "policy/ratio/mean",
        "policy/ratio/max",
        "policy/clip_frac",
        "policy/clip_low_frac",
        "policy/clip_high_frac",
        "policy/dual_clip_frac",
        "policy/sampler_logprob_diff/mean",
        "policy/sampler_logprob_diff/max",
        "policy/sampler_kl",
        "policy/sampler_ratio/mean",
        "policy/sampler_ratio_squared/mean",
    }
    corrections = {f"policy/correction_{name}" for name in ("factor/mean", "capped_frac", "masked_frac")}
    assert set(parts) == always | corrections | {"policy/kl_to_ref", "loss/kl"}
    assert set(total(toy, AlgorithmConfig())[1]) == always
    assert set(parts) <= set(REDUCTIONS)
    assert not any(values.requires_grad for values in parts.values())
    assert parts["loss/total"].sum().item() == pytest.approx((parts["loss/policy"] + parts["loss/kl"]).sum().item())


def test_the_supervised_loss_ignores_the_algorithm() -> None:
    toy = make_toy()
    (batch,) = pack_toy(toy, AlgorithmConfig())
    logprobs = torch.cat([toy.logprobs(index) for index in range(len(toy.responses))])
    ones = replace(batch, advantages=torch.ones_like(batch.advantages))
    algorithm = AlgorithmConfig(policy_loss="cispo", old_policy="learner", sampler_correction="tis", kl_coef=0.1)
    loss, parts = total_loss("nll", ones, logprobs, None, algorithm)
    assert loss.item() == pytest.approx(-logprobs.mean().item())
    assert set(parts) == {"loss/nll"}

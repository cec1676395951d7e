"""Combinations of variants, each of which is accepted or refused by name."""

from __future__ import annotations

import itertools
import typing

import pytest

from rlsys.config.algorithm import AlgorithmConfig
from rlsys.config.run import ConfigError, parse

CHOICES = {
    "advantage": ("grpo", "dr_grpo", "rloo", "gdpo"),
    "loss_mean": ("token", "sequence", "constant"),
    "policy_loss": ("clip", "cispo"),
    "ratio": ("token", "sequence"),
    "dual_clip": (None, 3.0),
    "old_policy": ("sampler", "learner"),
    "sampler_correction": ("none", "tis", "icepop", "sequence_mask"),
    "kl_in": ("loss", "reward"),
    "kl_estimator": ("k1", "k2", "k3"),
    "kl_coef": (0.0, 0.1),
    "mini_batches": (1, 2, 3),
    "epochs_per_batch": (1, 2),
    "overlong_buffer_tokens": (0, 4, 9),
}
IMPOSSIBLE = (
    lambda c: c["sampler_correction"] != "none" and c["old_policy"] == "sampler",
    lambda c: c["policy_loss"] == "cispo" and (c["dual_clip"] is not None or c["ratio"] == "sequence"),
    lambda c: c["advantage"] == "gdpo" and c["overlong_buffer_tokens"] > 0,
    lambda c: c["advantage"] == "gdpo" and c["kl_coef"] > 0 and c["kl_in"] == "reward",
    lambda c: c["mini_batches"] == 3,  # 4 prompts a step
    lambda c: c["overlong_buffer_tokens"] > 8,
)


def run_tree(algorithm: dict[str, object]) -> dict[str, object]:
    return {
        "output_dir": "out",
        "model": {"path": "m"},
        "train": {"prompts_per_step": 4},
        "rollout": {"max_tokens": 8},
        "algorithm": algorithm,
    }


def test_the_choices_of_this_test_are_those_of_the_section() -> None:
    for name, choices in CHOICES.items():
        kind = typing.get_type_hints(AlgorithmConfig)[name]
        if typing.get_origin(kind) is typing.Literal:
            assert choices == typing.get_args(kind)


def test_every_pair_of_choices_is_accepted_or_refused_by_the_names_of_its_fields() -> None:
    first = {name: choices[0] for name, choices in CHOICES.items()}
    for one, other in itertools.combinations(CHOICES, 2):
        for values in itertools.product(CHOICES[one], CHOICES[other]):
            check({**first, one: values[0], other: values[1]})


def test_every_combination_of_exclusive_choices_is_accepted_or_refused() -> None:
    names = ("advantage", "policy_loss", "ratio", "dual_clip", "old_policy", "sampler_correction", "kl_in", "kl_coef")
    first = {name: choices[0] for name, choices in CHOICES.items()}
    for values in itertools.product(*(CHOICES[name] for name in names)):
        check({**first, **dict(zip(names, values, strict=True))})


def check(algorithm: dict[str, object]) -> None:
    if not any(is_impossible(algorithm) for is_impossible in IMPOSSIBLE):
        assert parse(run_tree(algorithm), source="test").algorithm.model_dump(include=set(algorithm)) == algorithm
        return
    with pytest.raises(ConfigError) as error:
        parse(run_tree(algorithm), source="test")
    named = [name for name in algorithm if f"algorithm.{name}" in str(error.value)]
    assert named, str(error.value)
    assert any(word in str(error.value) for word in ("set ", "change", "lower")), str(error.value)


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        ({"sampler_correction": "tis"}, "set old_policy=learner, or"),
        ({"policy_loss": "cispo", "dual_clip": 3}, "set dual_clip=null"),
        ({"policy_loss": "cispo", "ratio": "sequence"}, "set ratio=token, or policy_loss=clip for GSPO"),
        ({"advantage": "gdpo", "overlong_buffer_tokens": 2}, "give length a score of its own"),
        ({"advantage": "gdpo", "kl_coef": 0.1, "kl_in": "reward"}, "set kl_in=loss, or choose another advantage"),
        ({"mini_batches": 3}, "train.prompts_per_step=4 is not a multiple of algorithm.mini_batches=3"),
        ({"overlong_buffer_tokens": 9}, "is above rollout.max_tokens=8"),
        ({"dual_clip": 1.0}, "algorithm.dual_clip"),
        ({"correction_low": 1.0}, "algorithm.correction_low"),
        ({"correction_high": 1.0}, "algorithm.correction_high"),
        ({"clip_low": 0}, "algorithm.clip_low"),
        ({"advantage": "gae"}, "algorithm.advantage"),
    ],
)
def test_a_contradiction_names_the_remedy(algorithm: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(run_tree(algorithm), source="test")
    assert says in str(error.value)

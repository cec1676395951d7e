"""Packed passes against padded sequences: equal numbers for all trained parts and all splits of rows.

The oracle is the unmodified Hugging Face model with Hugging Face's processors, each response alone behind its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from learner.model.frozen import freeze
from learner.model.lora import add_adapters
from learner.model.policy import PackedPolicy, load_model, read_layout
from learner.packing.cost import read_cost_model
from learner.packing.packing import PackedBatch, pack
from learner.packing.passes import plan_passes
from learner.packing.rows import Response, Row
from rlsys.config.run import LoraConfig
from tests.support.learner import cut_of, random_rows
from tests.support.models import lora_targets, part_of
from tests.support.plain_policy import plain_logprobs
from tests.support.rounding import GRADIENT, LOGPROB

LORA_RANK = 4
WHOLE = 1 << 20
SPLIT = 48
"""Number of tokens of a pass at which most groups are split over passes."""


@dataclass(frozen=True)
class Setting:
    """A setup of the learner: its trained parts, and its ways of computing."""

    frozen_parts: tuple[str, ...] = ()
    lora: bool = False
    checkpointing: bool = False
    num_ranks: int = 1
    budget: int = WHOLE
    attention: str = "sdpa"


SETTINGS = {
    "one pass": Setting(),
    "split groups": Setting(budget=SPLIT),
    "two ranks": Setting(num_ranks=2),
    "two ranks, split groups": Setting(num_ranks=2, budget=SPLIT),
    "checkpointing": Setting(checkpointing=True, budget=200),
    "masked SDPA": Setting(attention="eager", num_ranks=2, budget=200),
    "frozen tower": Setting(frozen_parts=("vision_tower",), num_ranks=2, budget=SPLIT),
    "frozen projector": Setting(frozen_parts=("projector",), budget=SPLIT),
    "frozen vision": Setting(frozen_parts=("vision_tower", "projector"), num_ranks=2, budget=SPLIT),
    "LoRA": Setting(lora=True, num_ranks=2, budget=SPLIT),
    "LoRA, checkpointing": Setting(lora=True, checkpointing=True),
    "frozen tower, checkpointing": Setting(frozen_parts=("vision_tower",), checkpointing=True, budget=200),
}

RARELY = {"one pass", "two ranks", "frozen projector", "frozen tower, checkpointing", "LoRA"}
"""Settings whose parts are in the others together."""


@pytest.fixture(scope="module")
def plain_model(family_dirs: Mapping[str, Path]) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(family_dirs["bench"], dtype=torch.float32)


def lora_of(folder: Path) -> LoraConfig:
    return LoraConfig(rank=LORA_RANK, targets=lora_targets(folder))


def make_policy(folder: Path, setting: Setting) -> PackedPolicy:
    model = load_model(folder, dtype="float32", attention=setting.attention)
    if setting.lora:
        torch.manual_seed(3)
        add_adapters(model, lora_of(folder))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zeros at first: the adapter would do nothing
                    parameter.normal_(std=0.05)
    freeze(model, setting.frozen_parts)
    if setting.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return PackedPolicy(model).train()


def make_oracle(plain: PreTrainedModel, policy: PackedPolicy, setting: Setting, folder: Path) -> torch.nn.Module:
    """Return the plain model; for LoRA, wrapped by peft with the policy's adapters."""
    if not setting.lora:
        return plain
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    lora = lora_of(folder)
    targets = rf"model\.language_model\..*\.({'|'.join(lora.targets)})"
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets))
    adapters = {name: tensor for name, tensor in policy.model.state_dict().items() if "lora_" in name}
    found = wrapped.base_model.model.load_state_dict(adapters, strict=False)
    assert adapters
    assert not found.unexpected_keys
    return wrapped


def packed_results(
    policy: PackedPolicy, rows: Sequence[Row], setting: Setting, folder: Path
) -> tuple[dict[Response, torch.Tensor], dict[str, torch.Tensor]]:
    """Return log-probs by response and gradients by parameter, over all passes of all ranks."""
    layout = read_layout(policy.model, folder)
    plan = plan_passes(rows, setting.num_ranks, setting.budget, read_cost_model(folder, setting.frozen_parts))
    found: dict[Response, torch.Tensor] = {}
    policy.zero_grad()
    for passes in plan:
        for part in passes:
            batch = pack(part, layout, dtype=torch.float32)
            logprobs, _ = policy(batch)
            (0.0 * logprobs.sum() if batch.is_dummy else loss_of(batch, logprobs)).backward()
            responses = [response for row in part for response in row.responses]
            if not batch.is_dummy:
                parts = logprobs.detach().split([len(response.ids) for response in responses])
                found.update(zip(responses, parts, strict=True))
        policy.forget_features()
    return found, gradients(policy.model)


def loss_of(batch: PackedBatch, logprobs: torch.Tensor) -> torch.Tensor:
    return (batch.weights * batch.advantages * logprobs).sum()


def plain_results(
    model: torch.nn.Module, rows: Sequence[Row], folder: Path
) -> tuple[dict[Response, torch.Tensor], dict[str, torch.Tensor]]:
    found: dict[Response, torch.Tensor] = {}
    model.zero_grad()
    for row in rows:
        logprobs = plain_logprobs(model, row, folder)
        loss = sum(r.weight * r.advantage * one.sum() for r, one in zip(row.responses, logprobs, strict=True))
        loss.backward()
        found.update(zip(row.responses, (one.detach() for one in logprobs), strict=True))
    return found, gradients(model.base_model.model if isinstance(model, peft.PeftModel) else model)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def is_trained(name: str, setting: Setting) -> bool:
    if setting.lora:
        return "lora_" in name
    return part_of(name) not in setting.frozen_parts


def assert_equal_gradients(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    whole = torch.cat([tensor.flatten() for tensor in expected.values()]).norm()
    difference = torch.cat([(found[name] - tensor).flatten() for name, tensor in expected.items()]).norm()
    assert difference <= GRADIENT * whole
    for name, tensor in expected.items():
        # the biases of keys have a gradient of 0, which rounding hides
        assert (found[name] - tensor).norm() <= GRADIENT * (tensor.norm() + 0.01 * whole), name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in RARELY else name for name in SETTINGS]
)
def test_packed_passes_equal_padded_ones(
    name: str, family_dirs: Mapping[str, Path], plain_model: PreTrainedModel
) -> None:
    setting, folder = SETTINGS[name], family_dirs["bench"]
    rows = random_rows(seed=list(SETTINGS).index(name), cut=cut_of(folder))
    policy = make_policy(folder, setting)
    found, found_gradients = packed_results(policy, rows, setting, folder)
    oracle = make_oracle(plain_model, policy, setting, folder)
    expected, expected_gradients = plain_results(oracle, rows, folder)
    assert found.keys() == expected.keys()
    for response, logprobs in expected.items():
        assert (found[response] - logprobs).abs().max() <= LOGPROB
    expected_gradients = {key: value for key, value in expected_gradients.items() if is_trained(key, setting)}
    assert found_gradients.keys() == expected_gradients.keys()
    assert_equal_gradients(found_gradients, expected_gradients)

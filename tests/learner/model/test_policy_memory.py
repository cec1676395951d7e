"""What a pass of the policy holds where the vocabulary is wide: chunks of logits, one copy of weights and pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from learner.loss import logprobs
from learner.model.policy import PackedPolicy, read_layout
from learner.packing.packing import PackedBatch, pack
from tests.support.learner import make_clip, make_group, make_prompt, make_row
from tests.support.memory import MemoryMeter

VOCABULARY, CHUNK_TOKENS = 20_000, 16
LENGTHS = (60, 100, 40, 56)
NUM_TARGETS = sum(LENGTHS)


@pytest.fixture(scope="module")
def policy(tiny_model_dir: Path) -> PackedPolicy:
    """Return the demo's model with a vocabulary of 20,000: its head is twice as large as the rest."""
    config = AutoConfig.from_pretrained(tiny_model_dir)
    config.text_config.vocab_size = VOCABULARY
    torch.manual_seed(0)
    return PackedPolicy(AutoModelForImageTextToText.from_config(config))


@pytest.fixture
def batch(policy: PackedPolicy, tiny_model_dir: Path) -> PackedBatch:
    rng = np.random.default_rng(0)
    clip = make_clip(rng, "video", 12)
    group = make_group(rng, "0", (), LENGTHS)
    row = make_row(group)
    row = type(row)(**{**vars(row), "prompt": make_prompt(rng, (clip,)), "clips": (clip,)})
    return pack([row], read_layout(policy.model, tiny_model_dir), dtype=torch.float32)


def passed(policy: PackedPolicy, batch: PackedBatch, *, trains: bool) -> MemoryMeter:
    """Return the meter of a forward pass, and of a backward pass if it trains."""
    policy.zero_grad(set_to_none=True)
    with MemoryMeter() as meter, torch.set_grad_enabled(trains):
        found, _ = policy(batch)
        if trains:
            found.sum().backward()
    return meter


@pytest.mark.parametrize("trains", [False, True])
def test_no_array_of_all_tokens_by_the_vocabulary_is_ever_held(
    policy: PackedPolicy, batch: PackedBatch, trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of 16 and of 32 tokens differ by three arrays of 16 tokens, which is all that depends on the chunk."""
    whole = 4 * NUM_TARGETS * VOCABULARY
    peaks = {}
    for tokens in (CHUNK_TOKENS, 2 * CHUNK_TOKENS):
        monkeypatch.setattr(logprobs, "MAX_CHUNK_NUMBERS", tokens * VOCABULARY)
        meter = passed(policy, batch, trains=trains)
        peaks[tokens] = meter.peak
        assert meter.largest <= max(4 * tokens * VOCABULARY, policy.model.lm_head.weight.nbytes) < whole
        if not trains:  # the gradients of the wide head alone are as large
            assert meter.peak < whole
    chunk = 4 * CHUNK_TOKENS * VOCABULARY
    assert peaks[2 * CHUNK_TOKENS] - peaks[CHUNK_TOKENS] <= 3 * chunk * 1.01


def test_a_pass_copies_neither_weights_nor_pixels(policy: PackedPolicy, batch: PackedBatch) -> None:
    """Without gradients a pass holds a fraction of the weights; the largest is the embedding, two thirds of them."""
    weights = sum(parameter.nbytes for parameter in policy.parameters())
    embedding = policy.model.lm_head.weight.nbytes
    assert embedding > weights / 2
    logits = 4 * NUM_TARGETS * VOCABULARY
    with MemoryMeter() as meter, torch.no_grad():
        policy.model.get_input_embeddings()(batch.input_ids)
        features = policy._features(batch)
        states = policy.model.model.language_model(
            inputs_embeds=torch.zeros(1, batch.input_ids.shape[1], policy.model.config.text_config.hidden_size),
            packed_mask=batch.mask,
            sequence=None,
            position_ids=batch.position_ids,
            use_cache=False,
        )
    assert len(features) and len(states.last_hidden_state[0]) == batch.input_ids.shape[1]
    assert meter.peak < min(embedding, logits, 4 * batch.patches.nbytes)

"""Tensors are checked to the last byte before they reach an engine; without vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from actors.errors import WeightsRefused
from actors.weights.weights_in import (
    Expected,
    as_tensor,
    bucket_problems,
    check_manifest,
    engine_module,
    engine_name,
    expected_adapter,
    expected_weights,
    refused,
)
from rlsys.config.run import LoraConfig
from rlsys.weights.manifest import Bucket, NamedTensor, TensorSpec, WeightTransfer
from rlsys.weights.tensors import HEAD
from rlsys.weights.version import WeightVersion
from tests.support.transfers import named
from tests.support.transfers import version_of as announced

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def tensors() -> dict[str, NamedTensor]:
    embedding = np.arange(12, dtype=np.float32).reshape(4, 3)
    return {EMBEDDING: named(embedding), "model.norm.weight": named(np.ones(3, np.float32)), HEAD: named(embedding)}


def version_of(tensors: Mapping[str, NamedTensor]) -> WeightVersion:
    return announced(tensors, 7)


def check_sent(sent: Mapping[str, NamedTensor], version: WeightVersion, expected: Expected) -> None:
    """Check a transfer of one bucket as an engine does."""
    bucket = Bucket(names=tuple(sent), num_bytes=0, stored=None)
    check_manifest(version, expected, WeightTransfer(buckets=(bucket,), timeout_s=1.0))
    if problems := bucket_problems(sent, bucket.names, version.manifest):
        raise refused(version, problems)


def wanted(tensors: Mapping[str, NamedTensor]) -> Expected:
    return Expected(specs={name: tensor.spec for name, tensor in tensors.items()}, tied_to=EMBEDDING)


def refusal(sent: Mapping[str, NamedTensor], expected: Expected, version: WeightVersion) -> str:
    with pytest.raises(WeightsRefused) as caught:
        check_sent(sent, version, expected)
    assert "version 7 refused" in str(caught.value)
    return str(caught.value)


def test_the_expected_names_are_those_of_the_files_and_the_tied_head(tiny_model_dir: Path) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    specs = expected_weights(tiny_model_dir, "bfloat16").specs
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model_dir)
    shapes = sorted(tuple(p.shape) for _, p in model.named_parameters(remove_duplicate=False))
    assert sorted(spec.shape for spec in specs.values()) == shapes
    assert specs[HEAD] == specs[EMBEDDING]
    assert {spec.dtype for spec in specs.values()} == {"bfloat16"}


def test_a_checkpoint_in_several_files_is_read_whole(tmp_path: Path) -> None:
    save_file({EMBEDDING: np.zeros((4, 3), np.float32)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({HEAD: np.zeros((5, 3), np.float32)}, tmp_path / "model-00002-of-00002.safetensors")
    expected = expected_weights(tmp_path, "float32")
    assert expected.tied_to == ""
    assert {name: spec.shape for name, spec in expected.specs.items()} == {EMBEDDING: (4, 3), HEAD: (5, 3)}


def test_a_head_behind_a_prefix_is_one_of_its_own(tmp_path: Path) -> None:
    head, embedding = f"language_model.{HEAD}", "language_model.model.embed_tokens.weight"
    save_file({name: np.zeros((4, 3), np.float32) for name in (head, embedding)}, tmp_path / "model.safetensors")
    expected = expected_weights(tmp_path, "float32")
    assert (expected.specs.keys(), expected.tied_to) == ({head, embedding}, "")


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        expected_weights(tmp_path, "float32")


def test_correct_tensors_pass(tensors: dict[str, NamedTensor]) -> None:
    check_sent(tensors, version_of(tensors), wanted(tensors))


def test_tensors_without_the_tied_head_are_refused(tensors: dict[str, NamedTensor]) -> None:
    expected = wanted(tensors)
    del tensors[HEAD]
    assert f"{HEAD}: missing" in refusal(tensors, expected, version_of(tensors))


def test_wrong_shapes_types_and_names_are_each_named(tensors: dict[str, NamedTensor]) -> None:
    expected = wanted(tensors)
    sent = {
        EMBEDDING: named(np.zeros((3, 4), np.float32)),
        "model.norm.weight": named(np.ones(3, np.float64)),
        "surprise": named(np.ones(1, np.float32)),
        HEAD: tensors[HEAD],
    }
    message = refusal(sent, expected, version_of(sent))
    assert f"{EMBEDDING}: expected float32[4, 3], got float32[3, 4]" in message
    assert "model.norm.weight: expected float32[3], got float64[3]" in message
    assert "surprise: not a weight of this model" in message


def test_bytes_that_are_too_few_are_refused(tensors: dict[str, NamedTensor]) -> None:
    norm = tensors["model.norm.weight"]
    sent = {**tensors, "model.norm.weight": replace(norm, data=norm.data[:-4])}
    assert "is not the 12 bytes" in refusal(sent, wanted(tensors), version_of(sent))


def test_one_changed_bit_is_refused(tensors: dict[str, NamedTensor]) -> None:
    changed = tensors[HEAD].data.copy()
    changed[0] ^= 1
    sent = {**tensors, HEAD: replace(tensors[HEAD], data=changed)}
    assert "announced as" in refusal(sent, wanted(tensors), version_of(tensors))


def test_a_tied_head_with_values_of_its_own_is_refused(tensors: dict[str, NamedTensor]) -> None:
    sent = {**tensors, HEAD: named(np.ones((4, 3), np.float32))}
    assert f"{HEAD}: differs from {EMBEDDING}" in refusal(sent, wanted(tensors), version_of(sent))
    check_sent(sent, version_of(sent), Expected(specs=wanted(sent).specs, tied_to=""))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_of_an_update_that_diverged_are_refused(tensors: dict[str, NamedTensor], value: float) -> None:
    sent = {**tensors, "model.norm.weight": named(np.array([1, value, 1], np.float32))}
    assert "model.norm.weight: holds NaN or infinity" in refusal(sent, wanted(tensors), version_of(sent))


def test_a_model_with_many_wrong_weights_gets_a_short_message() -> None:
    sent = {f"weight{index:03}": named(np.ones(1, np.float32)) for index in range(300)}
    message = refusal(sent, Expected(specs={}, tied_to=""), version_of(sent))
    assert "300 problem(s)" in message
    assert "and 292 more" in message


def test_read_only_bytes_become_a_tensor_without_a_copy() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = named(array)
    tensor.data.flags.writeable = False
    assert as_tensor(tensor).data_ptr() == array.ctypes.data
    assert torch.equal(as_tensor(tensor), torch.arange(6.0).view(2, 3))


def test_bfloat16_travels_as_its_bytes() -> None:
    tensor = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    spec = TensorSpec(shape=(1, 2), dtype="bfloat16")
    assert torch.equal(as_tensor(NamedTensor(spec=spec, data=tensor.view(-1).view(torch.uint8).numpy())), tensor)


@pytest.mark.parametrize(
    ("old_style", "new_style", "parameter"),
    [
        ("visual.merger.ln_q.weight", "model.visual.merger.ln_q.weight", "visual.merger.ln_q.weight"),
        ("model.norm.weight", "model.language_model.norm.weight", "language_model.model.norm.weight"),
        ("lm_head.weight", "lm_head.weight", "language_model.lm_head.weight"),
        ("language_model.lm_head.weight", "lm_head.weight", "language_model.lm_head.weight"),
        ("language_model.model.norm.weight", "model.language_model.norm.weight", "language_model.model.norm.weight"),
        *((name, f"model.{name}", name) for name in ("vision_tower.cls_token", "multi_modal_projector.linear_1.bias")),
    ],
)
def test_both_styles_of_checkpoint_names_map_to_the_same_parameter(
    old_style: str, new_style: str, parameter: str
) -> None:
    assert engine_name(old_style) == engine_name(new_style) == parameter


def test_queries_keys_and_values_are_one_module_where_vllm_fuses_them() -> None:
    fused = engine_module("language_model.model.layers.0.self_attn.k_proj.weight")
    assert fused == "language_model.model.layers.0.self_attn.qkv_proj"
    alone = "vision_tower.encoder.layer.0.attention.k_proj"
    assert engine_module(f"model.{alone}.weight") == engine_module(f"{alone}.weight") == alone


LORA = LoraConfig(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))


def test_an_adapter_has_two_matrices_for_each_target_of_the_language_model_and_none_of_the_tower() -> None:
    def specs(prefix: str, tower: str) -> dict[str, TensorSpec]:
        return {
            f"{prefix}layers.0.self_attn.q_proj.weight": TensorSpec(shape=(6, 4), dtype="float32"),
            f"{prefix}layers.0.self_attn.q_proj.bias": TensorSpec(shape=(6,), dtype="float32"),
            f"{prefix}layers.0.mlp.down_proj.weight": TensorSpec(shape=(4, 8), dtype="float32"),
            f"{prefix}layers.0.mlp.up_proj.weight": TensorSpec(shape=(8, 4), dtype="float32"),
            f"{tower}blocks.0.mlp.down_proj.weight": TensorSpec(shape=(4, 8), dtype="float32"),
        }

    layer = "base_model.model.model.language_model.layers.0."
    for prefix, tower in (("model.", "visual."), ("model.language_model.", "model.visual.")):
        found = expected_adapter(Expected(specs=specs(prefix, tower), tied_to=""), LORA)
        assert {name: spec.shape for name, spec in found.specs.items()} == {
            f"{layer}self_attn.q_proj.lora_A.weight": (2, 4),
            f"{layer}self_attn.q_proj.lora_B.weight": (6, 2),
            f"{layer}mlp.down_proj.lora_A.weight": (2, 8),
            f"{layer}mlp.down_proj.lora_B.weight": (4, 2),
        }


def test_an_adapter_of_another_rank_is_refused(tiny_model_dir: Path) -> None:
    expected = expected_adapter(expected_weights(tiny_model_dir, "float32"), LORA)
    sent = {name: named(np.zeros(spec.shape, np.float32)) for name, spec in expected.specs.items()}
    check_sent(sent, version_of(sent), expected)
    wider = expected_adapter(expected_weights(tiny_model_dir, "float32"), LORA.model_copy(update={"rank": 3}))
    assert "q_proj.lora_A.weight: expected float32[3, 128], got float32[2, 128]" in refusal(
        sent, wider, version_of(sent)
    )

"""The config as DeepSpeed's JSON, and the keys that may be merged into it, without DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from learner.deepspeed_config import MAX_BUCKET_NUMBERS, deepspeed_config, merged
from learner.spec import LearnerSpec
from rlsys.config.learner import OWNED_KEYS, flat_items
from rlsys.config.run import AlgorithmConfig, ConfigError, ModelConfig, RolloutConfig, parse
from tests.support.learner import learner_config, train_config


def settings(device: str = "cpu", dtype: str = "float32", num_numbers: int = 1000, **learner: Any) -> dict[str, Any]:
    spec = LearnerSpec(
        model=ModelConfig(path=Path("unused"), dtype=dtype),
        rollout=RolloutConfig(),
        train=train_config(max_grad_norm=0.5),
        algorithm=AlgorithmConfig(),
        learner=learner_config(**learner),
        device=device,
    )
    return deepspeed_config(spec, num_numbers)


def problem(learner: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse({"output_dir": "o", "model": {"path": "m"}, "learner": learner}, "run.yaml")
    return str(caught.value)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_stage_number_format_and_clipping_are_our_fields(zero_stage: int) -> None:
    found = settings(zero_stage=zero_stage, dtype="bfloat16")
    assert found["zero_optimization"]["stage"] == zero_stage
    assert found["bf16"] == {"enabled": True}
    assert found["gradient_clipping"] == 0.5
    assert found["data_types"]["grad_accum_dtype"] == ("fp32" if zero_stage else None)


def test_no_bucket_is_larger_than_the_model_or_the_bound() -> None:
    assert settings(num_numbers=1000)["zero_optimization"]["reduce_bucket_size"] == 1000
    assert settings(num_numbers=10**10)["zero_optimization"]["allgather_bucket_size"] == MAX_BUCKET_NUMBERS


def test_offload_moves_the_named_parts_and_pins_them_only_for_a_gpu() -> None:
    zero = settings(zero_stage=3, offload=("optimizer", "parameters"), device="cuda")["zero_optimization"]
    assert zero["offload_optimizer"] == zero["offload_param"] == {"device": "cpu", "pin_memory": True}
    zero = settings(zero_stage=2, offload=("optimizer",))["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert "offload_param" not in zero
    assert "offload_optimizer" not in settings(zero_stage=2)["zero_optimization"]


def test_raw_settings_are_merged_section_by_section_and_win_over_our_defaults() -> None:
    found = settings(
        zero_stage=3,
        deepspeed={
            "zero_optimization": {"stage3_prefetch_bucket_size": 7, "reduce_bucket_size": 5},
            "comms_logger": {"enabled": True},
        },
    )
    zero = found["zero_optimization"]
    assert (zero["stage"], zero["stage3_prefetch_bucket_size"], zero["reduce_bucket_size"]) == (3, 7, 5)
    assert zero["allgather_bucket_size"] == 1000
    assert found["comms_logger"] == {"enabled": True}


def test_merging_changes_neither_side() -> None:
    ours, raw = {"a": {"b": 1}}, {"a": {"c": [2]}}
    found = merged(ours, raw)
    found["a"]["c"].append(3)
    assert (ours, raw) == ({"a": {"b": 1}}, {"a": {"c": [2]}})


@pytest.mark.parametrize(
    ("raw", "key", "field"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage=3", "learner.zero_stage"),
        ({"zero_optimization": 3}, "zero_optimization=3", "learner.zero_stage"),
        ({"gradient_clipping": 1.0}, "gradient_clipping=1.0", "train.max_grad_norm"),
        ({"optimizer": {"type": "SGD"}}, "optimizer.type='SGD'", "section train"),
        ({"fp16": {"enabled": True}}, "fp16.enabled=True", "model.dtype"),
        ({"bf16": {"enabled": False}}, "bf16.enabled=False", "model.dtype"),
        ({"train_batch_size": 8}, "train_batch_size=8", "learner.micro_batch_tokens"),
        (
            {"zero_optimization": {"offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.device='nvme'",
            "learner.offload",
        ),
    ],
)
def test_a_raw_key_that_a_field_of_ours_decides_is_refused_with_both_names(
    raw: dict[str, Any], key: str, field: str
) -> None:
    message = problem({"deepspeed": raw, "zero_stage": 3})
    assert key in message
    assert field in message


def test_keys_beside_ours_are_accepted() -> None:
    raw = {
        "zero_optimization": {"sub_group_size": 10**6, "offload_param": {"buffer_count": 4}},
        "bf16": {"immediate_grad_update": True},
        "optimizer_notes": 1,
    }
    tree = {"output_dir": "o", "model": {"path": "m"}, "learner": {"zero_stage": 3, "deepspeed": raw}}
    assert parse(tree, "run.yaml").learner.deepspeed == raw


def test_every_key_that_we_set_against_the_default_is_listed_as_ours() -> None:
    tunable = {"reduce_bucket_size", "allgather_bucket_size", "overlap_comm", "contiguous_gradients", "pin_memory"}
    found = settings(zero_stage=3, offload=("optimizer", "parameters"))
    ours = {key for key, _ in flat_items(found) if key.rsplit(".", 1)[-1] not in tunable | {"steps_per_print"}}
    assert ours <= OWNED_KEYS.keys()


@pytest.mark.parametrize(
    ("learner", "said"),
    [
        ({"offload": ["optimizer"], "zero_stage": 0}, "zero_stage is 0: raise it to 1"),
        ({"offload": ["parameters"], "zero_stage": 2}, "zero_stage is 2: raise it to 3"),
        ({"lora": {"rank": 8, "targets": []}}, "at least one"),
        ({"lora": {"rank": 8, "targets": ["q_proj", "q_proj"]}}, "at least one kind of layer, each once"),
        ({"lora": {"rank": 513}}, "learner.lora.rank"),
    ],
)
def test_contradictions_are_found_with_the_config(learner: dict[str, Any], said: str) -> None:
    assert said in problem(learner)

"""Memory and times of a planned run, against numbers worked out by hand and a written model."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open
from typer.testing import CliRunner

from rlsys.commands.app import app
from rlsys.config.run import ConfigError, LearnerConfig, LoraConfig, RunConfig, load_services, parse
from rlsys.data.video.decode import plan_grid
from rlsys.demo.synthetic import draw_dataset
from rlsys.models.families.family import Experts, LinearAttention
from rlsys.models.model_config import ModelFolderError
from rlsys.models.sizes import ModelSizes, read_model_sizes
from rlsys.planning.plan import (
    GIB,
    Assumptions,
    Prompts,
    Section,
    assumptions,
    engine_room,
    engine_section,
    mean_batch_tokens,
    mean_response,
    payload_bytes,
    shown,
    step_bytes,
    token_section,
    total_flops,
)
from rlsys.planning.plan_learner import activation_bytes, learner_section, rank_memory
from rlsys.planning.plan_store import ClipBytes, clip_bytes, store_section
from rlsys.planning.plan_times import Measured, phase_times, time_section
from rlsys.runs.inputs.items import training_items
from rlsys.runs.plan_inputs import prompts_of_budget, prompts_of_items
from rlsys.types import VideoSpec
from tests.support.factories import make_item
from tests.support.models import part_of
from tests.support.paths import CONFIGS

QWEN_7B = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
# 1,000,000 numbers; a layer keeps (8 + 2) x 8 + 2 x 4 + 4 x 16 = 152 numbers a token, a tower's 14 x 4 + 4 x 8 = 88 a
# patch; the last norm keeps 3 x 8 of a token, the projector 6 x 4 of a patch, which has 1176 values
SMALL = ModelSizes(
    layers=2,
    hidden=8,
    mlp=16,
    queries=8,
    kv=4,
    vocabulary=100,
    tower_layers=3,
    tower_hidden=4,
    tower_mlp=8,
    merge=2,
    embedding=200_000,
    language=600_000,
    tower=150_000,
    projector=50_000,
)
PROMPTS = Prompts(
    mean_text=100, mean_visual=1000, longest_text=120, longest_visual=2000, multiply_adds=1e12, source="test"
)


def config(**sections: dict[str, object]) -> RunConfig:
    return parse({"output_dir": "out", "model": {"path": "model"}, **sections}, source="test")


def gpu(**sections: dict[str, object]) -> RunConfig:
    return config(cluster={"device": "cuda"}, **sections)


@pytest.fixture
def folder_7b(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    return tmp_path


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_config_for_gpus_fits_into_what_the_driver_leaves_of_its_card(folder_7b: Path, file: Path) -> None:
    run = load_services(file)
    if run.cluster.device != "cuda" or "model" not in yaml.safe_load(file.read_text()):
        pytest.skip("it trains nothing on a GPU")
    assert "7B" in run.model.path.name, "the sizes below are those of the 7B model"
    sizes, given = read_model_sizes(folder_7b), Assumptions()
    here = run.model_copy(update={"model": run.model.model_copy(update={"path": folder_7b})})
    responses = mean_response(here, given)
    prompts = prompts_of_budget(here, given, responses)
    section = learner_section(here, sizes, prompts, responses, given)
    assert not section.problems
    total = next(line.value for line in section.lines if line.name == "total on the device")
    assert float(total.removesuffix(" GiB")) < given.memory_gib - 2 * given.rank_reserve_gib, (
        "room for what is not known"
    )


def test_later_rounds_are_prompts_of_their_own_in_tokens_frames_and_time(folder_7b: Path) -> None:
    """Three rounds of eight responses are 1 + 2 x 8 prompts a row."""

    def planned(rounds: int) -> tuple[RunConfig, Prompts]:
        run = gpu(perception={"rounds": rounds}).model_copy(
            update={"model": gpu().model.model_copy(update={"path": folder_7b})}
        )
        return run, prompts_of_budget(run, Assumptions(), 100)

    (once, of_one), (thrice, of_three) = planned(1), planned(3)
    lines = {line.name: line.value for line in token_section(thrice, of_three, 100).lines}
    assert lines["tokens of its later rounds"] == f"{16 * (of_three.mean + 100):.0f}"
    assert "tokens of its later rounds" not in {line.name for line in token_section(once, of_one, 100).lines}
    assert 10 < of_three.multiply_adds / of_one.multiply_adds < 17, "a later prompt has one response"
    assert mean_batch_tokens(thrice, of_three, 100) - mean_batch_tokens(once, of_one, 100) == pytest.approx(
        16 * (of_three.mean + 100) * once.train.prompts_per_step / once.learner.num_ranks
    )
    assert clip_bytes(thrice, (), 0).in_use == 17 * clip_bytes(once, (), 0).in_use


def test_a_rank_that_leaves_the_card_no_reserve_is_a_problem_with_the_arithmetic() -> None:
    run = gpu(learner={"num_ranks": 1})

    def section(memory_gib: float) -> Section:
        return learner_section(run, SMALL, PROMPTS, 100, Assumptions(memory_gib=memory_gib, rank_reserve_gib=1))

    total = next(line.value for line in section(80).lines if line.name == "total on the device")
    needs = float(total.removesuffix(" MiB")) / 1024
    assert not section(needs + 1.01).problems
    [problem] = section(needs + 0.99).problems
    assert "memory_gib=" in problem
    assert "rank_reserve_gib=1" in problem


def test_sizes_are_those_of_the_published_7b_model(folder_7b: Path) -> None:
    sizes = read_model_sizes(folder_7b)
    assert sizes.parameters == 8_292_166_656
    assert (sizes.layers, sizes.kv) == (28, 512)


def test_sizes_are_those_of_the_published_qwen2_vl_7b(tmp_path: Path) -> None:
    vision = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 3584, "in_chans": 3, "patch_size": 14}
    (tmp_path / "config.json").write_text(json.dumps({**QWEN_7B, "model_type": "qwen2_vl", "vision_config": vision}))
    sizes = read_model_sizes(tmp_path)
    assert sizes.parameters == 8_291_375_616
    assert (sizes.tower_hidden, sizes.tower_mlp, sizes.is_tower_gated) == (1280, 5120, False)


def qwen3_vl(hidden: int, mlp: int, layers: int, heads: int, vision: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of a published Qwen3-VL, with 128 numbers a head and 8 key/value heads."""
    text = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
    }
    tower = {"num_heads": 16, "out_hidden_size": hidden, "num_position_embeddings": 2304, **vision}
    return {"text_config": text, "vision_config": tower, "tie_word_embeddings": hidden == 2560}


SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}


@pytest.mark.parametrize(
    ("sizes", "billions"),
    [
        (qwen3_vl(2560, 9728, 36, 32, SMALL_TOWER), 4.4),
        (qwen3_vl(4096, 12288, 36, 32, LARGE_TOWER), 8.8),
        (qwen3_vl(5120, 25600, 64, 64, LARGE_TOWER), 33.4),
    ],
    ids=["4B", "8B", "32B"],
)
def test_sizes_are_those_of_the_published_qwen3_vl(tmp_path: Path, sizes: dict[str, Any], billions: float) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model("qwen3_vl", **sizes)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    found = read_model_sizes(tmp_path)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert round(found.parameters / 1e9, 1) == billions
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layer = model.model.language_model.layers[0]
    linear = [module for name, module in layer.named_modules() if name.rpartition(".")[2] in targets]
    adapters = sum(module.in_features + module.out_features for module in linear)
    lora = LearnerConfig(lora=LoraConfig(rank=4, targets=targets))
    assert (len(linear), found.trained(lora)) == (7, found.layers * 4 * adapters)


def qwen3_vl_moe(hidden: int, experts: int, inner: int, layers: int, heads: tuple[int, int]) -> dict[str, Any]:
    """Return the sizes of a published Qwen3-VL of whose experts 8 compute a token."""
    tree = qwen3_vl(hidden, 3 * hidden, layers, heads[0], LARGE_TOWER)
    text = {"num_experts": experts, "num_experts_per_tok": 8, "moe_intermediate_size": inner, "norm_topk_prob": True}
    return {**tree, "text_config": {**tree["text_config"], "num_key_value_heads": heads[1], **text}}


@pytest.mark.parametrize(
    ("sizes", "billions", "of_language"),
    [
        (qwen3_vl_moe(2048, 128, 768, 48, (32, 4)), (31.1, 3.9), (30.5, 3.4)),
        (qwen3_vl_moe(4096, 128, 1536, 94, (64, 4)), (235.7, 22.8), (235.1, 22.2)),
    ],
    ids=["30B-A3B", "235B-A22B"],
)
def test_total_and_active_sizes_are_those_of_the_published_mixtures_of_experts(
    tmp_path: Path, sizes: dict[str, Any], billions: tuple[float, float], of_language: tuple[float, float]
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model("qwen3_vl_moe", **sizes)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    found = read_model_sizes(tmp_path)
    experts = [p.numel() for name, p in model.named_parameters() if ".experts." in name]
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.active == found.parameters - sum(experts) * (128 - 8) // 128
    assert tuple(round(number / 1e9, 1) for number in (found.parameters, found.active)) == billions
    # the published names count the language model with its embeddings
    embedded = (found.language + found.embedding, found.active - found.tower - found.projector)
    assert tuple(round(number / 1e9, 1) for number in embedded) == of_language
    lora = LearnerConfig(lora=LoraConfig(rank=4, targets=("q_proj", "o_proj")))
    layer = model.model.language_model.layers[0].self_attn
    sides = [one.in_features + one.out_features for one in (layer.q_proj, layer.o_proj)]
    assert found.trained(lora) == found.layers * 4 * sum(sides)
    with pytest.raises(ConfigError, match="lora.targets: gate_proj is a part of the experts, which are one tensor"):
        found.trained(LearnerConfig(lora=LoraConfig(rank=4)))


def qwen3_5(hidden: int, mlp: int, layers: int, heads: tuple[int, int], value_heads: int) -> dict[str, Any]:
    """Return the sizes of a published Qwen3.5, of whose layers each fourth has attention, with 256 numbers a head."""
    tree = qwen3_vl(hidden, mlp, layers, heads[0], SMALL_TOWER if hidden < 4096 else LARGE_TOWER)
    tree["vision_config"].pop("deepstack_visual_indexes")
    text = {"num_key_value_heads": heads[1], "head_dim": 256, "vocab_size": 248320}
    linear = {"linear_num_value_heads": value_heads, "linear_num_key_heads": 16}
    return {**tree, "text_config": {**tree["text_config"], **text, **linear}}


@pytest.mark.parametrize(
    ("sizes", "billions", "layers"),
    [
        (qwen3_5(2560, 9216, 32, (16, 4), 32), 4.5, (24, 8)),
        (qwen3_5(4096, 12288, 32, (16, 4), 32), 9.4, (24, 8)),
        (qwen3_5(5120, 17408, 64, (24, 4), 48), 27.4, (48, 16)),
    ],
    ids=["4B", "9B", "27B"],
)
def test_sizes_are_those_of_models_with_linear_attention(
    tmp_path: Path, sizes: dict[str, Any], billions: float, layers: tuple[int, int]
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.for_model("qwen3_5", **sizes)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    found = read_model_sizes(tmp_path)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (round(found.parameters / 1e9, 1), found.linear.layers, found.attention_layers) == (billions, *layers)
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    linear = [
        module for name, module in model.model.language_model.named_modules() if name.rpartition(".")[2] in targets
    ]
    adapters = sum(module.in_features + module.out_features for module in linear)
    assert found.trained(LearnerConfig(lora=LoraConfig(rank=4, targets=targets))) == 4 * adapters
    with pytest.raises(ConfigError, match="in_proj_qkv is a layer of linear attention, which get no adapters"):
        found.trained(LearnerConfig(lora=LoraConfig(rank=4, targets=("q_proj", "in_proj_qkv"))))


EXPERTS = Experts(layers=1, count=8, per_token=2, mlp=4)
MIXTURE = replace(SMALL, experts=EXPERTS)
"""Of the two layers one has 8 experts of 3 x 8 x 4 = 96 numbers each, of which a token needs 2."""


def test_memory_goes_by_all_experts_and_work_by_those_of_a_token() -> None:
    assert (MIXTURE.parameters, MIXTURE.active) == (1_000_000, 1_000_000 - 6 * 96)
    # after n tokens an expert is idle with probability (3 / 4) ** n
    assert MIXTURE.language_used(2) == 600_000 - 8 * 96 * 9 / 16
    run = gpu(learner={"gradient_checkpointing": False}, rollout={"num_actors": 1})
    responses = mean_response(run, Assumptions())
    rooms = [engine_room(run, sizes, PROMPTS, responses, Assumptions()) for sizes in (SMALL, MIXTURE)]
    assert replace(rooms[0], working=rooms[1].working) == rooms[1]
    [weights] = [one for one in engine_section(run, MIXTURE, rooms[1], Assumptions()).lines if one.name == "weights"]
    assert "1,000,000 parameters, of which a token uses 999,424" in weights.how
    # a layer with experts keeps 2 x (4 x 4 + 2 x 8) + 8 numbers of a token in the place of 4 x 16
    dense, mixed = (activation_bytes(run, sizes, 100, 0.5).kept for sizes in (SMALL, MIXTURE))
    assert dense - mixed == 100 * (64 - 72) * 2
    times = [
        phase_times(run, sizes, PROMPTS, room, Assumptions(), Measured(), is_judged=False)
        for sizes, room in zip((SMALL, MIXTURE), rooms, strict=True)
    ]
    assert times[1].generate < times[0].generate
    assert times[1].sync == times[0].sync


def test_zero_3_gathers_all_experts_of_a_layer_at_once() -> None:
    run = config(learner={"zero_stage": 3, "num_ranks": 2})
    many = replace(MIXTURE, experts=replace(EXPERTS, count=10**8), language=96 * 10**8)
    assert rank_memory(run, many, 100, 0.5).gathered >= 96 * 10**8 * 2


def test_a_layer_with_norms_of_queries_keeps_queries_and_keys_before_them_too() -> None:
    run = config(learner={"gradient_checkpointing": False})
    plain, normed = (
        activation_bytes(run, replace(SMALL, has_query_norms=norms), 100, 0.5).kept for norms in (False, True)
    )
    # tokens x layers x (queries + keys), in bfloat16 and also in float32
    assert normed - plain == 100 * 2 * (8 + 4) * (2 + 4)


@pytest.mark.parametrize("size", ["tiny", "bench"])
def test_sizes_of_each_part_are_what_a_written_checkpoint_holds(family_dirs: Mapping[str, Path], size: str) -> None:
    folder = family_dirs[size]
    found: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                part = {"vision_tower": "tower", "language_model": "language"}.get(part_of(name), "projector")
                part = "embedding" if "embed_tokens" in name else part
                found[part] += math.prod(tensors.get_slice(name).get_shape())
    sizes = read_model_sizes(folder)
    assert sizes.parameters == found.total()
    assert found == {part: getattr(sizes, part) for part in ("embedding", "language", "tower", "projector")}


def test_a_tower_without_gates_keeps_half_of_its_mlps_and_of_its_norms() -> None:
    run = config(learner={"gradient_checkpointing": False})
    gated, plain = (activation_bytes(run, replace(SMALL, is_tower_gated=gate), 100, 0.5).kept for gate in (True, False))
    # 50 visual tokens are 200 patches, in 3 blocks, each with 2 x 8 numbers less of its MLP, in bfloat16; seven layer
    # norms, the projector's included, keep 2 x 4 less each, because they need no float32
    assert gated - plain == 200 * (3 * 16 + 7 * 8) * 2


def test_a_model_without_a_config_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no config.json there"):
        read_model_sizes(tmp_path)
    for not_a_config in ("{", "[]"):
        (tmp_path / "config.json").write_text(not_a_config)
        with pytest.raises(ModelFolderError, match="config.json: (not readable|holds list)"):
            read_model_sizes(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="config.json: model_type='' is no supported model family"):
        read_model_sizes(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(ModelFolderError, match="not the config of a Qwen2.5-VL"):
        read_model_sizes(tmp_path)


def test_trained_parameters_exclude_frozen_parts_and_are_only_adapters_with_lora() -> None:
    assert SMALL.trained(LearnerConfig(frozen_parts=("vision_tower",))) == 850_000
    # 2 layers x rank 4 x (8 + 8 of q_proj, 8 + 4 of v_proj)
    assert SMALL.trained(LearnerConfig(lora=LoraConfig(rank=4, targets=("q_proj", "v_proj")))) == 2 * 4 * (16 + 12)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimiser"),
    [(0, 2.0, 2.0, 12.0), (1, 2.0, 4.0, 3.0), (2, 2.0, 1.0, 3.0), (3, 0.5, 1.0, 3.0)],
)
def test_zero_partitions_one_thing_more_at_each_stage(
    stage: int, weights: float, gradients: float, optimiser: float
) -> None:
    """Return the bytes per parameter of 4 ranks in bfloat16."""
    memory = rank_memory(config(learner={"num_ranks": 4, "zero_stage": stage}), SMALL, 100, 0.0)
    found = (memory.weights, memory.gradients, memory.optimiser)
    assert found == pytest.approx((weights * 1e6, gradients * 1e6, optimiser * 1e6))


def test_what_is_offloaded_is_in_the_hosts_memory() -> None:
    learner = {"num_ranks": 4, "zero_stage": 3, "offload": ["optimizer", "parameters"]}
    memory = rank_memory(config(learner=learner), SMALL, 100, 0.0)
    assert (memory.weights, memory.optimiser, memory.host) == (0, 0, 3.5e6)


def test_a_kl_term_needs_a_second_model_except_with_adapters() -> None:
    assert rank_memory(config(algorithm={"kl_coef": 0.1}), SMALL, 100, 0.0).reference == 2e6
    adapted = config(algorithm={"kl_coef": 0.1}, learner={"lora": {"rank": 4}})
    assert rank_memory(adapted, SMALL, 100, 0.0).reference == 0


def test_activations_by_hand() -> None:
    # 50 tokens in 2 layers of 152 numbers, 40 patches (10 visual tokens) in 3 blocks of 88; 2 bytes each
    found = activation_bytes(config(), SMALL, 50, 0.2)
    assert found.kept == 2 * (50 * (2 * 152 + 24) + 40 * (3 * 88 + 24 + 1176))
    assert found.layer == 2 * 50 * (2 * 16 + 8)  # gradients of two widths of the MLP and of the residual stream
    recomputed = activation_bytes(config(learner={"gradient_checkpointing": True}), SMALL, 50, 0.2)
    assert recomputed.kept == 2 * (50 * (2 * 8 + 24) + 40 * (3 * 4 + 24 + 1176))
    assert recomputed.layer == 2 * 50 * (2 * 16 + 8 + 152)
    frozen = activation_bytes(config(learner={"frozen_parts": ["vision_tower"]}), SMALL, 50, 0.2)
    assert frozen.kept == 2 * (50 * (2 * 152 + 24) + 40 * (24 + 1176))
    assert frozen.layer == found.layer


def test_a_frozen_tower_that_needs_more_than_the_language_model_keeps_decides_the_peak() -> None:
    """One block turns queries and keys in float32: 17 widths of 64. What is kept comes later."""
    sizes = replace(SMALL, tower_hidden=64)
    frozen = config(learner={"frozen_parts": ["vision_tower", "projector"]})
    found = activation_bytes(frozen, sizes, 50, 1.0)
    assert found.kept == 2 * (50 * (2 * 152 + 24) + 200 * 1176)
    assert found.layer == 2 * (200 * 17 * 64 - 50 * (2 * 152 + 24))


def test_norms_keep_no_second_copy_in_float32_and_of_frozen_weights_no_normalised_input() -> None:
    whole = activation_bytes(config(model={"path": "model", "dtype": "float32"}), SMALL, 50, 0.0)
    assert whole.kept == 4 * 50 * (2 * (152 - 2 * 8) + 2 * 8)
    adapters = activation_bytes(config(learner={"lora": {"rank": 4}}), SMALL, 50, 0.0)
    assert adapters.kept == 2 * 50 * (2 * (152 - 2 * 8) + 2 * 8)


@pytest.mark.parametrize(
    ("run", "rule"),
    [
        # in float32: of a head 8 queries and keys, 3 values, 5 rows of a chunk of 64 tokens, and its state of 4 x 2
        (config, 2 * 2 * (8 * 4 + 3 * 2 + 5 * 64 + 4 * 2 / 64)),
        (gpu, 2 * (2 * 4 + 2 + 64)),
    ],
    ids=["in PyTorch", "by kernels"],
)
def test_linear_attention_keeps_by_hand_what_its_rule_keeps(run: Callable[..., RunConfig], rule: float) -> None:
    linear = LinearAttention(indices=(0,), key_heads=1, value_heads=2, key_size=4, value_size=2, kernel=4)
    sizes = replace(SMALL, linear=linear)
    # of layers with attention 2 x 8 numbers for queries and its output and 2 x 4 for keys and values
    of_attention, of_linear = 2 * 8 + 2 * 4, 2 * (2 * 4 + 4) + (3 * 2 + 3) * 4 + rule
    plain, mixed = (
        activation_bytes(run(learner={"gradient_checkpointing": False}), one, 50, 0.0).kept for one in (SMALL, sizes)
    )
    assert mixed - plain == 2 * 50 * (of_linear - of_attention)
    # the first layer of two comes before all adapters of attention, and its attention before those of its MLP
    for targets in (("q_proj",), ("q_proj", "up_proj")):
        adapted = run(learner={"gradient_checkpointing": False, "lora": {"rank": 4, "targets": targets}})
        plain, mixed = (activation_bytes(adapted, one, 50, 0.0).kept for one in (SMALL, sizes))
        assert mixed - plain == -2 * 50 * of_attention


def test_ranks_that_share_a_pass_keep_equal_parts_of_its_activations() -> None:
    # by two ranks: 25 tokens with attention's output twice, 20 patches; by four also each of two key heads twice
    sizes, of_patch = replace(SMALL, head_size=2), 3 * 88 + 24 + 1176
    by_two = config(learner={"num_ranks": 4, "sequence_parallel": 2})
    assert activation_bytes(by_two, sizes, 50, 0.2).kept == 2 * (25 * (2 * (152 + 8) + 24) + 20 * of_patch)
    by_four = config(learner={"num_ranks": 4, "sequence_parallel": 4})
    found = activation_bytes(by_four, sizes, 50, 0.2).kept
    assert found == 2 * (12.5 * (2 * (152 + 8 + 2 * 4) + 24) + 10 * of_patch)
    whole, shared = (rank_memory(run, sizes, 50, 0.2) for run in (config(learner={"num_ranks": 4}), by_four))
    of_head = 100 * 8 * 2
    assert shared.logits - of_head == (whole.logits - of_head) / 4
    assert (shared.weights, shared.gradients, shared.optimiser) == (whole.weights, whole.gradients, whole.optimiser)


def test_the_head_holds_three_chunks_and_its_own_gradient_if_it_is_trained() -> None:
    wide = replace(SMALL, vocabulary=150_000, hidden=1000)
    chunk = 4 * (1 << 26)
    assert rank_memory(config(), wide, 10_000, 0.0).logits == 3 * chunk + 150_000 * 1000 * 2
    assert rank_memory(config(learner={"lora": {"rank": 4}}), wide, 10_000, 0.0).logits == 3 * chunk
    assert rank_memory(config(), wide, 100, 0.9).logits == pytest.approx(3 * 4 * 10 * 150_000 + 150_000 * 1000 * 2)


def test_a_rank_needs_the_most_of_head_layer_and_step_and_not_their_sum() -> None:
    memory = rank_memory(config(learner={"num_ranks": 4, "zero_stage": 3}), SMALL, 50, 0.2)
    held = (0.5 + 1 + 3 + 2) * 1e6  # weights, gradients, optimiser, and the bucket
    assert memory.held == held
    assert memory.stepping == 3e6  # 250,000 numbers: their gradients again, and two temporaries
    computing = memory.gathered + memory.activations + max(memory.logits, memory.layer)
    assert memory.device == held + max(computing, 3e6)
    on_gpu = gpu(learner={"num_ranks": 4, "zero_stage": 3})
    assert rank_memory(on_gpu, SMALL, 50, 0.2).stepping == 2e6
    many = replace(SMALL, language=10**10)
    assert rank_memory(on_gpu, many, 50, 0.2).stepping == 8e9, "a billion numbers at a time"
    offloaded = gpu(learner={"num_ranks": 4, "zero_stage": 3, "offload": ["optimizer"]})
    assert rank_memory(offloaded, SMALL, 50, 0.2).stepping == 0


def test_an_engines_largest_step_is_that_of_the_tower_or_of_the_language_model() -> None:
    # 2,000 visual tokens are 8,000 patches of 11 x 4 numbers, or of 3 x 8 + 3 x 4; 2,120 tokens of 3 x 16 + 3 x 8; a
    # buffer has the inputs of 8,192 tokens
    pixels = 8000 * 1176 * (4 + 2)
    assert step_bytes(config(), SMALL, PROMPTS) == pixels + 2 * (8192 * 8 + 8000 * 44)
    wide = replace(SMALL, hidden=800, mlp=1600)
    assert step_bytes(config(), wide, PROMPTS) == pixels + 2 * (8192 * 800 + 2120 * (3 * 1600 + 3 * 800))
    assert step_bytes(gpu(), wide, PROMPTS) == pixels + 2 * (8192 * 800 + 8192 * (3 * 1600 + 3 * 800))


def test_a_step_that_needs_more_than_the_reserve_leaves_a_gpus_cache_less_room() -> None:
    long = replace(PROMPTS, longest_visual=60_000)
    needs = step_bytes(gpu(), SMALL, long)
    given = Assumptions(memory_gib=10, engine_reserve_gib=1)
    assert needs > GIB
    run = gpu(rollout={"gpu_memory_utilization": 0.5})
    assert engine_room(run, SMALL, long, 100, given).room == 5 * GIB - needs - 2e6
    assert engine_room(run, SMALL, PROMPTS, 100, given).room == 4 * GIB - 2e6


def test_an_engine_on_a_cpu_keeps_embedding_and_head_packed() -> None:
    for run, expected in ((config(), 2 * 100 * 8 * 2), (gpu(), None)):
        section = engine_section(run, SMALL, engine_room(run, SMALL, PROMPTS, 100, Assumptions()), Assumptions())
        lines = {line.name: line.value for line in section.lines}
        assert lines.get("packed weights") == (expected and shown(expected))


def test_heads_that_ranks_cannot_share_are_a_problem_of_the_plan() -> None:
    run = config(learner={"num_ranks": 8, "sequence_parallel": 8}, train={"prompts_per_step": 1})
    [problem] = learner_section(run, replace(SMALL, head_size=2), PROMPTS, 100, Assumptions()).problems
    assert "learner.sequence_parallel=8" in problem
    assert problem.endswith("the model has 4; set it to one of 1, 2, 4.")


def test_groups_at_once_share_their_prompts_keys_and_values() -> None:
    # a token: 2 x 2 layers x 4 x 2 bytes = 32; a group: 1100 + 8 x 100 tokens; room 1 MiB
    room = engine_room(config(rollout={"kv_cache_mib": 1, "group_size": 8}), SMALL, PROMPTS, 100, Assumptions())
    assert (room.per_token, room.room, room.groups) == (32, 1 << 20, (1 << 20) // (32 * 1900))
    few = engine_room(config(rollout={"max_num_seqs": 16, "group_size": 8}), SMALL, PROMPTS, 100, Assumptions())
    assert few.groups == 2


def test_an_engines_room_is_its_share_of_the_devices_without_weights_and_reserve() -> None:
    rollout = {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.5}
    given = Assumptions(memory_gib=10, engine_reserve_gib=1)
    assert engine_room(gpu(rollout=rollout), SMALL, PROMPTS, 100, given).room == 2 * 4 * GIB - 2e6
    tight = Assumptions(memory_gib=2, engine_reserve_gib=1)
    section = engine_section(gpu(rollout=rollout), SMALL, engine_room(gpu(), SMALL, PROMPTS, 100, tight), tight)
    assert not section.problems
    none = engine_room(gpu(rollout=rollout), SMALL, PROMPTS, 100, Assumptions(memory_gib=2.0))
    assert "one sequence of model.max_model_len=16384" in engine_section(gpu(), SMALL, none, tight).problems[0]


def held_clips(run: RunConfig, num_items: int, tokens: int, held_out: int = 0) -> ClipBytes:
    """Return the peak bytes for rows whose clips have that many visual tokens by their budget; no file exists."""

    def video(row: int) -> VideoSpec:
        pixels = tokens * 784
        return VideoSpec(
            uri=f"{row}",
            fps=1.0,
            min_frames=2,
            max_frames=2,
            min_pixels=784,
            max_pixels=pixels,
            total_pixels=2 * pixels,
        )

    rows = [replace(make_item(f"file:{row}"), media=(video(row),)) for row in range(60)]
    return clip_bytes(run, rows[:num_items], 2_000_000, rows[:held_out])


def test_more_in_use_than_the_object_store_holds_is_a_problem_with_the_arithmetic_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # (2 + 1) x 16 + 3 replaced + 4 decoded ahead = 55 clips of 2000 x 4704 bytes, 2 x 2,000,000 bytes of weights
    sections: dict[str, dict[str, object]] = {
        "algorithm": {"max_extra_groups": 3},
        "pipeline": {"max_lag": 2},
        "data": {"cache_bytes": 64 << 20},
    }
    monkeypatch.setattr("rlsys.planning.plan_store.plan_grid", lambda spec: (1, 40, 200))
    crowded = config(**sections, cluster={"object_store_mib": 400})
    section = store_section(crowded, held_clips(crowded, 60, 2000), 2_000_000)
    assert section.lines[-1].value == shown(55 * 2000 * 4704 + 4_000_000)
    assert "raise it to 498, or lower pipeline.max_lag" in section.problems[0]
    assert "55 prompts' clips in use, the largest by their headers" in section.problems[0]
    attached = config(**sections, cluster={"object_store_mib": 400, "address": "10.0.0.1:6379"})
    assert not store_section(attached, held_clips(attached, 60, 2000), 2_000_000).problems
    fits = config(**sections, cluster={"object_store_mib": 498})
    assert not store_section(fits, held_clips(fits, 60, 2000), 2_000_000).problems


def test_clips_smaller_than_the_budgets_are_planned_by_their_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(
        "rlsys.planning.plan_store.plan_grid", lambda spec: (1, 2, 2) if spec.uri != "7" else (1, 20, 20)
    )
    run = config(cluster={"object_store_mib": 100}, data={"decode_ahead": 0, "cache_bytes": 0})
    assert held_clips(run, 60, 2000) == ClipBytes(in_use=15 * 4704 + 100 * 4704, source="by their headers")
    # fewer rows than groups: a clip that two groups use is there once
    assert held_clips(run, 3, 2000).in_use == 3 * 2000 * 4704


def test_an_evaluation_holds_clips_for_as_many_responses_as_training_does() -> None:
    run = config(cluster={"object_store_mib": 4000}, data={"decode_ahead": 0}, rollout={"group_size": 2})
    assert held_clips(run, 16, 100, held_out=60).in_use == 32 * 100 * 4704
    assert held_clips(run, 16, 100, held_out=20).in_use == 20 * 100 * 4704


def test_a_clip_with_shuffled_frames_is_stored_twice() -> None:
    contrasted = config(
        rollout={"shuffled_group_size": 4}, reward={"weights": {"multiple_choice": {"order_contrast": 1.0}}}
    )
    assert held_clips(contrasted, 60, 10).in_use == 2 * 20 * 10 * 4704


def test_only_adapters_are_sent_if_only_they_are_trained() -> None:
    assert payload_bytes(config(), SMALL) == 2_000_000
    adapted = config(learner={"lora": {"rank": 4, "targets": ["q_proj"]}})
    assert payload_bytes(adapted, SMALL) == 2 * 4 * 16 * 2


def test_times_by_hand() -> None:
    given = Assumptions(tflops=1, compute_share=0.5, memory_gb_per_s=1, bandwidth_share=0.5, link_gb_per_s=0.001)
    run = gpu(rollout={"max_tokens": 200}, learner={"num_ranks": 2, "gradient_checkpointing": True})
    # two FLOP a multiply-add, a third more to recompute, 16 groups
    assert total_flops(run, PROMPTS) == pytest.approx(2e12 * 4 / 3 * 16)
    room = engine_room(run, SMALL, PROMPTS, 100, given)
    times = phase_times(run, SMALL, PROMPTS, room, given, Measured(score=7), is_judged=True)
    assert times.update == pytest.approx(2e12 * 4 / 3 * 16 / (2 * 0.5e12))
    assert times.sync == pytest.approx(2.0)
    assert (times.score, times.how[1]) == (7, "given")
    # one actor has all 16 groups: 16 prompts x 2 x (600,000 x 1100 + 150,000 x 4000 + 50,000 x 1000) FLOP, and
    # 100 tokens, each with 600,800 weights of 2 bytes and 16 x (1100 + 8 x 50) tokens of 32 bytes
    prefill = 16 * 2 * (600_000 * 1100 + 150_000 * 4000 + 50_000 * 1000) / 0.5e12
    decode = 100 * (600_800 * 2 + 16 * 1500 * 32) / 0.5e9
    assert times.generate == pytest.approx(prefill + decode)


def test_measured_phases_give_the_step_time_and_the_split() -> None:
    run = gpu(
        rollout={"num_actors": 4, "max_num_seqs": 16, "max_tokens": 200},
        learner={"num_ranks": 4},
        pipeline={"max_lag": 1},
    )
    given = Assumptions()
    room = engine_room(run, SMALL, PROMPTS, 100, given)
    measured = Measured(generate=10, score=1, update=4, sync=1)
    times = phase_times(run, SMALL, PROMPTS, room, given, measured, is_judged=False)
    lines = {line.name: line for line in time_section(run, times, room).lines}
    # 16 groups in 4 x 2 slots: two rounds of 10 s
    assert lines["step at max_lag=0"].value == "26 s"
    assert lines["step at max_lag=1"].value == "21 s"
    assert "this config" in lines["step at max_lag=1"].how
    # 2 ranks need 8 s, 6 actors still two rounds for 16 groups; 1 rank needs 16 s, 7 actors two rounds
    assert lines["best split of 8 devices"].value.endswith("ranks")


def test_an_unknown_assumption_lists_the_known_ones() -> None:
    assert assumptions("cuda", ["memory_gib=141"]).memory_gib == 141
    with pytest.raises(ConfigError, match="unknown assumption; the assumptions are tflops"):
        assumptions("cpu", ["memory=141"])
    with pytest.raises(ConfigError, match="write it as memory_gib=NUMBER"):
        assumptions("cpu", ["memory_gib=much"])


def test_without_annotations_clips_are_as_large_as_the_budgets_allow(folder_7b: Path) -> None:
    run = config(
        model={"path": str(folder_7b)},
        data={"max_frames": 112, "min_pixels": 100352, "max_pixels": 602112, "total_pixels": 11239424},
    )
    found = prompts_of_budget(run, Assumptions(), 512)
    assert (found.mean_visual, found.longest, found.mean_text) == (7168, 7168 + 256, 256)
    assert found.multiply_adds > 3 * 6.5e9 * (found.mean + 8 * 511)  # the language model's weights alone


def test_with_annotations_means_come_from_the_clips_own_headers(tiny_model_dir: Path, tmp_path: Path) -> None:
    drawn = draw_dataset(tmp_path, num_clips=3, seed=0)
    small = {"min_pixels": 784, "max_pixels": 7056, "max_frames": 12, "prompt_style": "terse"}
    run = config(
        model={"path": str(tiny_model_dir), "max_model_len": 512, "dtype": "float32"},
        data={"annotations": str(drawn.annotations), "videos": str(drawn.videos), **small},
        rollout={"max_tokens": 24},
    )
    items = training_items(run)
    found = prompts_of_items(run, items, 12)
    visual = [math.prod(plan_grid(item.media[0])) / 4 for item in items]
    assert found.mean_visual == pytest.approx(sum(visual) / len(visual))
    assert found.longest_visual == 6 * 9 >= max(visual)
    assert found.source.startswith(f"headers of {len(items)} clips")


def test_the_command_prints_every_section_and_fails_on_a_problem(folder_7b: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"output_dir: {tmp_path}/out\nmodel: {{path: {folder_7b}}}\ncluster: {{device: cuda}}\n")
    fits = [
        "cluster.object_store_mib=40000",
        "learner.num_ranks=8",
        "learner.zero_stage=3",
        "learner.gradient_checkpointing=true",
    ]
    done = CliRunner().invoke(app, ["plan", str(file), *fits, "--update-s", "9"])
    assert done.exit_code == 0, done.output
    for expected in ("8,292,166,656", "15.45 GiB", "56.00 KiB", "step at max_lag=1", "best split of 9 devices"):
        assert expected in done.output
    failed = CliRunner().invoke(app, ["plan", str(file)])
    assert failed.exit_code == 2
    assert "cluster.object_store_mib=512" in failed.output and "a learner rank needs about" in failed.output

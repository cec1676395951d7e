from pathlib import Path
from typing import Any

import pytest

from rlsys.config.run import ConfigError, load, parse
from rlsys.config.weights import WeightsConfig, check_delta, wants_deltas
from tests.support.paths import CONFIGS

MINIMAL = "output_dir: out\nmodel: {path: m}\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("name", ["demo.yaml", "charades_sta.yaml"])
def test_shipped_configs_load(name: str) -> None:
    config = load(CONFIGS / name)
    assert config.rollout.group_size == 8


def test_charades_config_has_the_settings_of_the_paper() -> None:
    config = load(CONFIGS / "charades_sta.yaml")
    assert (config.rollout.group_size, config.rollout.max_tokens) == (8, 1024)
    assert config.model.max_model_len == 8192 + 1024
    assert (config.train.learning_rate, config.train.schedule, config.train.weight_decay) == (2e-6, "linear", 0.0)
    assert (config.train.prompts_per_step, config.data.fps) == (16, 2.0)


def test_overrides_are_yaml_values_merged_into_the_file(minimal: Path) -> None:
    config = load(minimal, ["train.num_steps=7", "train.betas=[0.9, 0.95]", "reward.url=http://host:1", "seed=3"])
    assert (config.train.num_steps, config.train.betas, config.reward.url, config.seed) == (
        7,
        (0.9, 0.95),
        "http://host:1",
        3,
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.num_step=7", "train.num_step: unknown key"),
        ("rollout.group_size=1", "at least 2 rollouts per prompt"),
        ("learner.num_ranks=3", "not a multiple of learner.num_ranks=3"),
        ("learner.sequence_parallel=2", "learner.sequence_parallel=2 does not divide learner.num_ranks=1"),
        (
            "learner={num_ranks: 6, sequence_parallel: 2}",
            "not a multiple of learner.num_ranks=6 / learner.sequence_parallel=2",
        ),
        ("rollout.max_num_seqs=4", "raise max_num_seqs"),
        ("rollout.max_tokens=16384", "leaves no room for a prompt"),
        ("data.max_frames=7", "use an even number"),
        ("data.min_frames=800", "above data.max_frames"),
        ("reward.min_valid=9", "no group could ever be trained on"),
        ("rollout.tensor_parallel_size=2", "set it to 1"),
        ("tracking.registered_model=a/b", "no slash and no colon"),
        ("tracking={registered_model: m, log_model: false}", "set tracking.log_model=true, or remove"),
        ("train.learning_rate=fast", "train.learning_rate"),
        ("seed", "write it as section.key=value"),
        ("seed.x=1", "seed"),
    ],
)
def test_every_contradiction_is_an_error_that_names_field_and_remedy(minimal: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(minimal, [override])
    assert says in str(error.value)


def test_all_problems_are_reported_at_once(minimal: Path) -> None:
    with pytest.raises(ConfigError, match="2 problem") as error:
        load(minimal, ["train.num_step=7", "data.colour=1"])
    assert str(minimal) in str(error.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load(broken)


def test_attention_of_gpus_needs_gpus(minimal: Path) -> None:
    flex = "model.attention=flex_attention"
    assert load(minimal, [flex, "cluster.device=cuda"]).model.attention == "flex_attention"
    with pytest.raises(ConfigError, match=f"{flex} is for GPUs"):
        load(minimal, [flex])


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_attention_of_a_package_that_is_not_installed_is_refused_with_the_remedy(minimal: Path, attention: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.attention.*{attention} needs.*use flex_attention on GPUs, or sdpa"):
        load(minimal, [f"model.attention={attention}", "cluster.device=cuda"])


@pytest.mark.parametrize("other", ["cluster.device=cpu", "rollout.tensor_parallel_size=2", "learner.zero_stage=3"])
def test_sharing_a_gpus_memory_needs_whole_tensors_on_one_gpu(minimal: Path, other: str) -> None:
    ipc = ["weights.transport=ipc", "cluster.device=cuda"]
    assert load(minimal, ipc).weights.transport == "ipc"
    with pytest.raises(ConfigError, match=f"needs {other.partition('=')[0]}=.*Use weights.transport=object_store"):
        load(minimal, [*ipc, other])


@pytest.mark.parametrize("transport", ["collective", "ipc"])
def test_deltas_need_a_transport_that_can_carry_them(transport: str) -> None:
    settings = WeightsConfig(transport=transport, delta="always")
    with pytest.raises(ValueError, match=f"weights.delta=always: with weights.transport={transport} and .*=cuda"):
        check_delta(settings, device="cuda")
    check_delta(settings.model_copy(update={"delta": "auto"}), device="cuda")


def test_deltas_are_sent_where_few_numbers_change_and_the_bytes_travel() -> None:
    def sent(transport: str, delta: str = "auto", dtype: str = "bfloat16", num_nodes: int = 1) -> bool:
        settings = WeightsConfig(transport=transport, delta=delta)
        return wants_deltas(settings, dtype=dtype, device="cpu", num_nodes=num_nodes)

    assert sent("collective")
    assert sent("object_store", num_nodes=2)
    assert not sent("object_store")
    assert not sent("collective", dtype="float32")
    assert sent("object_store", "always", dtype="float32")
    assert not sent("collective", "never")
    assert not sent("ipc", "always", num_nodes=2)


COLOCATED = {"output_dir": "o", "model": {"path": "m"}, "cluster": {"colocate": True}}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"pipeline": {"max_lag": 1}}, "pipeline.max_lag=1 samples while the learner works"),
        ({"rollout": {"num_actors": 2}}, "rollout.num_actors=2 and learner.num_ranks=1 differ"),
        (
            {"rollout": {"tensor_parallel_size": 2}, "cluster": {"colocate": True, "device": "cuda"}},
            "rollout.tensor_parallel_size=2 spreads an engine",
        ),
        ({"weights": {"transport": "collective"}}, "use weights.transport=object_store or ipc"),
        ({"learner": {"zero_stage": 1}}, "learner.zero_stage=1 keeps state that DeepSpeed cannot move"),
        ({"learner": {"zero_stage": 3, "offload": ["parameters"]}}, 'learner.offload has "parameters"'),
    ],
)
def test_what_cannot_be_colocated_is_refused_with_the_remedy(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse({**COLOCATED, **section}, source="here")
    assert "cluster.colocate=true: " in str(raised.value) and said in str(raised.value)


def test_ranks_and_actors_in_pairs_can_be_colocated_at_both_stages_and_by_ipc() -> None:
    pairs = {"rollout": {"num_actors": 2}, "learner": {"num_ranks": 2, "zero_stage": 3, "offload": ["optimizer"]}}
    assert parse({**COLOCATED, **pairs}, source="here").cluster.colocate
    by_ipc = {"cluster": {"colocate": True, "device": "cuda"}, "weights": {"transport": "ipc"}}
    assert parse({**COLOCATED, **by_ipc}, source="here").weights.transport == "ipc"
    assert not parse({"output_dir": "o", "model": {"path": "m"}}, source="here").cluster.colocate

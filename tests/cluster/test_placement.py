"""Placement: what a run reserves, where it goes, and the arithmetic when it does not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import placement
from cluster.placement import Bundle, Demand, Node, PlacementError, demand, logical_cpus, plan_placement
from rlsys.config.run import parse


def make_demand(ranks: int, actors: int, *, tensor_parallel: int = 1, other_cpus: float = 1.0) -> Demand:
    return Demand(
        learner=(Bundle(cpus=1, gpus=1),) * ranks,
        actors=(Bundle(cpus=1, gpus=tensor_parallel),) * actors,
        other_cpus=other_cpus,
    )


def gpu_node(name: str, gpus: int) -> Node:
    return Node(name=name, cpus=32, gpus=gpus)


def test_a_config_reserves_a_bundle_per_process() -> None:
    tree = {
        "output_dir": "out",
        "model": {"path": "m"},
        "data": {"decode_workers": 4},
        "rollout": {"num_actors": 3, "tensor_parallel_size": 2},
        "train": {"prompts_per_step": 16},
        "learner": {"num_ranks": 4},
        "cluster": {"device": "cuda", "cpus_per_rank": 2},
    }
    wanted = demand(parse(tree, source="test"))
    assert wanted.learner == (Bundle(cpus=2, gpus=1),) * 4
    assert wanted.actors == (Bundle(cpus=1, gpus=2),) * 3
    assert wanted.other_cpus == pytest.approx(4 * 0.25 + 0.2)
    assert wanted.gpus == 10


def test_a_judges_model_beside_the_run_wants_its_gpus_on_one_node() -> None:
    tree = {
        "output_dir": "out",
        "model": {"path": "m"},
        "cluster": {"device": "cuda"},
        "reward": {"judge": {"serve_model": "Qwen/Qwen2.5-72B-Instruct", "serve_tensor_parallel_size": 4}},
    }
    wanted = demand(parse(tree, source="test"))
    assert wanted.judge == (Bundle(cpus=1, gpus=4),) and wanted.gpus == 6
    plan_placement(wanted, [gpu_node("a", 2), gpu_node("b", 6)])
    with pytest.raises(PlacementError, match="reward.judge.serve_replicas=1"):
        plan_placement(wanted, [gpu_node("a", 3), gpu_node("b", 3)])


def test_a_judges_model_on_cpu_leaves_room_for_the_reward_servers_on_a_small_machine() -> None:
    tree = {"output_dir": "out", "model": {"path": "m"}, "reward": {"judge": {"serve_model": "runs/tiny"}}}
    wanted = demand(parse(tree, source="test"), parts=("rewards",))
    assert wanted.judge == (Bundle(cpus=2, gpus=0),)
    assert wanted.cpus == pytest.approx(2 + 1 + 2 * 0.1)  # model, its ingress, rules and judge
    assert logical_cpus(wanted, machine_cpus=2) == 4


def test_rewards_elsewhere_and_cpu_runs_reserve_less() -> None:
    tree = {"output_dir": "out", "model": {"path": "m"}, "reward": {"url": "http://rewards:8000"}}
    wanted = demand(parse(tree, source="test"))
    assert wanted.other_cpus == 2 * 0.25
    assert wanted.gpus == 0
    assert wanted.learner[0].resources() == {"CPU": 1.0}


def test_the_upper_bounds_hold_for_what_the_parts_ask_for() -> None:
    from reward_servers.server import app
    from rlsys.data.video import decoders

    assert decoders.CPUS_PER_DECODE <= placement.CPUS_PER_DECODE
    assert app._CPUS_PER_REPLICA <= placement.CPUS_PER_REPLICA


def test_learner_ranks_share_a_node_and_actors_take_the_other() -> None:
    plan = plan_placement(make_demand(4, 4), [gpu_node("a", 8), gpu_node("b", 4)])
    assert plan.learner_nodes == ("b",) * 4
    assert plan.actor_nodes == ("a",) * 4


def test_actors_spread_over_nodes() -> None:
    plan = plan_placement(make_demand(2, 4), [gpu_node("a", 4), gpu_node("b", 4), gpu_node("c", 4)])
    assert len(set(plan.learner_nodes)) == 1
    assert sorted(plan.actor_nodes.count(name) for name in "abc") == [1, 1, 2]


def test_a_learner_wider_than_a_node_uses_few_nodes() -> None:
    plan = plan_placement(make_demand(10, 1, tensor_parallel=4), [gpu_node("a", 8), gpu_node("b", 8)])
    assert sorted(plan.learner_nodes.count(name) for name in "ab") == [2, 8]
    assert plan.actor_nodes[0] != max(set(plan.learner_nodes), key=plan.learner_nodes.count)


def test_an_engine_over_several_gpus_finds_its_node_even_where_the_learner_would_take_it() -> None:
    # the learner alone would choose the only node with eight GPUs
    plan = plan_placement(make_demand(8, 1, tensor_parallel=8), [gpu_node("a", 8), gpu_node("b", 4), gpu_node("c", 4)])
    assert plan.actor_nodes == ("a",)
    assert set(plan.learner_nodes) == {"b", "c"}


def test_a_run_that_does_not_fit_is_told_the_arithmetic() -> None:
    with pytest.raises(PlacementError) as raised:
        plan_placement(make_demand(4, 3, tensor_parallel=2), [gpu_node("10.0.0.1", 8)])
    message = str(raised.value)
    assert "learner.num_ranks=4 x (1 CPU + 1 GPU)" in message
    assert "rollout.num_actors=3 x (1 CPU + 2 GPU)" in message
    assert "= 8 CPU, 10 GPU" in message
    assert "10.0.0.1: 32 CPU, 8 GPU" in message
    assert "rollout.tensor_parallel_size" in message


def test_decoding_needs_room_beside_engines_and_ranks() -> None:
    node = [Node(name="a", cpus=2, gpus=2)]
    assert plan_placement(make_demand(1, 1, other_cpus=0), node)
    with pytest.raises(PlacementError):
        plan_placement(make_demand(1, 1, other_cpus=0.5), node)


def test_a_laptop_counts_as_many_cpus_as_the_run_reserves() -> None:
    wanted = Demand(learner=(Bundle(cpus=1, gpus=0),) * 2, actors=(Bundle(cpus=1, gpus=0),) * 2, other_cpus=0.6)
    assert logical_cpus(wanted, machine_cpus=2) == 5
    assert logical_cpus(wanted, machine_cpus=16) == 16
    assert plan_placement(wanted, [Node(name="laptop", cpus=5, gpus=0)]).learner_nodes == ("laptop", "laptop")


@given(
    ranks=st.integers(1, 12),
    actors=st.integers(1, 6),
    tensor_parallel=st.sampled_from([1, 2, 4]),
    sizes=st.lists(st.integers(0, 8), min_size=1, max_size=5),
)
def test_a_plan_never_gives_a_node_more_than_it_has(
    ranks: int, actors: int, tensor_parallel: int, sizes: list[int]
) -> None:
    nodes = [gpu_node(f"n{index}", gpus) for index, gpus in enumerate(sizes)]
    wanted = make_demand(ranks, actors, tensor_parallel=tensor_parallel)
    try:
        plan = plan_placement(wanted, nodes)
    except PlacementError:
        return
    assert (len(plan.learner_nodes), len(plan.actor_nodes)) == (ranks, actors)
    for node in nodes:
        used = plan.learner_nodes.count(node.name) + tensor_parallel * plan.actor_nodes.count(node.name)
        assert used <= node.gpus


COLOCATED = {
    "output_dir": "out",
    "model": {"path": "m"},
    "rollout": {"num_actors": 4},
    "learner": {"num_ranks": 4},
    "cluster": {"device": "cuda", "cpus_per_rank": 2, "colocate": True},
}


def test_a_rank_and_an_actor_that_share_a_gpu_reserve_one_bundle() -> None:
    wanted = demand(parse(COLOCATED, source="test"))
    assert wanted.learner == (Bundle(cpus=3, gpus=1),) * 4 and wanted.actors == ()
    assert (wanted.rank_share, wanted.actor_share) == (Bundle(cpus=2, gpus=0.5), Bundle(cpus=1, gpus=0.5))
    assert wanted.gpus == 4
    plan = plan_placement(wanted, [gpu_node("a", 3), gpu_node("b", 1)])
    assert plan.learner_nodes == plan.actor_nodes == ("a", "a", "a", "b")
    with pytest.raises(PlacementError, match="within a rank's share") as raised:
        plan_placement(wanted, [gpu_node("a", 3)])
    assert "= 12.7 CPU, 4 GPU" in str(raised.value)


def test_a_learner_without_actors_has_its_gpus_to_itself() -> None:
    wanted = demand(parse(COLOCATED, source="test"), parts=("learner", "decoding"))
    assert wanted.learner == (Bundle(cpus=2, gpus=1),) * 4 and wanted.actor_share is None

"""Which processes of a run need what, and whether and where a cluster has room for them. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlsys.config.run import RunConfig
from rlsys.errors import UserError

CPUS_PER_DECODE = 0.25
"""Ray CPUs of one clip being decoded; no less than what the clip store asks for."""
CPUS_PER_REPLICA = 0.1
"""Ray CPUs of one replica of the reward servers; no less than what they ask for."""
CPUS_PER_MODEL_INGRESS = 1.0
"""Ray CPUs of what Ray Serve LLM puts in front of a judge's model."""
CPUS_PER_MODEL, CPUS_PER_MODEL_ON_CPU = 1.0, 2.0
"""Ray CPUs of a replica of a judge's model: one that Ray Serve LLM reserves for itself, and one of an engine on CPU."""

Parts = tuple[Literal["learner", "actors", "decoding", "rewards"], ...]
EVERYTHING: Parts = ("learner", "actors", "decoding", "rewards")
"""The parts of a training run."""


class PlacementError(UserError):
    """The cluster has no room for the run; the message gives the arithmetic and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """The resources that one process reserves."""

    cpus: float
    gpus: float

    def resources(self) -> dict[str, float]:
        """Return the bundle in Ray's format, without resources of 0, which Ray rejects."""
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster and what Ray may give away of it."""

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a run reserves: a bundle per learner rank and per actor; other_cpus for decoding and rewards.

    actor_share: what of each rank's bundle is an actor's, which shares the rank's GPU; None if actors have their own.
    judge: a bundle per replica of a judge's model that is served beside the run; Ray Serve places these itself.
    """

    learner: tuple[Bundle, ...]
    actors: tuple[Bundle, ...]
    other_cpus: float
    judge: tuple[Bundle, ...] = ()
    actor_share: Bundle | None = None

    @property
    def rank_share(self) -> Bundle:
        """What of a rank's bundle is the rank's own, if it shares it."""
        whole, other = self.learner[0], self.actor_share or Bundle(cpus=0.0, gpus=0.0)
        return Bundle(cpus=whole.cpus - other.cpus, gpus=whole.gpus - other.gpus)

    @property
    def cpus(self) -> float:
        return sum(bundle.cpus for bundle in self.learner + self.actors + self.judge) + self.other_cpus

    @property
    def gpus(self) -> float:
        return sum(bundle.gpus for bundle in self.learner + self.actors + self.judge)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One placement that works: the node of each learner rank and of each actor."""

    learner_nodes: tuple[str, ...]
    actor_nodes: tuple[str, ...]


def demand(config: RunConfig, *, parts: Parts = EVERYTHING) -> Demand:
    """Return what these parts of a run with this config reserve."""
    on_gpu = config.cluster.device == "cuda"
    rank = Bundle(cpus=config.cluster.cpus_per_rank, gpus=1.0 if on_gpu else 0.0)
    engine_gpus = float(config.rollout.tensor_parallel_size) if on_gpu else 0.0
    actor = Bundle(cpus=config.cluster.cpus_per_actor, gpus=engine_gpus)
    decoding = config.data.decode_workers * CPUS_PER_DECODE if "decoding" in parts else 0.0
    rewards, judge = _reward_demand(config) if "rewards" in parts else (0.0, ())
    if config.cluster.colocate and "learner" in parts and "actors" in parts:
        # Ray gives the halves of a bundle's one GPU to the same GPU
        both = Bundle(cpus=rank.cpus + actor.cpus, gpus=rank.gpus)
        return Demand(
            learner=(both,) * config.learner.num_ranks,
            actors=(),
            other_cpus=rewards + decoding,
            judge=judge,
            actor_share=Bundle(cpus=actor.cpus, gpus=rank.gpus / 2),
        )
    return Demand(
        learner=(rank,) * config.learner.num_ranks if "learner" in parts else (),
        actors=(actor,) * config.rollout.num_actors if "actors" in parts else (),
        other_cpus=rewards + decoding,
        judge=judge,
    )


def _reward_demand(config: RunConfig) -> tuple[float, tuple[Bundle, ...]]:
    """Return the CPUs of reward servers and a bundle per replica of a judge's model; nothing if they are elsewhere."""
    reward = config.reward
    if reward.url:
        return 0.0, ()
    cpus = (reward.min_replicas + reward.judge.min_replicas) * CPUS_PER_REPLICA
    if not reward.judge.serve_model:
        return cpus, ()
    on_gpu = config.cluster.device == "cuda"
    gpus = float(reward.judge.serve_tensor_parallel_size) if on_gpu else 0.0
    model = Bundle(cpus=CPUS_PER_MODEL if on_gpu else CPUS_PER_MODEL_ON_CPU, gpus=gpus)
    return cpus + CPUS_PER_MODEL_INGRESS, (model,) * reward.judge.serve_replicas


def logical_cpus(wanted: Demand, machine_cpus: int) -> int:
    """Return the Ray CPUs for a cluster of one machine that is started for the run alone.

    At least what the run reserves: on a laptop the processes then share the cores, as any programs do.
    """
    return max(machine_cpus, math.ceil(wanted.cpus))


def plan_placement(wanted: Demand, nodes: Sequence[Node]) -> Plan:
    """Place learner ranks on as few nodes as possible, and actors where most room is left.

    Raises PlacementError when the processes do not fit. Both orders of placing are tried,
    because an engine over several GPUs needs them on one node, as packed learners like theirs.
    """
    for learner_first in (True, False):
        room = {node.name: [node.cpus, node.gpus] for node in nodes}
        actors: list[str] | None = []
        learner: list[str] | None = []
        if learner_first:
            learner = _pack(wanted.learner, room)
            actors = _spread(wanted.actors, room)
        else:
            actors = _spread(wanted.actors, room)
            learner = _pack(wanted.learner, room)
        judge = _spread(wanted.judge, room)
        if None not in (learner, actors, judge) and sum(left[0] for left in room.values()) >= wanted.other_cpus:
            return Plan(
                learner_nodes=tuple(learner or ()),
                actor_nodes=tuple((learner if wanted.actor_share else actors) or ()),
            )
    raise PlacementError(explain(wanted, nodes))


def explain(wanted: Demand, nodes: Sequence[Node]) -> str:
    """Return the comparison of what the run reserves with what the cluster has."""
    actors = f"  rollout.num_actors={_shown(wanted.actors)}, each on one node"
    if wanted.actor_share:
        actors = f"  rollout.num_actors={len(wanted.learner)}, each within a rank's share (cluster.colocate)"
    lines = [
        "the run does not fit the cluster. It reserves",
        f"  learner.num_ranks={_shown(wanted.learner)}",
        actors,
        *([f"  reward.judge.serve_replicas={_shown(wanted.judge)}, each on one node"] if wanted.judge else []),
        f"  {wanted.other_cpus:g} CPU for decoding (data.decode_workers) and replicas of rules and judge "
        "(reward.min_replicas, reward.judge.min_replicas)",
        f"  = {wanted.cpus:g} CPU, {wanted.gpus:g} GPU",
        f"The cluster has {sum(node.cpus for node in nodes):g} CPU, {sum(node.gpus for node in nodes):g} GPU:",
        *(f"  {node.name}: {node.cpus:g} CPU, {node.gpus:g} GPU" for node in nodes),
        "Add nodes, or lower the counts above, cluster.cpus_per_rank, cluster.cpus_per_actor, "
        "rollout.tensor_parallel_size or reward.judge.serve_tensor_parallel_size.",
    ]
    return "\n".join(lines)


def _pack(bundles: Sequence[Bundle], room: dict[str, list[float]]) -> list[str] | None:
    """Return a node per bundle, using few nodes; None if one does not fit. Takes the resources out of `room`."""
    nodes: list[str] = []
    left = list(bundles)
    while left:
        counts = {name: _how_many_fit(left, free) for name, free in room.items()}
        best = max(counts, key=lambda name: (counts[name], -sum(room[name])), default=None)
        if best is None or not counts[best]:
            return None
        for bundle in left[: counts[best]]:
            _take(bundle, room[best])
            nodes.append(best)
        left = left[counts[best] :]
    return nodes


def _spread(bundles: Sequence[Bundle], room: dict[str, list[float]]) -> list[str] | None:
    """Return a node per bundle, each the node with the fewest so far that has room, then the roomiest; else None."""
    nodes: list[str] = []
    for bundle in bundles:
        fitting = [name for name, free in room.items() if _fits(bundle, free)]
        if not fitting:
            return None
        best = min(fitting, key=lambda name: (nodes.count(name), -room[name][1], -room[name][0]))
        _take(bundle, room[best])
        nodes.append(best)
    return nodes


def _how_many_fit(bundles: Sequence[Bundle], free: Sequence[float]) -> int:
    left = list(free)
    for count, bundle in enumerate(bundles):
        if not _fits(bundle, left):
            return count
        _take(bundle, left)
    return len(bundles)


def _fits(bundle: Bundle, free: Sequence[float]) -> bool:
    return bundle.cpus <= free[0] and bundle.gpus <= free[1]


def _take(bundle: Bundle, free: list[float]) -> None:
    free[0] -= bundle.cpus
    free[1] -= bundle.gpus


def _shown(bundles: Sequence[Bundle]) -> str:
    if not bundles:
        return "0"
    gpus = f" + {bundles[0].gpus:g} GPU" if bundles[0].gpus else ""
    return f"{len(bundles)} x ({bundles[0].cpus:g} CPU{gpus})"

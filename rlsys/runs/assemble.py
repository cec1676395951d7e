"""Turn a config into running components; the only place that does.

The packages of the components (`actors`, `learner`, `reward_servers`, `cluster`) are imported inside functions, so that
importing `rlsys` never loads Ray, torch or vLLM. Commands that drive a single component import it themselves.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from rlsys.config.data import Source, resolved, sources
from rlsys.config.run import ConfigError, LoraConfig, RewardConfig, RunConfig
from rlsys.data.video.budgets import largest_clip_tokens
from rlsys.evaluation.answered import Answered
from rlsys.loop.preparer import Preparer
from rlsys.loop.producer import GroupProducer
from rlsys.models.model_config import patch_shape, read_model_config
from rlsys.models.prompts import PromptBuilder
from rlsys.perception.choose import later_data
from rlsys.planning.plan import later_prompts
from rlsys.runs.colocation import Colocation
from rlsys.runs.inputs.clips import clip_store
from rlsys.runs.records.run_file import name_on_cluster
from rlsys.tasks.table import judged_scores, score_weights
from rlsys.types import Json
from rlsys.weights.delivery import deliver
from rlsys.weights.version import WeightVersion

if TYPE_CHECKING:
    from actors.pool import RolloutPool
    from actors.requests import EngineSpec
    from cluster.launch import Cluster
    from learner.group import LearnerGroup
    from reward_servers.client.client import RewardClient
    from reward_servers.client.transport import ServiceInfo
    from rlsys.data.video.clips import ClipStore

log = logging.getLogger(__name__)


def prompt_builder(config: RunConfig) -> PromptBuilder:
    """Return the prompt builder of the config's model, creating the tiny model first if `model.make_tiny` is set."""
    model = config.model
    if model.make_tiny and not model.path.exists():
        from rlsys.models.tiny import make_tiny

        log.info("creating a tiny model in %s", model.path)
        make_tiny(model.path, seed=config.seed)
    return PromptBuilder(
        model.path,
        max_model_len=model.max_model_len,
        max_tokens=config.rollout.max_tokens,
        dtype=model.dtype,
    )


@contextmanager
def with_model(config: RunConfig) -> Iterator[RunConfig]:
    """Yield the config with a model that exists; a tiny model that a run would create lies in a temporary folder."""
    model = config.model
    if not model.make_tiny or model.path.exists():
        yield config
        return
    from rlsys.models.tiny import make_tiny

    with TemporaryDirectory(prefix="rlsys-check-") as scratch:
        folder = Path(scratch) / model.path.name
        make_tiny(folder, seed=config.seed)
        yield config.model_copy(update={"model": model.model_copy(update={"path": folder})})


class LearnerStack:
    """A cluster with idle learner ranks and decoding processes: all that supervised training needs."""

    def __init__(
        self, prompts: PromptBuilder, clips: ClipStore, learner: LearnerGroup, preparer: Preparer, cluster: Cluster
    ) -> None:
        self.prompts, self.clips, self.learner, self.preparer = prompts, clips, learner, preparer
        self._cluster = cluster

    def relaunch_learner(self, config: RunConfig) -> None:
        """Replace the learner's ranks by new ones, stopping the old, and load the config's model."""
        self.learner.shutdown()
        self.learner = _launch_learner(config, self._cluster)
        self.load_learner(config)

    def load_learner(self, config: RunConfig) -> None:
        """Load the config's model into the learner, with a new optimiser and schedule."""
        from learner.spec import LearnerSpec

        self.learner.load(
            LearnerSpec(
                model=config.model,
                rollout=config.rollout,
                train=config.train,
                algorithm=config.algorithm,
                learner=config.learner,
                weights=config.weights,
                device=config.cluster.device,
                seed=config.seed,
                sync=self._sync(config),
            )
        )

    def begin_learning(self) -> None:
        """Give shared GPUs to the learner; to be called before it is used. Without actors it has its own."""

    def _sync(self, config: RunConfig) -> Literal["full", "adapter"]:
        """Return what the learner publishes, see `LearnerSpec.sync`."""
        return "full"


class Stack(LearnerStack):
    """A learner stack with rollout actors and reward servers, made by `open_stack`."""

    def __init__(self, config: RunConfig, tasks: Collection[str], cluster: Cluster, resources: ExitStack) -> None:
        from reward_servers.client.client import RewardClient
        from reward_servers.client.transport import wait_until_healthy
        from reward_servers.server.auth import token_from_environment

        prompts, clips = prompt_builder(config), clip_store(config)
        self._engines, self._hold_their_own = engine_spec(config, prompts), True
        self.pool = launch_pool(config, self._engines, cluster, resources)
        shares_memory = config.weights.transport == "ipc"
        self.colocation = Colocation(self.pool, shares_memory=shares_memory) if config.cluster.colocate else None
        self.learner = _launch_learner(config, cluster)
        resources.callback(lambda: self.learner.shutdown())  # the current one: a relaunch replaces it
        self.reward_url = config.reward.url or launch_rewards(
            config.reward,
            cluster,
            resources,
            with_judge=needs_judge(tasks, config.reward),
            name=None if cluster.is_local else name_on_cluster(config),
        )
        health = wait_until_healthy(self.reward_url, config.reward.timeout_s)
        _check_served(health, tasks, config.reward, self.reward_url)
        token = token_from_environment(config.reward.token_env)
        self.scorer = RewardClient(
            config.reward,
            self.reward_url,
            token,
            reading=config.answers.reading,
            was_healthy=True,
        )
        self.producer = GroupProducer(clips, prompts, self.pool, self.scorer, config)
        resources.callback(self.producer.close)
        super().__init__(prompts, clips, self.learner, self.producer, cluster)

    def _sync(self, config: RunConfig) -> Literal["full", "adapter"]:
        # an adapter fits only the base model that the engines were started with
        wanted = (config.model.path, config.learner.lora)
        fits = self._hold_their_own and wanted == (self._engines.model.path, self._engines.lora)
        return "adapter" if config.learner.lora.rank and fits else "full"

    def load_learner(self, config: RunConfig) -> None:
        if self.colocation is not None:
            self.colocation.begin_loading()
        super().load_learner(config)

    def begin_learning(self) -> None:
        if self.colocation is not None:
            self.colocation.begin_learning(self.learner)

    def begin_sampling(self) -> None:
        """Give shared GPUs to the engines, with the weights published last; to be called before they sample."""
        if self.colocation is not None:
            self.colocation.begin_sampling(self.learner)

    def publish(self, version: int) -> WeightVersion:
        """Send the learner's weights to every actor and return once each has acknowledged them."""
        self.begin_learning()
        receivers = len(self.pool) if self.colocation else int(self.pool.counters()["rollout/ready_actors"])
        transfer, weights = self.learner.publish(version, receivers)
        self._hold_their_own = self._hold_their_own and weights.kind == "adapter"
        if self.colocation is not None:
            self.colocation.hand_over(self.learner, transfer, weights)
        else:
            deliver(self.learner, self.pool, transfer, weights)
        return weights


@contextmanager
def open_stack(config: RunConfig, tasks: Collection[str]) -> Iterator[Stack]:
    """Start everything that a run needs, on the cluster that the config or the environment names.

    tasks: the tasks of the rows that will be scored; a judge is started only if one of them needs it.
    """
    from cluster.launch import open_cluster

    require_machine(config)
    with ExitStack() as resources:
        cluster = resources.enter_context(open_cluster(config))
        yield Stack(config, tasks, cluster, resources)


@contextmanager
def open_learner_stack(config: RunConfig) -> Iterator[LearnerStack]:
    """Start learner ranks and decoding alone; no resources are reserved for actors or reward servers."""
    from cluster.launch import open_cluster

    require_machine(config)
    with ExitStack() as resources:
        cluster = resources.enter_context(open_cluster(config, parts=("learner", "decoding")))
        prompts, clips = prompt_builder(config), clip_store(config)
        preparer = Preparer(clips, prompts)
        resources.callback(preparer.close)
        stack = LearnerStack(prompts, clips, _launch_learner(config, cluster), preparer, cluster)
        resources.callback(lambda: stack.learner.shutdown())
        yield stack


@contextmanager
def open_scorer(config: RunConfig, tasks: Collection[str]) -> Iterator[RewardClient]:
    """Yield a client of the config's reward servers; without `reward.url` they are started."""
    from cluster.launch import open_cluster
    from reward_servers.client.client import RewardClient
    from reward_servers.client.transport import wait_until_healthy
    from reward_servers.server.auth import token_from_environment

    with ExitStack() as resources:
        url = config.reward.url
        if not url:
            require_machine(config)
            cluster = resources.enter_context(open_cluster(config, parts=("rewards",)))
            url = launch_rewards(config.reward, cluster, resources, with_judge=needs_judge(tasks, config.reward))
        _check_served(wait_until_healthy(url, config.reward.timeout_s), tasks, config.reward, url)
        token = token_from_environment(config.reward.token_env)
        yield RewardClient(config.reward, url, token, reading=config.answers.reading, was_healthy=True)


def machine_problems(config: RunConfig) -> list[str]:
    """Return what keeps a run from starting on this machine: home, temporary files, shared memory, address."""
    from cluster.surroundings import problems

    return list(problems(config.cluster))


def require_machine(config: RunConfig) -> None:
    """Raise ConfigError if no run can start on this machine, or if no cluster answers at the address to attach to."""
    from cluster.address import cluster_address, require_cluster

    if found := machine_problems(config):
        raise ConfigError("\n".join(found))
    if address := cluster_address(config.cluster):
        require_cluster(address)


def launch_pool(config: RunConfig, engines: EngineSpec, cluster: Cluster, resources: ExitStack) -> RolloutPool:
    """Start the rollout actors and register their shutdown with `resources`; the first weights wait for them."""
    from actors.pool import RolloutPool

    pool = RolloutPool.launch(
        engines,
        config.rollout.num_actors,
        options=cluster.actor_options,
        timeout_s=config.rollout.timeout_s,
        start_timeout_s=config.rollout.start_timeout_s,
    )
    resources.callback(pool.shutdown)
    return pool


def _launch_learner(config: RunConfig, cluster: Cluster) -> LearnerGroup:
    from learner.group import LearnerGroup

    return LearnerGroup.launch(
        num_ranks=config.learner.num_ranks,
        device=config.cluster.device,
        threads=config.learner.threads,
        timeout_s=config.learner.timeout_s,
        options=cluster.learner_options,
    )


def all_sources(config: RunConfig) -> tuple[Source, ...]:
    """Return the sources of training rows and of `evaluation.sets`."""
    missing = "evaluation.sets: videos and data.videos are"
    return (*sources(config.data), *(resolved(config.data, one, missing) for one in config.evaluation.sets))


def engine_spec(config: RunConfig, prompts: PromptBuilder) -> EngineSpec:
    """Return the spec from which the actors build their engines."""
    from actors.requests import EngineSpec

    shape, model = patch_shape(config.model.path), read_model_config(config.model.path)
    return EngineSpec(
        model=config.model,
        rollout=config.rollout,
        weights=config.weights,
        lora=config.learner.lora if model.takes_adapters(config.cluster.device) else LoraConfig(),
        device=config.cluster.device,
        weight_update=config.pipeline.weight_update,
        banned_token_ids=prompts.banned_token_ids,
        largest_clip_tokens=max(
            largest_clip_tokens(one, shape)
            for data in (config.data, *(one.data for one in all_sources(config)))
            for one in (data, later_data(data, config.perception))
        ),
        seed=config.seed,
        sleeps=config.cluster.colocate,
    )


def launch_rewards(
    reward: RewardConfig, cluster: Cluster, resources: ExitStack, *, with_judge: bool, name: str | None = None
) -> str:
    """Start the config's reward servers, register their shutdown with `resources`, and return their URL."""
    from reward_servers.server.app import forget, launch, shutdown

    # registered before the launch, because a launch that fails half-way leaves processes behind
    resources.callback(forget if cluster.is_local else shutdown)
    return launch(reward, name, with_judge=with_judge)


def needs_judge(tasks: Iterable[str], reward: RewardConfig) -> bool:
    """Return whether a score with a weight in these tasks comes from the judge."""
    return any(judged_scores(task) & set(score_weights(task, reward)) for task in tasks)


def judge_of(reward: RewardConfig) -> str:
    """Return the kind of judge that the run's own servers would use. Raises ConfigError if none is available."""
    from reward_servers.judging.which_judge import judge_kind

    return judge_kind(reward.judge)


def import_scorers(reward: RewardConfig) -> None:
    """Import the custom scorers as the run's own servers would. Raises ConfigError for one that cannot be used."""
    from reward_servers.scorers.scorer_processes import try_scorers

    try_scorers(reward.scorers)


def judge_captions(config: RunConfig, rows: Sequence[Answered]) -> Iterator[Json]:
    """Yield the judge's verdicts on the first text of each caption, None where it has none; see `Answered.verdicts`."""
    if not rows:
        return
    from reward_servers.offline import score_lines

    lines = (
        json.dumps(
            {
                "task": "captioning",
                "text": row.texts[0],
                "truth": row.truth,
                "question": row.question,
                "scores": ["recall", "precision", "f1"],
            }
        )
        for row in rows
    )
    for result in score_lines(lines, config.reward.judge, config.reward.settings, timeout_s=config.reward.timeout_s):
        yield result.get("evidence")


def _check_served(health: ServiceInfo, tasks: Collection[str], reward: RewardConfig, url: str) -> None:
    """Raise ConfigError for tasks, judged scores or user scorers that the servers lack.

    Without this check they would only show up as missing scores, step after step.
    """
    if unknown := set(tasks) - set(health.tasks):
        raise ConfigError(
            f"reward.url={url}: these servers score {', '.join(health.tasks)} (judge: {health.judge or 'none'}), but "
            f"the data contain {', '.join(sorted(unknown))}; run the same version of rlsys in the job and in its "
            "reward servers, and give them a judge for captions (reward.judge.urls)."
        )
    if health.judge is None and needs_judge(tasks, reward):
        raise ConfigError(
            f"reward.url={url}: reward.weights has a judged score, but these servers have no judge; start them with "
            "reward.judge.urls or reward.judge.serve_model, or remove the score."
        )
    own = {name for task in tasks for name in score_weights(task, reward) if name in reward.scorers}
    if missing := own - set(health.scorers):
        raise ConfigError(
            f"reward.url={url}: these servers do not provide the score {', '.join(sorted(missing))}; start them with "
            "the same reward.scorers."
        )


def multiply_adds(
    config: RunConfig, prompt_tokens: int, grids: Sequence[tuple[int, int, int]], response_tokens: int
) -> float:
    """Return the multiply-adds of a forward and backward pass over a group with its later rounds."""
    from learner.packing.cost import read_cost_model

    cost = read_cost_model(config.model.path, config.learner.frozen_parts)
    first = cost.group(prompt_tokens, grids, [response_tokens] * config.rollout.group_size)
    return first + later_prompts(config) * cost.group(prompt_tokens, grids, [response_tokens])

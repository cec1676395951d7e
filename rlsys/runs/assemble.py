"""The one place that turns a config into running parts.

The packages of the parts (`actors`, `learner`, `reward_servers`, `cluster`) are imported inside functions, so that
importing `rlsys` never loads Ray, torch or vLLM. Commands import the part that they drive by themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from rlsys.config.run import (
    ConfigError,
    RewardConfig,
    RunConfig,
)
from rlsys.loop.producer import GroupProducer, Preparer
from rlsys.models.prompts import PromptBuilder
from rlsys.runs.run_file import name_on_cluster
from rlsys.tasks.table import judged_scores, score_weights
from rlsys.weights.delivery import deliver
from rlsys.weights.version import WeightVersion

if TYPE_CHECKING:
    from actors.requests import EngineSpec
    from cluster.launch import Cluster
    from learner.group import LearnerGroup
    from reward_servers.client.client import RewardClient
    from reward_servers.client.transport import ServiceInfo
    from rlsys.data.video.clips import ClipStore

log = logging.getLogger(__name__)


def prompt_builder(config: RunConfig) -> PromptBuilder:
    """The builder of the config's model; a tiny model is made first where the config asks for one and none is there."""
    model = config.model
    if model.make_tiny and not model.path.exists():
        from rlsys.models.tiny import make_tiny

        log.info("making a tiny Qwen2.5-VL in %s", model.path)
        make_tiny(model.path, seed=config.seed)
    return PromptBuilder(
        model.path,
        think=config.data.think,
        style=config.data.prompt_style,
        max_model_len=model.max_model_len,
        max_tokens=config.rollout.max_tokens,
        dtype=model.dtype,
    )


@contextmanager
def with_model(config: RunConfig) -> Iterator[RunConfig]:
    """The config with a model that is there; one that a run would make is made in a temporary folder meanwhile."""
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
    """A cluster with learner ranks and decoding, up and idle: all that supervised training needs."""

    def __init__(
        self, prompts: PromptBuilder, clips: ClipStore, learner: LearnerGroup, preparer: Preparer, cluster: Cluster
    ) -> None:
        self.prompts, self.clips, self.learner, self.preparer = prompts, clips, learner, preparer
        self._cluster = cluster

    def relaunch_learner(self, config: RunConfig) -> None:
        """New ranks in the places of the old ones, which are ended if they live, with the config's model loaded."""
        self.learner.shutdown()
        self.learner = _launch_learner(config, self._cluster)
        self.load_learner(config)

    def load_learner(self, config: RunConfig) -> None:
        """Give the learner the config's model and a fresh optimiser and schedule."""
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

    def _sync(self, config: RunConfig) -> Literal["full", "adapter"]:
        """What the learner is to publish; see `LearnerSpec.sync`."""
        return "full"


class Stack(LearnerStack):
    """The same with rollout actors and reward servers. Made by `open_stack`."""

    def __init__(self, config: RunConfig, tasks: Collection[str], cluster: Cluster, resources: ExitStack) -> None:
        from actors.pool import RolloutPool
        from reward_servers.client.client import RewardClient
        from reward_servers.client.transport import wait_until_healthy
        from reward_servers.server.auth import token_from_environment
        from rlsys.data.video.clips import ClipStore

        prompts, clips = prompt_builder(config), ClipStore(config.data)
        self._engines, self._hold_their_own = engine_spec(config, prompts), True
        self.pool = RolloutPool.launch(
            self._engines,
            config.rollout.num_actors,
            options=cluster.actor_options,
            timeout_s=config.rollout.timeout_s,
            start_timeout_s=config.rollout.start_timeout_s,
        )
        resources.callback(self.pool.shutdown)
        self.learner = _launch_learner(config, cluster)
        resources.callback(lambda: self.learner.shutdown())  # whichever it is by then
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
            think=config.data.think,
            reading=config.answers.reading,
            was_healthy=True,
        )
        self.producer = GroupProducer(clips, prompts, self.pool, self.scorer, config)
        resources.callback(self.producer.close)
        super().__init__(prompts, clips, self.learner, self.producer, cluster)

    def _sync(self, config: RunConfig) -> Literal["full", "adapter"]:
        # an adapter changes the model that the engines were started with, and no other
        wanted = (config.model.path, config.learner.lora)
        fits = self._hold_their_own and wanted == (self._engines.model.path, self._engines.lora)
        return "adapter" if config.learner.lora.rank and fits else "full"

    def publish(self, version: int) -> WeightVersion:
        """Bring the learner's weights to every actor; returns once each has acknowledged them."""
        receivers = int(self.pool.counters()["rollout/ready_actors"])
        transfer, weights = self.learner.publish(version, receivers)
        self._hold_their_own = self._hold_their_own and weights.kind == "adapter"
        deliver(self.learner, self.pool, transfer, weights)
        return weights


@contextmanager
def open_stack(config: RunConfig, tasks: Collection[str]) -> Iterator[Stack]:
    """Everything a run needs, started on the cluster that the config or the environment names.

    tasks: of the rows that will be scored; the judge is started when one of them needs it.
    """
    from cluster.launch import open_cluster

    with ExitStack() as resources:
        cluster = resources.enter_context(open_cluster(config))
        yield Stack(config, tasks, cluster, resources)


@contextmanager
def open_learner_stack(config: RunConfig) -> Iterator[LearnerStack]:
    """Learner ranks and decoding alone: no room is reserved for actors, and none for reward servers."""
    from cluster.launch import open_cluster
    from rlsys.data.video.clips import ClipStore

    with ExitStack() as resources:
        cluster = resources.enter_context(open_cluster(config, parts="learner"))
        prompts, clips = prompt_builder(config), ClipStore(config.data)
        preparer = Preparer(clips, prompts)
        resources.callback(preparer.close)
        stack = LearnerStack(prompts, clips, _launch_learner(config, cluster), preparer, cluster)
        resources.callback(lambda: stack.learner.shutdown())
        yield stack


@contextmanager
def open_scorer(config: RunConfig, tasks: Collection[str]) -> Iterator[RewardClient]:
    """A client of the config's reward servers, which are started where it names none."""
    from cluster.launch import open_cluster
    from reward_servers.client.client import RewardClient
    from reward_servers.client.transport import wait_until_healthy
    from reward_servers.server.auth import token_from_environment

    with ExitStack() as resources:
        url = config.reward.url
        if not url:
            cluster = resources.enter_context(open_cluster(config, parts="rewards"))
            url = launch_rewards(config.reward, cluster, resources, with_judge=needs_judge(tasks, config.reward))
        _check_served(wait_until_healthy(url, config.reward.timeout_s), tasks, config.reward, url)
        token = token_from_environment(config.reward.token_env)
        yield RewardClient(
            config.reward, url, token, think=config.data.think, reading=config.answers.reading, was_healthy=True
        )


def _launch_learner(config: RunConfig, cluster: Cluster) -> LearnerGroup:
    from learner.group import LearnerGroup

    return LearnerGroup.launch(
        num_ranks=config.learner.num_ranks,
        device=config.cluster.device,
        threads=config.learner.threads,
        timeout_s=config.learner.timeout_s,
        options=cluster.learner_options,
    )


def engine_spec(config: RunConfig, prompts: PromptBuilder) -> EngineSpec:
    """How the actors build their engines."""
    from actors.requests import EngineSpec

    return EngineSpec(
        model=config.model,
        rollout=config.rollout,
        weights=config.weights,
        lora=config.learner.lora,
        device=config.cluster.device,
        weight_update=config.pipeline.weight_update,
        banned_token_ids=prompts.banned_token_ids,
        seed=config.seed,
    )


def launch_rewards(
    reward: RewardConfig, cluster: Cluster, resources: ExitStack, *, with_judge: bool, name: str | None = None
) -> str:
    """Start the config's reward servers, which end with `resources`, and return their URL."""
    from reward_servers.server.app import forget, launch, shutdown

    # registered before the launch, which may fail half-way and leave something behind
    resources.callback(forget if cluster.is_local else shutdown)
    return launch(reward, name, with_judge=with_judge)


def needs_judge(tasks: Iterable[str], reward: RewardConfig) -> bool:
    """Whether a score that is asked for is the judge's."""
    return any(judged_scores(task) & set(score_weights(task, reward)) for task in tasks)


def judge_of(reward: RewardConfig) -> str:
    """Kind of judge that the run's own servers would have. ConfigError when they cannot have one."""
    from reward_servers.judging.which_judge import judge_kind

    return judge_kind(reward.judge)


def import_scorers(reward: RewardConfig) -> None:
    """Import the custom scorers as the run's own servers would. Raises ConfigError for one that cannot be used."""
    if reward.scorers:
        from reward_servers.scorers.user_scorers import load_user_scorers

        load_user_scorers(reward.scorers)


def _check_served(health: ServiceInfo, tasks: Collection[str], reward: RewardConfig, url: str) -> None:
    """What the servers do not know would only be missing data, step after step."""
    if unknown := set(tasks) - set(health.tasks):
        raise ConfigError(
            f"reward.url={url}: these servers score {', '.join(health.tasks)} (judge: {health.judge or 'none'}), and "
            f"the data have {', '.join(sorted(unknown))}; run the same version of rlsys in the job and in its reward "
            "servers, and give them a judge for captions (reward.judge.urls)."
        )
    if health.judge is None and needs_judge(tasks, reward):
        raise ConfigError(f"reward.url={url}: reward.weights asks for a judged score, and these servers have no judge.")
    own = {name for task in tasks for name in score_weights(task, reward) if name in reward.scorers}
    if missing := own - set(health.scorers):
        raise ConfigError(
            f"reward.url={url}: these servers have no score {', '.join(sorted(missing))}; start them with the same "
            "reward.scorers."
        )


def multiply_adds(
    config: RunConfig, prompt_tokens: int, grids: Sequence[tuple[int, int, int]], response_tokens: int
) -> float:
    """Of a forward and backward pass over a group of this size, as `learner.cost` counts them."""
    from learner.packing.cost import read_cost_model

    cost = read_cost_model(config.model.path, config.learner.frozen_parts)
    return cost.group(prompt_tokens, grids, [response_tokens] * config.rollout.group_size)

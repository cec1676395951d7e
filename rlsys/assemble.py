"""The one place that turns a config into running parts.

The packages of the parts (`actors`, `learner`, `reward_servers`, `cluster`) are imported
inside functions, so that importing `rlsys` never loads Ray, torch or vLLM.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsys.config import ConfigError, DataConfig, RewardConfig, RunConfig, load, parse
from rlsys.data.annotations import load as load_annotations
from rlsys.data.formats import FORMATS
from rlsys.experience import Experience
from rlsys.models.prompts import PromptBuilder
from rlsys.types import PromptItem, WeightVersion

if TYPE_CHECKING:
    from actors.requests import EngineSpec
    from cluster.launch import Cluster

log = logging.getLogger(__name__)


def load_items(data: DataConfig, annotations: Path, videos: Path) -> tuple[PromptItem, ...]:
    """The usable rows of an annotation file. Raises ConfigError when none is left."""
    loaded = load_annotations(annotations, videos=videos, data=data)
    if loaded.dirty:
        log.warning("%s: %d dirty rows; `rlsys data check` lists them", annotations, len(loaded.dirty))
    if not loaded.items:
        raise ConfigError(f"{annotations}: no usable row; `rlsys data check --format {data.format}` says why.")
    return loaded.items


def training_items(config: RunConfig) -> tuple[PromptItem, ...]:
    """The rows to train on."""
    if config.data.annotations is None or config.data.videos is None:
        raise ConfigError(
            "data.annotations and data.videos say what to train on and are not set; give both, "
            "for example data.annotations=FILE.json data.videos=FOLDER."
        )
    return load_items(config.data, config.data.annotations, config.data.videos)


def held_out_items(config: RunConfig) -> tuple[PromptItem, ...]:
    """The rows to evaluate on; () when the config names none."""
    if config.evaluation.annotations is None:
        return ()
    videos = config.evaluation.videos or config.data.videos
    if videos is None:
        raise ConfigError("evaluation.annotations is set, but neither evaluation.videos nor data.videos is.")
    items = load_items(config.data, config.evaluation.annotations, videos)
    return items[: config.evaluation.num_prompts or None]


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


class Stack:
    """A cluster with learner ranks, rollout actors and reward servers, up and idle. Made by `open_stack`."""

    def __init__(self, config: RunConfig, cluster: Cluster, resources: ExitStack) -> None:
        from actors.pool import RolloutPool
        from learner.group import LearnerGroup
        from reward_servers.auth import token_from_environment
        from reward_servers.client import RewardClient, wait_until_healthy
        from rlsys.data.clips import ClipStore

        self.prompts = prompt_builder(config)
        self.clips = ClipStore(config.data)
        self.pool = RolloutPool.launch(
            engine_spec(config, self.prompts),
            config.rollout.num_actors,
            options=cluster.actor_options,
            timeout_s=config.rollout.timeout_s,
            start_timeout_s=config.rollout.start_timeout_s,
        )
        resources.callback(self.pool.shutdown)
        with ThreadPoolExecutor() as threads:  # learner and reward servers spend seconds waiting for processes
            learner = threads.submit(
                LearnerGroup.launch,
                num_ranks=config.learner.num_ranks,
                device=config.cluster.device,
                threads=config.learner.threads,
                timeout_s=config.learner.timeout_s,
                options=cluster.learner_options,
            )
            self.reward_url = config.reward.url or _launch_rewards(config.reward, cluster, resources)
            tasks = wait_until_healthy(self.reward_url, config.reward.timeout_s)
            self.learner = learner.result()
            resources.callback(self.learner.shutdown)
        _check_served(tasks, config.data.format, self.reward_url)
        token = token_from_environment(config.reward.token_env)
        scorer = RewardClient(config.reward, self.reward_url, token, think=config.data.think)
        self.experience = Experience(self.clips, self.prompts, self.pool, scorer)
        resources.callback(self.experience.close)

    def load_learner(self, config: RunConfig) -> None:
        """Give the learner the config's model and a fresh optimiser and schedule."""
        from learner.spec import LearnerSpec

        self.learner.load(
            LearnerSpec(
                model_path=config.model.path,
                dtype=config.model.dtype,
                attention=config.model.attention,
                train=config.train,
                learner=config.learner,
                device=config.cluster.device,
                seed=config.seed,
            )
        )

    def publish(self, version: int) -> WeightVersion:
        """Bring the learner's weights to every actor; returns once each has acknowledged them."""
        payload, weights = self.learner.publish(version)
        self.pool.load_weights(payload, weights)
        return weights


@contextmanager
def open_stack(config: RunConfig) -> Iterator[Stack]:
    """Everything a run needs, started on the cluster that the config or the environment names."""
    from cluster.launch import open_cluster

    with ExitStack() as resources:
        cluster = resources.enter_context(open_cluster(config))
        yield Stack(config, cluster, resources)


def engine_spec(config: RunConfig, prompts: PromptBuilder) -> EngineSpec:
    """How the actors build their engines."""
    from actors.requests import EngineSpec

    return EngineSpec(
        model_path=str(config.model.path),
        dtype=config.model.dtype,
        max_model_len=config.model.max_model_len,
        max_num_seqs=config.rollout.max_num_seqs,
        kv_cache_mib=config.rollout.kv_cache_mib,
        threads=config.rollout.threads,
        tensor_parallel_size=config.rollout.tensor_parallel_size,
        gpu_memory_utilization=config.rollout.gpu_memory_utilization,
        device=config.cluster.device,
        banned_token_ids=prompts.banned_token_ids,
        seed=config.seed,
    )


def _launch_rewards(reward: RewardConfig, cluster: Cluster, resources: ExitStack) -> str:
    from reward_servers.app import forget, launch, shutdown

    # registered before the launch, which may fail half-way and leave something behind
    resources.callback(forget if cluster.is_local else shutdown)
    return launch(reward)


def _check_served(tasks: Sequence[str], data_format: str, url: str) -> None:
    """A task that the servers do not know would only be missing data, step after step."""
    task = FORMATS[data_format].task
    if task not in tasks:
        raise ConfigError(
            f"reward.url={url}: these servers score {', '.join(tasks)}, and data.format={data_format} needs {task}; "
            "run the same version of rlsys in the job and in its reward servers."
        )


def score_lines(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Scores of JSON lines, with the functions of the reward servers and without a cluster."""
    from reward_servers.offline import score_lines as score_each

    return score_each(lines)


def submit_job(config: Path, overrides: Sequence[str], address: str, follow: bool) -> int:
    """Send a run to a cluster; returns the exit code for the shell."""
    from cluster.submit import submit

    return submit(config, overrides, address=address, follow=follow)


def serve_rewards(config: Path | None, overrides: Sequence[str]) -> None:
    """Run the reward servers until the process is interrupted."""
    from cluster.launch import open_cluster

    run = load(config, overrides) if config else parse({"output_dir": ".", "model": {"path": "."}}, source="defaults")
    with ExitStack() as resources:
        cluster = resources.enter_context(open_cluster(run, parts=False))
        log.info("reward.url=%s  (interrupt to end)", _launch_rewards(run.reward, cluster, resources))
        with suppress(KeyboardInterrupt):
            threading.Event().wait()

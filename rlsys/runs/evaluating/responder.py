"""Start what answers an evaluation: rollout actors without a learner, or the client of a served model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlsys import env
from rlsys.config.run import ConfigError, LoraConfig, RunConfig
from rlsys.data.video.clips import ClipStore
from rlsys.evaluation.answering.endpoint import EndpointResponder
from rlsys.evaluation.answering.responders import ActorResponder, Responder
from rlsys.loop.producer import Answerer
from rlsys.models.adapter import Adapter, read_adapter
from rlsys.models.folder import content_digest
from rlsys.models.model_config import ModelFolderError, read_model_config
from rlsys.models.prompts import PromptBuilder
from rlsys.runs.assemble import engine_spec, launch_pool, prompt_builder, require_machine
from rlsys.runs.evaluating.equal_tokens import with_largest_look
from rlsys.runs.inputs.clips import clip_store
from rlsys.tasks.table import prompt_text
from rlsys.weights.manifest import Bucket, WeightTransfer, digest_of, manifest_of
from rlsys.weights.version import WeightVersion

if TYPE_CHECKING:
    from actors.pool import RolloutPool

log = logging.getLogger(__name__)


@contextmanager
def open_responder(config: RunConfig, adapter: Path | None = None) -> Iterator[Responder]:
    """Start what answers an evaluation: actors with the model of `model.path`, or a client of `evaluation.endpoint`.

    adapter: a folder with a LoRA adapter for the model, or None.
    """
    from cluster.launch import open_cluster

    require_machine(config)
    with ExitStack() as resources:
        if config.evaluation.endpoint.url is not None:
            resources.enter_context(open_cluster(config, parts=("decoding",)))
            remote = _endpoint_responder(config)
            resources.callback(remote.close)
            yield remote
            return
        prompts, pool = resources.enter_context(open_answering_pool(config, adapter))
        answerer = Answerer(clip_store(config), prompts, pool)
        resources.callback(answerer.close)
        yield ActorResponder(answerer, pool.raise_if_weights_gone)


@contextmanager
def open_answering_pool(config: RunConfig, adapter: Path | None = None) -> Iterator[tuple[PromptBuilder, RolloutPool]]:
    """Start actors that hold the model of `model.path`, with the adapter if there is one, and no learner.

    Raises ConfigError if engines cannot compute this model with an adapter.
    """
    from cluster.launch import open_cluster

    if adapter and not read_model_config(config.model.path).takes_adapters(config.cluster.device):
        kind = "experts" if read_model_config(config.model.path).experts else "linear attention"
        raise ConfigError(
            f"--adapter {adapter}: on CPU vLLM cannot compute the {kind} of {config.model.path} beside an adapter; "
            "merge it into the model (peft's merge_and_unload) and evaluate that with --model."
        )
    with ExitStack() as resources:
        cluster = resources.enter_context(open_cluster(config, parts=("actors", "decoding")))
        low_rank = read_adapter(adapter, config.model.dtype) if adapter else None
        if low_rank:
            config = with_adapter(config, low_rank)
        prompts = prompt_builder(config)
        pool = launch_pool(config, engine_spec(with_largest_look(config), prompts), cluster, resources)
        load_own_weights(pool, config, low_rank)
        yield prompts, pool


def _endpoint_responder(config: RunConfig) -> EndpointResponder:
    endpoint = config.evaluation.endpoint
    return EndpointResponder(
        ClipStore(config.data),
        lambda item: prompt_text(item, think=item.think, style=item.style),
        endpoint,
        env.secret(endpoint.api_key_env),
        tells_seconds=_tells_seconds(config),
    )


def _tells_seconds(config: RunConfig) -> bool:
    """Return whether the family of `model.path` is told the times of frames; its config.json is enough."""
    try:
        return read_model_config(config.model.path).family.tells_seconds
    except ModelFolderError as error:
        log.info("frames are sent at an even rate, because model.path does not say what the endpoint serves: %s", error)
        return False


def load_own_weights(pool: RolloutPool, config: RunConfig, adapter: Adapter | None) -> None:
    """Have the actors answer with the model that they were started with, and with the adapter, if there is one."""
    if adapter is None:
        digest = content_digest(config.model.path)
        own = WeightVersion(version=0, transport="folder", num_tensors=0, num_bytes=0, digest=digest, kind="own")
        pool.load_weights(WeightTransfer(buckets=(), timeout_s=config.rollout.timeout_s), own)
        return
    import ray

    manifest = manifest_of(adapter.tensors)
    num_bytes = sum(tensor.data.nbytes for tensor in adapter.tensors.values())
    bucket = Bucket(names=tuple(adapter.tensors), num_bytes=num_bytes, stored=ray.put(dict(adapter.tensors)))
    version = WeightVersion(
        version=0,
        transport="object_store",
        num_tensors=len(manifest),
        num_bytes=num_bytes,
        digest=digest_of(manifest),
        kind="adapter",
        manifest=manifest,
    )
    pool.load_weights(WeightTransfer(buckets=(bucket,), timeout_s=config.rollout.timeout_s), version)


def with_adapter(config: RunConfig, adapter: Adapter) -> RunConfig:
    """Return the config with `learner.lora` set as the adapter needs it of its engines."""
    lora = LoraConfig(rank=adapter.rank, alpha=adapter.alpha, targets=adapter.targets)
    return config.model_copy(update={"learner": config.learner.model_copy(update={"lora": lora})})

"""What each worker process of an engine does with weights and caches; `collective_rpc` calls these functions there.

A module of vLLM is rebuilt once all of its tensors have come. Tensors are compared as soon as their module is, with
the bytes that were sent, and only then let go.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch

from actors.weights.experts import PackedAgain
from actors.weights.held import HeldPart, held_parts, stale_adapter
from actors.weights.placed import PlacedSums, placed_sums
from actors.weights.sharing import SharedTensors
from rlsys.weights.manifest import Manifest, TensorEntry, TensorSpec
from rlsys.weights.tensors import entries_of

Sent: TypeAlias = Mapping[str, torch.Tensor] | SharedTensors
"""Whole tensors by name: themselves if the worker lives in the engine's process, else in shared memory."""
Worker: TypeAlias = Any
"""vLLM's `Worker`."""


@dataclass(kw_only=True)
class Received:
    """What a worker was sent.

    manifest: of the version that is being loaded.  waiting: sent, but not compared yet.  compared: by name, whether
    the worker holds it.  known: checksums of the worker's part of a tensor that was found to be this entry's.
    """

    manifest: Manifest = field(default_factory=dict)
    waiting: dict[str, torch.Tensor] = field(default_factory=dict)
    compared: dict[str, bool] = field(default_factory=dict)
    known: dict[str, tuple[TensorEntry, tuple[str, ...]]] = field(default_factory=dict)
    experts: PackedAgain = field(default_factory=PackedAgain)


_RECEIVED: WeakKeyDictionary[torch.nn.Module, Received] = WeakKeyDictionary()


def _received(worker: Worker) -> Received:
    return _RECEIVED.setdefault(worker.get_model(), Received())


def _opened(sent: Sent) -> Mapping[str, torch.Tensor]:
    return sent.open() if isinstance(sent, SharedTensors) else sent


def begin(worker: Worker, manifest: Manifest) -> None:
    """Let the model take tensors; what follows changes it."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload.layerwise import initialize_layerwise_reload

    received = _received(worker)
    received.manifest, received.waiting, received.compared = manifest, {}, {}
    received.experts.begin(worker.get_model())
    with set_current_vllm_config(worker.vllm_config):
        initialize_layerwise_reload(worker.get_model())


def load(worker: Worker, sent: Sent) -> None:
    """Load whole tensors, or this worker's parts of them, and compare those of modules that are complete."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    received, tensors = _received(worker), _opened(sent)
    with set_current_vllm_config(worker.vllm_config), _quiet_about_the_rest():
        worker.get_model().load_weights(iter(tensors.items()))
    received.waiting |= tensors
    for part in _waiting_parts(worker, received):
        if not get_layerwise_info(part.layer).can_load():  # it has all of its tensors
            _compare(received, part)


def finish(worker: Worker) -> None:
    """Complete the modules that are not yet, drop what was computed with the old weights, and compare the rest."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload.layerwise import finalize_layerwise_reload

    received = _received(worker)
    with set_current_vllm_config(worker.vllm_config), _quiet_about_the_rest():
        finalize_layerwise_reload(worker.get_model(), worker.model_config)
    received.experts.finish()
    worker.model_runner.reset_lora_state()
    worker.model_runner.reset_encoder_cache()
    worker.model_runner.reset_mm_cache()
    for part in _waiting_parts(worker, received):
        _compare(received, part)
    received.waiting = {}


def _waiting_parts(worker: Worker, received: Received) -> list[HeldPart]:
    """Return what the model holds of the tensors that wait; a list, because comparing takes them out."""
    if not received.waiting:
        return []
    specs = {name: entry.spec for name, entry in received.manifest.items()}
    return list(held_parts(worker.get_model(), specs, received.waiting))


def _compare(received: Received, part: HeldPart) -> None:
    sent, entry = received.waiting.pop(part.name), received.manifest[part.name]
    found = part.checksums()
    is_held = found == (entry.checksum,) if part.is_identified_by(entry) else part.equals(sent)
    received.compared[part.name] = is_held
    if is_held:
        received.known[part.name] = entry, found


def check(worker: Worker, manifest: Manifest) -> tuple[int, list[str], dict[str, PlacedSums]]:
    """Compare what the model holds with a manifest.

    Returns how many tensors were compared, which of them differ, and the sums of those that a worker cannot compare
    alone: split ones that never came through `load`.
    """
    received = _received(worker)
    compared, received.compared = received.compared, {}
    num_read, stale, unknown = 0, [], {}
    for part in held_parts(worker.get_model(), {name: entry.spec for name, entry in manifest.items()}):
        name, entry = part.name, manifest[part.name]
        known, wanted = received.known.get(name, (None, ()))
        if name in compared:
            is_held = compared[name]
        elif known == entry:
            is_held = part.checksums() == wanted
        elif part.is_identified_by(entry):
            is_held = part.checksums() == (entry.checksum,)
        elif part.shard.is_whole:
            dtype = getattr(torch, entry.spec.dtype)
            is_held = all(found == entry for found in entries_of([held.to(dtype) for held in part.readings]))
        else:
            unknown[name] = placed_sums(part, entry)
            continue
        num_read += 1
        if not is_held:
            stale.append(name)
    return num_read, stale, unknown


def check_sent(worker: Worker, sent: Sent, manifest: Manifest) -> list[str]:
    """Return which of the tensors the model holds other values of; the others are known from now on."""
    received, tensors = _received(worker), _opened(sent)
    received.manifest, received.waiting, received.compared = manifest, dict(tensors), {}
    for part in _waiting_parts(worker, received):
        _compare(received, part)
    compared, received.compared, received.waiting = received.compared, {}, {}
    return [name for name, is_held in compared.items() if not is_held]


def differences(worker: Worker, sent: Sent, specs: Mapping[str, TensorSpec]) -> dict[str, float]:
    """Return by name how far the model is from the tensors at most, of those that can be read."""
    tensors = _opened(sent)
    return {part.name: part.difference(tensors[part.name]) for part in held_parts(worker.get_model(), specs, tensors)}


def check_adapter(worker: Worker, sent: Sent, scale: float) -> tuple[int, list[str]]:
    """Return how many matrices of the adapter are held, and which of them differ from those sent."""
    return stale_adapter(worker.get_model(), _opened(sent), scale)


def release_cache(worker: Worker) -> list[int]:
    """Free the cache of keys and values of a worker on CPU and return the bytes of its parts."""
    sizes = []
    for cache in worker.model_runner.kv_caches:
        storage = cache.untyped_storage()
        sizes.append(storage.nbytes())  # 0 if an earlier part has the same memory
        storage.resize_(0)
    return sizes


def restore_cache(worker: Worker, sizes: Sequence[int]) -> None:
    """Give the cache its memory again, with zeros in it: a NaN left there would spread through masked products."""
    for cache, size in zip(worker.model_runner.kv_caches, sizes, strict=True):
        if size:
            cache.untyped_storage().resize_(size)
            cache.zero_()


@contextmanager
def _quiet_about_the_rest() -> Iterator[None]:
    """Silence the warnings that vLLM gives, module by module, of all that an update leaves as it is."""
    logger = logging.getLogger("vllm.model_executor.model_loader.reload.layerwise")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

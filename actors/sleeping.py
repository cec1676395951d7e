"""The sleep of an engine whose GPU a learner rank uses meanwhile (`cluster.colocate`), by vLLM's own interface.

Level 1 of vLLM's sleep moves the weights to host memory, level 2 drops them; both free the cache of keys and values. A
CPU worker of vLLM does neither: its cache is emptied here, and its weights stay where they are but count as dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from actors.weights import in_worker
from rlsys.clock import Turn

WEIGHTS, CACHE = "weights", "kv_cache"
"""What vLLM calls the two kinds of memory."""


class Sleeper(Protocol):
    """The part of vLLM's `LLMEngine` that is used here."""

    def sleep(self, level: int = 1, mode: Any = "abort") -> None: ...

    def wake_up(self, tags: list[str] | None = None) -> bool: ...

    def collective_rpc(self, method: Callable[..., Any], *, args: tuple[Any, ...] = ()) -> list[Any]: ...


class EngineSleep:
    """What of an engine is asleep. It wakes in two parts, in either order: its weights come, and it may sample.

    keeps_weights: to host memory, for an engine that is sent adapters alone; otherwise the next weights must be whole.
    """

    def __init__(self, engine: Sleeper, *, device: str, keeps_weights: bool) -> None:
        self._engine, self._is_on_cpu = engine, device == "cpu"
        self._level = 1 if keeps_weights else 2
        self._asleep: set[str] = set()
        self._may_sample = True
        self._cache_bytes: list[int] = []
        self._woke_s = time.monotonic()

    @property
    def is_asleep(self) -> bool:
        """Whether the engine cannot sample."""
        return bool(self._asleep)

    @property
    def drops_weights(self) -> bool:
        """Whether the weights are gone after a sleep."""
        return self._level == 2

    def fall_asleep(self) -> Turn | None:
        """Free the memory, and return since when it was in use; None if the engine slept already."""
        self._may_sample = False
        if WEIGHTS in self._asleep:
            return None
        if CACHE in self._asleep:  # vLLM cannot free twice what it has freed
            self._wake_cache()
        self._engine.sleep(level=self._level, mode="abort")
        if self._is_on_cpu:
            (self._cache_bytes,) = self._engine.collective_rpc(in_worker.release_cache)
        self._asleep = {WEIGHTS, CACHE}
        return Turn(start_s=self._woke_s, end_s=time.monotonic())

    def wake_weights(self) -> None:
        """Make room for weights, and bring back those that were kept."""
        if WEIGHTS in self._asleep:
            self._woke_s = time.monotonic()
            self._engine.wake_up([WEIGHTS])
            self._asleep.remove(WEIGHTS)

    def let_sample(self) -> None:
        """Let the engine sample, from now on or as soon as it has weights."""
        self._may_sample = True
        self.wake_cache_if_due()

    def wake_cache_if_due(self) -> None:
        """Bring back the cache if there are weights and the engine may sample."""
        if self._may_sample and self._asleep == {CACHE}:
            self._wake_cache()

    def _wake_cache(self) -> None:
        if self._is_on_cpu:
            self._engine.collective_rpc(in_worker.restore_cache, args=(self._cache_bytes,))
        self._engine.wake_up([CACHE])
        self._asleep.remove(CACHE)

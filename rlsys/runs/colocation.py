"""Turns of learner ranks and engines at the GPUs that they share (`cluster.colocate`).

Either the engines sleep and the learner has its state on the GPU, or that state is in host memory and the engines are
awake. The weights change hands in between.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Protocol

from rlsys.clock import Turn
from rlsys.weights import delivery
from rlsys.weights.manifest import WeightTransfer
from rlsys.weights.version import WeightVersion

log = logging.getLogger(__name__)


class Learner(delivery.Learner, Protocol):
    """The learner's ranks; see `learner.group.LearnerGroup`."""

    def offload(self, *, keeps_parameters: bool = False) -> Sequence[Turn]: ...

    def reload(self) -> None: ...


class Pool(delivery.Pool, Protocol):
    """The engines; see `actors.pool.RolloutPool`."""

    def sleep(self) -> Sequence[Turn]: ...

    def wake(self) -> None: ...


class Colocation:
    """Whose turn it is. At the start it is the engines', which need an empty GPU to start on.

    shares_memory: whether engines read new weights where the learner has them (`weights.transport: ipc`). Then both
    copies of the weights are on the GPU for a moment.
    """

    def __init__(self, pool: Pool, *, shares_memory: bool) -> None:
        self._pool, self._shares_memory = pool, shares_memory
        self._turn: Literal["engines", "learner"] = "engines"
        self._newest: tuple[WeightTransfer, WeightVersion] | None = None

    def begin_loading(self) -> None:
        """Give the GPUs to a learner that will load its model anew. Also ends a turn that failed half-way."""
        _note(self._pool.sleep())
        self._turn = "learner"

    def begin_learning(self, learner: Learner) -> None:
        """Give the GPUs to the learner, if it does not have them."""
        if self._turn == "engines":
            _note(self._pool.sleep())
            learner.reload()
            self._turn = "learner"

    def hand_over(self, learner: Learner, transfer: WeightTransfer, version: WeightVersion) -> None:
        """Give the GPUs to the engines, with the weights that the learner has just published."""
        self._newest = transfer, version
        self._begin_sampling(learner, transfer, version, keeps_parameters=self._shares_memory)

    def begin_sampling(self, learner: Learner) -> None:
        """Give the GPUs to the engines, if they do not have them, with the weights published last.

        Those come from the object store: the learner may have changed its own since, or have moved them.
        """
        if self._turn == "engines":
            return
        if self._newest is None:
            raise RuntimeError("no weights were published yet; engines cannot sample before that.")
        self._begin_sampling(learner, *self._newest, keeps_parameters=False)

    def _begin_sampling(
        self, learner: Learner, transfer: WeightTransfer, version: WeightVersion, *, keeps_parameters: bool
    ) -> None:
        _note(learner.offload(keeps_parameters=keeps_parameters))
        delivery.deliver(learner, self._pool, transfer, version)
        if keeps_parameters:
            _note(learner.offload())
        self._pool.wake()
        self._turn = "engines"


def _note(turns: Sequence[Turn]) -> None:
    for turn in turns:
        log.info("%s held its GPU from %.3f s to %.3f s", turn.holder, turn.start_s, turn.end_s)

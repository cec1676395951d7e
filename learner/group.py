"""The learner's ranks behind one object, through which callers use them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from learner.checkpoint_layout import layout_of, must_reshard, read_layout
from learner.failures import LearnerError, verdict
from learner.loss.metrics import RankStats, combine
from learner.packing.cost import CostModel, read_cost_model
from learner.packing.mini_batches import part_of, plan_updates
from learner.packing.passes import plan_passes
from learner.packing.rows import Response
from learner.packing.shards import OldLogprobs, group_row, split_batch
from learner.spec import LearnerSpec
from learner.worker import LOOPBACK, LearnerWorker
from rlsys import env
from rlsys.clock import Turn
from rlsys.config.run import ConfigError
from rlsys.errors import FramesLost, LearnerIntact, LearnerLost
from rlsys.models.sizes import read_model_sizes
from rlsys.types import RolloutGroup, TrainBatch
from rlsys.weights.check import largest_difference
from rlsys.weights.manifest import Manifest, Uncopied, WeightTransfer, manifest_of, with_copies
from rlsys.weights.stored import stored_tensors
from rlsys.weights.version import WeightVersion

if TYPE_CHECKING:
    from rlsys.weights.broadcast import BroadcastResult

BLAME_S = 2.0
"""Seconds for which the errors of the other ranks are awaited once one has failed."""
PING_S = 30.0
"""Time limit, in seconds, for idle ranks to respond."""
WITHOUT_STATE = frozenset({"prepare", "where", "open_store", "join", "load", "offload", "reload", "require_data"})
"""Methods of a rank that need no state on its device."""


class LearnerGroup:
    """A group of learner ranks, one process each, started by `launch` and given a model by every `load`.

    Every call may raise LearnerLost if a process died or hung, or LearnerError if a rank raised an error; all ranks are
    ended then. LearnerIntact is an error after which the ranks can continue.
    """

    def __init__(self, workers: Sequence[Any], timeout_s: float) -> None:
        self._workers = list(workers)
        self._timeout_s = timeout_s
        self._is_joined = self._is_offloaded = False
        self._spec: LearnerSpec | None = None
        self._cost: CostModel  # of the loaded model
        self._sending: list[ray.ObjectRef] = []  # by rank
        self._copies: dict[Uncopied, ray.ObjectRef] = {}  # of the version published last
        self._copying: list[list[ray.ObjectRef]] = []  # each by rank

    @classmethod
    def launch(
        cls,
        *,
        num_ranks: int,
        device: str,
        threads: int | None,
        timeout_s: float,
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> LearnerGroup:
        """Start the processes and return at once; the first `load` waits for them.

        options: Ray actor options of each rank (resources, scheduling strategy); None requests one
        CPU per rank and, on "cuda", one GPU.  threads: see `LearnerConfig.threads`.
        timeout_s: time limit for every later call, in seconds.
        """
        if options is None:
            options = [{"num_cpus": 1, "num_gpus": 1 if device == "cuda" else 0}] * num_ranks
        if threads is None and device == "cpu":
            threads = 1
        environment = (
            env.no_secrets() | {"DS_ACCELERATOR": device} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        )
        actor = ray.remote(LearnerWorker)
        workers: list[Any] = [
            actor.options(**chosen, runtime_env={"env_vars": environment}).remote(
                rank, num_ranks, device, threads, timeout_s
            )
            for rank, chosen in zip(range(num_ranks), options, strict=True)
        ]
        for worker in workers:
            worker.prepare.remote()  # imports run meanwhile; `_join` raises their errors
        return cls(workers, timeout_s)

    @property
    def num_ranks(self) -> int:
        """Number of ranks that the group was launched with; 0 after `shutdown`."""
        return len(self._workers)

    def load(self, spec: LearnerSpec) -> None:
        """Load `spec.model.path` with a fresh optimiser and schedule, and free the model of an earlier `load`.

        Raises ConfigError if the ranks or the model cannot be divided by `learner.sequence_parallel`.
        """
        self._require_groups(spec)
        if not self._is_joined:
            self._join(engines_join=spec.weights.transport == "collective")
        self._call("load", spec)
        self._spec, self._is_offloaded = spec, False
        self._cost = read_cost_model(spec.model.path, spec.learner.untrained_parts)

    def _require_groups(self, spec: LearnerSpec) -> None:
        size = spec.learner.sequence_parallel
        if self.num_ranks % size:
            raise ConfigError(f"learner.sequence_parallel={size} does not divide the learner's {self.num_ranks} ranks.")
        if problem := read_model_sizes(spec.model.path).heads_problem(size):
            raise ConfigError(problem)

    def _join(self, *, engines_join: bool) -> None:
        """Connect the ranks with each other. engines_join: whether rank 0 will broadcast to engines."""
        self._call("prepare")
        places = self._call("where")
        host = LOOPBACK if len({node for node, _ in places}) == 1 else places[0][1]
        (port,) = self._wait("open_store", [self._workers[0].open_store.remote(host)])
        self._call("join", host, port, engines_join)
        self._is_joined = True

    def update(self, batch: TrainBatch) -> dict[str, float]:
        """Run all optimiser updates on the batch and return metrics over all tokens of all ranks and updates.

        `learner.packing.mini_batches` assigns groups to updates, `learner.loss.metrics` declares reductions. The loss
        is averaged over an update's own tokens. Raises ValueError for a batch without a trained token.
        """
        spec = self._loaded
        updates = plan_updates(batch, spec.algorithm, spec.seed)
        if not updates:
            raise ValueError(f"none of the batch's {len(batch.groups)} groups has a trained token; skip the batch.")
        # before a single update the old policy is the one that the update's own pass computes
        wants_old = spec.algorithm.old_policy == "learner" and len(updates) > 1
        old_logprobs = self.logprobs(batch.groups) if wants_old else None
        stats = []
        for number, indices in enumerate(updates, start=1):
            old = None if old_logprobs is None else [old_logprobs[index] for index in indices]
            try:
                stats.append(self._update_once(part_of(batch, indices), old, ends_batch=number == len(updates)))
            except FramesLost as error:
                if number == 1:
                    raise
                self.shutdown()
                raise LearnerLost(f"learner.update: {error}, after {number - 1} updates of the batch.") from error
        return combine(stats)

    def _update_once(self, batch: TrainBatch, old_logprobs: OldLogprobs | None, *, ends_batch: bool) -> list[RankStats]:
        workers, spec = self._present, self._loaded
        size = spec.learner.sequence_parallel
        shards = split_batch(
            batch,
            len(workers) // size,
            spec.learner.micro_batch_tokens,
            self._cost,
            loss_mean=spec.algorithm.loss_mean if batch.objective == "grpo" else "token",
            max_tokens=spec.rollout.max_tokens,
            old_logprobs=old_logprobs,
        )
        calls = [
            worker.update.remote(replace(shards[rank // size], ends_batch=ends_batch))
            for rank, worker in enumerate(workers)
        ]
        return self._wait("update", calls)

    def publish(self, version: int, num_receivers: int = 0) -> tuple[WeightTransfer, WeightVersion]:
        """Publish the weights and return their transfer and version.

        version: number of batches learned from.  num_receivers: number of engines that are up; if it is above 0 and
        `weights.transport` is "collective", the transfer has a rendezvous, and rank 0 broadcasts to them. Rank 0 owns
        the objects in the object store.
        """
        self._wait("send", self._sending)
        for calls in self._copying:  # raises what went wrong with them
            self._wait("copy", calls)
        transfer, published = self._call("publish", version, num_receivers)[0]
        broadcasts = published.transport == "collective" and transfer.rendezvous is not None
        self._sending = [rank.send.remote() for rank in self._gathering] if broadcasts else []
        self._copying = []
        transfer, self._copies = with_copies(transfer, self._copies, self._copy)
        return transfer, published

    def send(self) -> BroadcastResult:
        """Return once the broadcast of the weights published last has ended. A lost receiver is not an error."""
        if not self._sending:
            raise RuntimeError("there is nothing to broadcast; call publish with num_receivers first.")
        return self._wait("send", self._sending)[0]

    def _copy(self, stored: Uncopied) -> ray.ObjectRef:
        """Have a bucket copied to the object store behind what the ranks do now; return the reference at once."""
        self._copying.append([rank.copy.remote(stored) for rank in self._gathering])
        return self._copying[-1][0]

    @property
    def _gathering(self) -> list[Any]:
        """The ranks that must take part when rank 0 reads whole parameters."""
        return self._present if self._loaded.is_partitioned else self._present[:1]

    def compare(self, folder: Path, transfer: WeightTransfer) -> tuple[Manifest, dict[str, float | None]]:
        """Return the manifest of a model folder and, by name, its `largest_difference` from a transfer."""
        from learner.weights.weights_out import read_folder

        held = read_folder(folder)
        found: dict[str, float | None] = {}
        for bucket in transfer.buckets:
            published = stored_tensors(bucket, self._timeout_s)
            both = held.keys() & published.keys()
            found |= {name: largest_difference(published[name], held[name]) for name in both}
        return manifest_of(held), found

    def logprobs(self, groups: Sequence[RolloutGroup], *, reference: bool = False) -> list[list[np.ndarray]]:
        """Return the log-probs of every response under the current weights, f32 [R], as `[group][sample]`.

        reference: under the reference policy instead; `algorithm.kl_coef` must be above 0.
        """
        rows = []
        for group in groups:
            size = len(group.rollouts)
            rows.append(group_row(group, np.zeros(size, np.float32), np.ones(size, bool)))
        workers, learner = self._present, self._loaded.learner
        size = learner.sequence_parallel
        plan = plan_passes(rows, len(workers) // size, learner.micro_batch_tokens, self._cost)
        calls = [worker.logprobs.remote(tuple(plan[rank // size]), reference) for rank, worker in enumerate(workers)]
        # by response, not by row, because a long row is computed in parts
        found: dict[Response, np.ndarray] = {}
        # all ranks of a sequence group return the same
        for passes, by_pass in zip(plan, self._wait("logprobs", calls)[::size], strict=True):
            for parts, by_row in zip(passes, by_pass, strict=True):
                for part, by_response in zip(parts, by_row, strict=True):
                    found.update(zip(part.responses, by_response, strict=True))
        return [[found[response] for response in row.responses] for row in rows]

    def save(self, folder: Path) -> None:
        """Save everything needed to resume bit for bit in `folder`, which all ranks must be able to access."""
        self._call("save", Path(folder))

    def restore(self, folder: Path, scratch: Path | None = None) -> None:
        """Restore what `save` wrote, after a `load` with the same spec; number of ranks and ZeRO stage may differ.

        scratch: folder for the copy that is made if these differ, visible to all ranks; None: `folder`.
        Raises CheckpointError, with the ranks unchanged, if there is no checkpoint, it does not fit, contains code, or
        the copy cannot be written.
        """
        must_reshard(
            read_layout(Path(folder)), layout_of(self._loaded.model, self._loaded.learner, self.num_ranks), Path(folder)
        )
        self._call("require_data", Path(folder))
        self._call("restore", Path(folder), scratch)

    def export(self, folder: Path) -> str:
        """Write the weights as a Hugging Face folder and return their digest, which equals that of `publish`."""
        return self._call("export", Path(folder))[0]

    def offload(self, *, keeps_parameters: bool = False) -> list[Turn]:
        """Move the ranks' state to host memory and return since when each had it on its device.

        Only `load`, `reload` and `shutdown` may follow. keeps_parameters: leave the parameters, for engines that read
        them by CUDA IPC; a second call moves them.
        """
        turns: list[Turn] = self._call("offload", keeps_parameters)
        self._is_offloaded = True
        return turns

    def reload(self) -> None:
        """Move the state back to the ranks' devices, bit for bit."""
        self._call("reload")
        self._is_offloaded = False

    def require_alive(self) -> None:
        """Raise LearnerLost unless every rank responds now; to be called when the ranks are idle."""
        if not self._workers:
            raise LearnerLost("the learner's ranks have been ended.")
        self._wait("where", [worker.where.remote() for worker in self._workers], min(PING_S, self._timeout_s))

    def shutdown(self) -> None:
        """End the processes, including stopped ones; the group cannot be used afterwards."""
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []

    @property
    def _alive(self) -> list[Any]:
        if not self._workers:
            raise LearnerError("the learner's ranks have been ended; launch a new group and restore a checkpoint.")
        return self._workers

    @property
    def _present(self) -> list[Any]:
        workers = self._alive
        if self._is_offloaded:
            raise RuntimeError("the learner's state is offloaded while engines use its GPUs; call reload() first.")
        return workers

    @property
    def _loaded(self) -> LearnerSpec:
        if self._spec is None:
            raise RuntimeError("the learner has no model yet; call load(spec) first.")
        return self._spec

    def _call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on every rank concurrently and return its results by rank."""
        workers = self._alive if method in WITHOUT_STATE else self._present
        return self._wait(method, [getattr(worker, method).remote(*arguments) for worker in workers])

    def _wait(self, method: str, calls: Sequence[ray.ObjectRef], timeout_s: float | None = None) -> list[Any]:
        """Return the results in the order of `calls`. A failure ends all ranks, which would wait for the failed one."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        results: dict[int, Any] = {}
        errors: dict[int, ray.exceptions.RayError] = {}
        while len(results) + len(errors) < len(calls):
            waiting = [call for index, call in enumerate(calls) if index not in results and index not in errors]
            done, _ = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                break
            index = calls.index(done[0])
            try:
                results[index] = ray.get(done[0])
            except ray.exceptions.RayError as error:
                errors[index] = error
                # its peers' errors ("connection closed") may arrive before its own
                deadline = min(deadline, time.monotonic() + BLAME_S)
        silent = [index for index in range(len(calls)) if index not in results and index not in errors]
        if errors or silent:
            problem = verdict(method, errors, silent, timeout_s)
            if not isinstance(problem, LearnerIntact):
                self.shutdown()
            raise problem
        return [results[index] for index in range(len(calls))]

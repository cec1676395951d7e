"""The pool of a run's rollout actors, which sends each group to the least busy actor and survives an actor's death.

`generate` is called in one asyncio loop in a background thread, everything else in the main thread.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from actors.errors import ActorLost, EngineDied, GroupAborted, PromptQuarantined, reason_of
from actors.pool_sleep import put_to_sleep, wake_up
from actors.replica import PublishedWeights, Replica, ReplicaLimits
from actors.replicas import Replicas
from actors.requests import EngineSpec, GroupRequest, environment
from actors.rollout_actor import RolloutActor
from rlsys import env
from rlsys.clock import Turn
from rlsys.errors import FramesLost
from rlsys.types import ClipRef, Prompt, PromptItem, Rollout, Sampling
from rlsys.weights.manifest import Manifest, WeightTransfer
from rlsys.weights.version import WeightVersion

SUSPECT_DEATHS = 2  # number of actors that die under a prompt before it gets an actor to itself
COUNTS = (
    "rollout/groups",
    "rollout/lost_actors",
    "rollout/resampled_groups",
    "rollout/aborted_groups",
    "rollout/quarantined_prompts",
    "weights/updates",
)


class RolloutPool:
    """A pool of actors that sample groups. Results depend only on prompt, seed and weights, not on the actor.

    make_actor: starts the process of the given slot and returns its Ray handle immediately.
    timeout_s: time after which an actor that has work and finishes nothing counts as dead.
    start_timeout_s: time limit for loading an engine.
    max_num_seqs: number of responses that an actor generates at once. It gets at most one group more than fits; the
    rest waits here, oldest first. None hands out every group at once.
    """

    def __init__(
        self,
        make_actor: Callable[[int], Any],
        num_actors: int,
        *,
        timeout_s: float,
        start_timeout_s: float,
        max_num_seqs: int | None = None,
    ) -> None:
        self._timeout_s, self._num_actors = timeout_s, num_actors
        limits = ReplicaLimits(timeout_s=timeout_s, start_timeout_s=start_timeout_s, max_num_seqs=max_num_seqs)
        self._replicas = Replicas(make_actor, num_actors, limits)
        self._tickets = itertools.count()
        self._counts = self._replicas.counts
        self._load_s = 0.0
        self._published: dict[str, float] = {}

    @classmethod
    def launch(
        cls,
        spec: EngineSpec,
        num_actors: int,
        *,
        options: Sequence[Mapping[str, Any]] = (),
        timeout_s: float = 600.0,
        start_timeout_s: float = 900.0,
    ) -> RolloutPool:
        """Start the actors and return immediately; the first `load_weights` waits for them.

        options: Ray's actor options for each actor (num_cpus, num_gpus, scheduling_strategy, …);
        () gives each one CPU.
        """
        remote = ray.remote(RolloutActor)

        def make_actor(slot: int) -> Any:
            chosen = {"num_cpus": 1, **(options[slot] if options else {})}
            runtime = dict(chosen.pop("runtime_env", {}))
            # torch and vLLM read their environment at import, so it must be set before the process starts
            runtime["env_vars"] = {**environment(spec), **env.no_secrets(), **runtime.get("env_vars", {})}
            return remote.options(**chosen, runtime_env=runtime, max_restarts=0).remote(spec, start_timeout_s)

        return cls(
            make_actor,
            num_actors,
            timeout_s=timeout_s,
            start_timeout_s=start_timeout_s,
            max_num_seqs=spec.rollout.max_num_seqs,
        )

    async def generate(
        self, item: PromptItem, prompt: Prompt, clips: Sequence[ClipRef], sampling: Sampling
    ) -> tuple[Rollout, ...]:
        """Return the group's rollouts in sample order; if its actor is lost, it is sampled again with the same seeds.

        Raises PromptRefused, BadOutput, or FramesLost; NoWeights before the first `load_weights`; PromptQuarantined
        if actors keep dying under this prompt; and PoolFailed if no actor is left.
        """
        infos = tuple(clip.info for clip in clips)
        request = GroupRequest(
            prompt_id=item.prompt_id,
            engine_ids=prompt.engine_ids,
            num_tokens=prompt.prompt_ids.size,
            clips=infos,
            sampling=sampling,
        )
        frames = [clip.frames for clip in clips]
        ticket = next(self._tickets)
        deaths: list[str] = []
        while True:
            # a prompt under which actors died gets an actor to itself; if that dies too, the prompt is the cause
            alone = len(deaths) >= SUSPECT_DEATHS
            actor = await self._replicas.acquire(ticket, sampling.num_samples, reserve=alone)
            try:
                if alone and not await self._replicas.becomes_alone(actor):
                    continue
                return await self._sample(actor, request, frames)
            except GroupAborted:
                self._counts["rollout/aborted_groups"] += 1
            except ActorLost as error:
                deaths.append(f"actor {actor.slot}: {error}")
                was_alone = (actor.groups if actor.died_with is None else actor.died_with) == 1
                is_poison = len(deaths) >= SUSPECT_DEATHS and was_alone
                self._replicas.lose(actor, str(error), is_its_own_fault=not is_poison)
                if is_poison:
                    raise self._quarantine(request.prompt_id, deaths) from error
                self._counts["rollout/resampled_groups"] += 1
            finally:
                self._replicas.release(actor, sampling.num_samples, was_reserved=alone)

    async def _sample(self, actor: Replica, request: GroupRequest, frames: Sequence[Any]) -> tuple[Rollout, ...]:
        reference = actor.handle.generate.remote(request, *frames)
        done = asyncio.wrap_future(reference.future())
        done.add_done_callback(
            lambda ended: ended.cancelled() or ended.exception()
        )  # retrieved even if no longer awaited, or Python would warn
        start = time.monotonic()
        try:
            while not done.done():
                left = actor.seconds_left(start, self._timeout_s)
                if left <= 0:
                    raise ActorLost(f"finished no group for {self._timeout_s:g} s (rollout.timeout_s).")
                await asyncio.wait((done,), timeout=min(left, self._timeout_s / 2))
                with self._replicas.changed:
                    self._replicas.note_healths()
            rollouts = done.result()
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except (RayActorError, EngineDied) as error:
            raise ActorLost(reason_of(error)) from error
        except ObjectLostError as error:
            raise FramesLost((error.object_ref_hex,)) from error
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                raise FramesLost((error.cause.object_ref_hex,)) from error
            raise error.cause from None  # the actor's traceback shows vLLM's code, not the prompt
        self._replicas.note_progress(actor)
        self._counts["rollout/groups"] += 1
        return rollouts

    def _quarantine(self, prompt_id: str, deaths: Sequence[str]) -> PromptQuarantined:
        self._counts["rollout/quarantined_prompts"] += 1
        return PromptQuarantined(
            f"{prompt_id}: {len(deaths)} actors died while they generated it, the last one with nothing else to do; "
            "remove the row or check its clip.\n" + "\n".join(deaths)
        )

    def load_weights(self, transfer: WeightTransfer, version: WeightVersion) -> int:
        """Load `version` into every actor and return how many hold it. Blocks; to be called in the main thread.

        transfer: the ways to get the bytes of `version`. `EngineLoop` describes what happens to running groups; groups
        that wait here do not delay the update. An actor samples again as soon as it has the weights. One that fails
        or exceeds its deadline (see `Replicas.send`) is replaced in the background.
        Actors that sleep load them too, but sample only after `wake`.
        Raises WeightsRefused if every actor refused the weights (they keep what they had), PoolFailed if no actor is
        left, LearnerLost if the weights were lost with the process that published them.
        """
        start = time.monotonic()
        replicas = self._replicas
        weights = PublishedWeights(transfer, version)
        with replicas.changed:
            previous, replicas.weights = replicas.weights, weights
            actors, newcomers = replicas.up(), replicas.newcomers()
            replicas.notify()
        refused = replicas.send(actors, weights)
        if actors and len(refused) == len(actors):
            with replicas.changed:
                replicas.weights = previous
                replicas.notify()
            raise refused[actors[0]]
        with replicas.changed:
            replicas.accepted = weights
            replicas.notify()
        for actor, error in refused.items():
            replicas.lose(actor, f"update to version {version.version}: {error}")
        with replicas.changed:
            if not replicas.is_asleep:
                replicas.wait_settled(newcomers)
            self._counts["weights/updates"] += 1
            self._load_s = time.monotonic() - start
            self._published = version.published.metrics() if version.published else {}
            return len(replicas.ready())

    def __len__(self) -> int:
        """Return the number of actors that the pool was launched with."""
        return self._num_actors

    def sleep(self) -> list[Turn]:
        """Free the actors' GPUs for the learner, see `put_to_sleep`; groups wait until `wake`."""
        return put_to_sleep(self._replicas)

    def wake(self) -> None:
        """Sample again, with the weights that `load_weights` has loaded since `sleep`; see `wake_up`."""
        wake_up(self._replicas)

    def raise_if_weights_gone(self) -> None:
        """Raise LearnerLost if no actor holds the current weights and they were lost with the learner."""
        with self._replicas.changed:
            if not self._replicas.ready():
                self._replicas.raise_if_weights_gone()

    def compare_weights(self, transfer: WeightTransfer) -> dict[str, tuple[Manifest, dict[str, float | None]]]:
        """Return the result of `RolloutActor.compare_weights` by actor."""
        with self._replicas.changed:
            actors = self._replicas.ready()
        answers = {f"actor {actor.slot}": actor.handle.compare_weights.remote(transfer) for actor in actors}
        return {name: ray.get(reference, timeout=self._timeout_s) for name, reference in answers.items()}

    def counters(self) -> dict[str, float]:
        """Return metrics of the pool by name.

        They are totals since the launch, the number of actors by health (see `Replicas.health`), the number of groups
        that no actor has room for, the duration of the last update, its parts at the learner (`PublishStats`)
        and those of the slowest actor.
        """
        with self._replicas.changed:
            counts = {name: float(self._counts[name]) for name in COUNTS}
            healths = {f"rollout/{health}_actors": float(n) for health, n in self._replicas.count_healths().items()}
            return {
                **counts,
                **healths,
                "rollout/ready_actors": float(len(self._replicas.ready())),
                "rollout/waiting_groups": float(self._replicas.num_waiting),
                "weights/load_s": self._load_s,
                **self._published,
                **slowest([replica.parts_s for replica in self._replicas.ready()]),
            }

    def shutdown(self) -> None:
        """End all actors; groups that are still running fail."""
        self._replicas.close()


def slowest(parts_s: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the most seconds that an actor's update spent on each part, as metrics."""
    names = dict.fromkeys(name for one in parts_s for name in one)
    return {f"weights/{name}_s": max(one.get(name, 0.0) for one in parts_s) for name in names}

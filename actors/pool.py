"""The rollout actors of a run: groups go to the least busy one with room, and survive the death of any.

`generate` belongs to one asyncio loop in a background thread, the rest to the main thread.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from actors.errors import (
    ActorLost,
    EngineDied,
    GroupAborted,
    PromptQuarantined,
    WeightsRefused,
    is_payload_lost,
    reason_of,
)
from actors.places import Actor, Limits, Places, Weights, check_acknowledged
from actors.requests import EngineSpec, GroupRequest, environment
from actors.rollout_actor import RolloutActor
from rlsys.errors import FramesLost, LearnerLost
from rlsys.types import ClipRef, Prompt, PromptItem, Rollout, Sampling
from rlsys.weights.manifest import Manifest, Shipment
from rlsys.weights.version import WeightVersion

SUSPECT_DEATHS = 2  # actors that died under a prompt before it is sampled with nothing beside it
COUNTS = (
    "rollout/groups",
    "rollout/lost_actors",
    "rollout/resampled_groups",
    "rollout/aborted_groups",
    "rollout/quarantined_prompts",
    "weights/updates",
)


class RolloutPool:
    """Actors that sample groups. Results depend on prompt, seed and weights only, not on which actor samples.

    make_actor: starts the process of the given place and returns its Ray handle at once.
    timeout_s: an actor with work that has finished nothing for so long counts as dead.
    start_timeout_s: what loading an engine may take.
    max_num_seqs: responses that an actor generates at once. It is given no group beyond them but one, and the
    rest waits here, oldest first; None gives every group away at once.
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
        self._timeout_s = timeout_s
        limits = Limits(timeout_s=timeout_s, start_timeout_s=start_timeout_s, max_num_seqs=max_num_seqs)
        self._places = Places(make_actor, num_actors, limits)
        self._tickets = itertools.count()
        self._counts = self._places.counts
        self._load_s = 0.0

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
        """Starts the actors and returns at once; the first `load_weights` waits for them.

        options: Ray's actor options for each actor (num_cpus, num_gpus, scheduling_strategy, …);
        () gives each one CPU.
        """
        remote = ray.remote(RolloutActor)

        def make_actor(place: int) -> Any:
            chosen = {"num_cpus": 1, **(options[place] if options else {})}
            runtime = dict(chosen.pop("runtime_env", {}))
            # what torch and vLLM read when they are imported must be there before the process starts
            runtime["env_vars"] = {**environment(spec), **runtime.get("env_vars", {})}
            return remote.options(**chosen, runtime_env=runtime, max_restarts=0).remote(spec, start_timeout_s)

        return cls(
            make_actor,
            num_actors,
            timeout_s=timeout_s,
            start_timeout_s=start_timeout_s,
            max_num_seqs=spec.max_num_seqs,
        )

    async def generate(
        self, item: PromptItem, prompt: Prompt, clips: Sequence[ClipRef], sampling: Sampling
    ) -> tuple[Rollout, ...]:
        """The group's rollouts in sample order. A group whose actor is lost is sampled again with the same seeds.

        Raises PromptRefused, BadOutput, or what made the frames unavailable; NoWeights before the first
        `load_weights`; PromptQuarantined when actors keep dying under this prompt; PoolFailed when none is left.
        """
        infos = tuple(clip.info for clip in clips)
        request = GroupRequest(prompt_id=item.prompt_id, engine_ids=prompt.engine_ids, clips=infos, sampling=sampling)
        frames = [clip.frames for clip in clips]
        ticket = next(self._tickets)
        deaths: list[str] = []
        while True:
            # a prompt that was there when actors died gets one to itself: if that dies too, it is the prompt
            alone = len(deaths) >= SUSPECT_DEATHS
            actor = await self._places.acquire(ticket, sampling.num_samples, reserve=alone)
            try:
                if alone and not await self._places.becomes_alone(actor):
                    continue
                return await self._sample(actor, request, frames)
            except GroupAborted:
                self._counts["rollout/aborted_groups"] += 1
            except ActorLost as error:
                deaths.append(f"actor {actor.place}: {error}")
                was_alone = (actor.groups if actor.died_with is None else actor.died_with) == 1
                is_poison = len(deaths) >= SUSPECT_DEATHS and was_alone
                self._places.lose(actor, str(error), is_its_own_fault=not is_poison)
                if is_poison:
                    raise self._quarantine(request.prompt_id, deaths) from error
                self._counts["rollout/resampled_groups"] += 1
            finally:
                self._places.release(actor, sampling.num_samples, was_reserved=alone)

    async def _sample(self, actor: Actor, request: GroupRequest, frames: Sequence[Any]) -> tuple[Rollout, ...]:
        reference = actor.handle.generate.remote(request, *frames)
        done = asyncio.wrap_future(reference.future())
        done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # seen, even if no longer awaited
        start = time.monotonic()
        try:
            while not done.done():
                left = self._seconds_left(actor, start)
                if left <= 0:
                    raise ActorLost(f"finished no group for {self._timeout_s:g} s (rollout.timeout_s).")
                await asyncio.wait((done,), timeout=min(left, self._timeout_s / 2))
                with self._places.changed:
                    self._places.note_healths()
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
            raise error.cause from None  # the actor's traceback leads into vLLM, not to the prompt
        self._places.note_progress(actor)
        self._counts["rollout/groups"] += 1
        return rollouts

    def _seconds_left(self, actor: Actor, start: float) -> float:
        """Until what was asked of the actor at `start` is overdue. Work queues up, so what it finishes counts."""
        return max(start, actor.progress_s) + self._timeout_s - time.monotonic()

    def _quarantine(self, prompt_id: str, deaths: Sequence[str]) -> PromptQuarantined:
        self._counts["rollout/quarantined_prompts"] += 1
        return PromptQuarantined(
            f"{prompt_id}: {len(deaths)} actors died while they generated it, the last one with nothing beside it; "
            "take the row out or look at its clip.\n" + "\n".join(deaths)
        )

    def load_weights(self, shipment: Shipment, version: WeightVersion) -> int:
        """Bring every actor to `version` and return how many hold it. Blocks; for the main thread.

        shipment: how an actor gets what `version` names. What becomes of groups that run is
        in `EngineLoop`; those that wait here are not waited for. An actor samples again as soon as it has the
        weights. One that fails, or takes longer than `timeout_s` since it last finished something, is replaced in
        the background; all have that time together, not one after another.
        Raises WeightsRefused when every actor refused the payload (they go on with what they had), PoolFailed
        when no actor is left, LearnerLost when the payload was lost with the process that had put it there.
        """
        start = time.monotonic()
        places = self._places
        weights = Weights(shipment, version)
        with places.changed:
            previous, places.weights = places.weights, weights
            actors, newcomers = places.up(), places.newcomers()
            places.notify()
        refused = self._send(weights, actors, start)
        if actors and len(refused) == len(actors):
            with places.changed:
                places.weights = previous
                places.notify()
            raise refused[actors[0]]
        for actor, error in refused.items():
            places.lose(actor, f"update to version {version.version}: {error}")
        with places.changed:
            places.wait_settled(newcomers)
            self._counts["weights/updates"] += 1
            self._load_s = time.monotonic() - start
            return len(places.ready())

    def _send(self, weights: Weights, actors: Sequence[Actor], start: float) -> dict[Actor, WeightsRefused]:
        """Who refused the weights. Returns once each actor has answered or is lost.

        Raises LearnerLost when the weights went with their sender: the actors wait for others then.
        """
        asked = {actor.handle.load_weights.remote(weights.shipment, weights.version): actor for actor in actors}
        refused: dict[Actor, WeightsRefused] = {}
        lost: Exception | None = None
        while asked:
            left = min(self._seconds_left(actor, start) for actor in asked.values())
            answered, _ = ray.wait(list(asked), timeout=max(0.0, left))
            overdue = [ref for ref, actor in asked.items() if self._seconds_left(actor, start) <= 0]
            for ref in answered or overdue:
                actor = asked.pop(ref)
                try:
                    check_acknowledged(ray.get(ref, timeout=0), weights.version)
                    self._places.hold(actor, weights)
                except WeightsRefused as error:
                    if is_payload_lost(error):
                        lost = error
                    else:
                        refused[actor] = error.cause if isinstance(error, RayTaskError) else error
                except GetTimeoutError:
                    reason = f"not acknowledged within {self._timeout_s:g} s (rollout.timeout_s)."
                    self._places.lose(actor, f"update to version {weights.version.version}: {reason}")
                except (RayError, ActorLost) as error:
                    if is_payload_lost(error):
                        lost = error
                    else:
                        self._places.lose(actor, f"update to version {weights.version.version}: {reason_of(error)}")
        if lost:
            raise LearnerLost(f"the weights of version {weights.version.version}: {reason_of(lost)}")
        return refused

    def raise_if_weights_gone(self) -> None:
        """Raises LearnerLost when no actor holds the current weights and they went with the process that sent them."""
        with self._places.changed:
            if not self._places.ready():
                self._places.raise_if_weights_gone()

    def compare_weights(self, shipment: Shipment) -> dict[str, tuple[Manifest, dict[str, float | None]]]:
        """By actor, what it acknowledged and how far it is from a shipment; see `RolloutActor.compare_weights`."""
        with self._places.changed:
            actors = self._places.ready()
        asked = {f"actor {actor.place}": actor.handle.compare_weights.remote(shipment) for actor in actors}
        return {name: ray.get(reference, timeout=self._timeout_s) for name, reference in asked.items()}

    def counters(self) -> dict[str, float]:
        """Totals since the launch; actors now, by health (see `Places.health`); groups that no actor has room for;
        and the seconds of the last update.
        """
        with self._places.changed:
            counts = {name: float(self._counts[name]) for name in COUNTS}
            healths = {f"rollout/{health}_actors": float(n) for health, n in self._places.count_healths().items()}
            return {
                **counts,
                **healths,
                "rollout/ready_actors": float(len(self._places.ready())),
                "rollout/waiting_groups": float(self._places.num_waiting),
                "weights/load_s": self._load_s,
            }

    def shutdown(self) -> None:
        """End all actors; groups that still run fail."""
        self._places.close()

"""The pool with actors that die, hang, refuse weights or acknowledge wrong ones: no group is lost, every wait ends."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.exceptions import ObjectLostError

from actors.errors import NoWeights, PoolFailed, PromptQuarantined, WeightsRefused
from actors.pool import RolloutPool
from actors.replica import PublishedWeights, ReplicaLimits
from rlsys.errors import LearnerLost, RowUnusable
from rlsys.types import Prompt, Rollout, Sampling
from rlsys.weights.version import WeightVersion
from tests.support.factories import make_item
from tests.support.pace import patience
from tests.support.stub_actors import start_stub

pytestmark = pytest.mark.usefixtures("actor_cluster")

SAMPLING = Sampling(num_samples=2, temperature=1.0, top_p=1.0, max_tokens=4, seed=10)
IDS = np.arange(3, dtype=np.int32)
PROMPT = Prompt(engine_ids=IDS, prompt_ids=IDS, position_ids=np.stack([IDS] * 3), next_position=3)


@contextmanager
def pool_of(
    *behaviours: str,
    later: str = "sound",
    timeout_s: float = 60.0,
    start_timeout_s: float = 60.0,
    max_num_seqs: int | None = None,
) -> Iterator[RolloutPool]:
    """Run a pool of stubs, whose replacements behave as `later`. Times are those of the reference machine."""
    to_come = dict(enumerate(behaviours))
    pool = RolloutPool(
        lambda slot: start_stub(to_come.pop(slot, later)),
        len(behaviours),
        timeout_s=patience(timeout_s),
        start_timeout_s=patience(start_timeout_s),
        max_num_seqs=max_num_seqs,
    )
    try:
        yield pool
    finally:
        pool.shutdown()


@pytest.fixture
def background() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Future[Any]]]:
    """Runs coroutines on a loop in another thread, as the driver does."""
    events = asyncio.new_event_loop()
    thread = Thread(target=events.run_forever, daemon=True)
    thread.start()
    yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, events)
    events.call_soon_threadsafe(events.stop)
    thread.join(timeout=patience(10.0))
    events.close()


def version(number: int) -> WeightVersion:
    return WeightVersion(version=number, transport="object_store", num_tensors=0, num_bytes=0, digest=f"d{number}")


def publish(pool: RolloutPool, number: int) -> int:
    return pool.load_weights(ray.put({}), version(number))


class Sender:
    """A process that owns the objects that it puts into the object store, as the learner's first rank does."""

    def put(self) -> list[ray.ObjectRef]:
        return [ray.put(np.zeros(1 << 20, np.uint8))]


def object_of_a_dead_sender() -> ray.ObjectRef:
    sender = ray.remote(num_cpus=0)(Sender).remote()
    (stored,) = ray.get(sender.put.remote(), timeout=patience(60.0))
    kill_sender(sender, stored)
    return stored


def kill_sender(sender: Any, stored: ray.ObjectRef) -> None:
    """Returns when what it had put is gone."""
    ray.kill(sender)
    deadline = time.monotonic() + patience(60.0)
    while time.monotonic() < deadline:  # its node lets go of what it owned when it hears of its death
        try:
            ray.get(stored, timeout=patience(60.0))
            time.sleep(0.1)
        except ObjectLostError:
            return
    raise AssertionError("what a dead process owned can still be fetched")


def group(pool: RolloutPool, prompt_id: str) -> Coroutine[Any, Any, tuple[Rollout, ...]]:
    return pool.generate(make_item(prompt_id), PROMPT, (), SAMPLING)


def pids(groups: list[tuple[Rollout, ...]]) -> set[int]:
    return {int(rollout.text) for rollouts in groups for rollout in rollouts}


def ids(rollouts: tuple[Rollout, ...]) -> list[list[int]]:
    return [rollout.response_ids.tolist() for rollout in rollouts]


async def gather(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    return await asyncio.gather(*coroutines, return_exceptions=True)


def test_groups_are_distributed_and_return_in_sample_order(background: Callable[..., Future[Any]]) -> None:
    with pool_of("sound", "sound") as pool:
        assert publish(pool, 3) == 2
        groups = background(gather(*(group(pool, f"slow:0.5{index}") for index in range(6)))).result(patience(60.0))
        assert len(pids(groups)) == 2
        assert all(ids(rollouts) == [[10, 3], [11, 3]] for rollouts in groups)
        assert pool.counters()["rollout/groups"] == 6


def test_generating_before_any_weights_is_refused(background: Callable[..., Future[Any]]) -> None:
    with pool_of("sound") as pool, pytest.raises(NoWeights, match="call load_weights before generate"):
        background(group(pool, "p")).result(patience(60.0))


def test_a_group_whose_actor_dies_is_sampled_again_and_the_replacement_has_the_weights(
    background: Callable[..., Future[Any]],
) -> None:
    with pool_of("sound", "sound") as pool:
        publish(pool, 5)
        groups = background(gather(*(group(pool, f"slow:{1 + index}") for index in range(2))))
        time.sleep(0.5)
        victim = psutil.Process(_pids_now(pool)[0])
        victim.kill()
        results = groups.result(patience(60.0))
        assert [ids(rollouts) for rollouts in results] == [[[10, 5], [11, 5]]] * 2
        assert victim.pid not in pids(results)
        _wait_until(lambda: pool.counters()["rollout/ready_actors"] == 2)
        after = background(gather(*(group(pool, f"slow:0.3{index}") for index in range(4)))).result(patience(60.0))
        assert len(pids(after)) == 2
        assert all(ids(rollouts) == [[10, 5], [11, 5]] for rollouts in after)
        counters = pool.counters()
        assert (counters["rollout/lost_actors"], counters["rollout/resampled_groups"]) == (1, 1)


def test_an_actor_that_hangs_is_replaced_after_its_deadline(background: Callable[..., Future[Any]]) -> None:
    with pool_of("sound", timeout_s=2.0) as pool:
        publish(pool, 0)
        [hung] = _pids_now(pool)
        os.kill(hung, signal.SIGSTOP)
        start = time.monotonic()
        assert ids(background(group(pool, "p")).result(patience(60.0))) == [[10, 0], [11, 0]]
        assert time.monotonic() - start >= 2.0
        _wait_until(lambda: not psutil.pid_exists(hung) or psutil.Process(hung).status() == psutil.STATUS_ZOMBIE)
        assert pool.counters()["rollout/lost_actors"] == 1


def test_a_queue_is_not_a_hang(background: Callable[..., Future[Any]]) -> None:
    with pool_of("sound", timeout_s=2.0) as pool:
        publish(pool, 0)
        background(gather(*(group(pool, f"slow:{seconds}") for seconds in (1.0, 2.0, 3.0, 4.0)))).result(patience(60.0))
        assert pool.counters()["rollout/lost_actors"] == 0


def test_a_prompt_that_kills_two_actors_is_quarantined_and_concurrent_prompts_are_not(
    background: Callable[..., Future[Any]],
) -> None:
    with pool_of("sound", "sound") as pool:
        publish(pool, 0)
        names = ["killer:0", "slow:0.5", "slow:1.0", "slow:1.5", "slow:2.0"]
        killer, *others = background(gather(*(group(pool, name) for name in names))).result(patience(90.0))
        assert isinstance(killer, PromptQuarantined)
        assert isinstance(killer, RowUnusable)  # the run leaves the row out and goes on
        again = pickle.loads(pickle.dumps(killer))
        assert (type(again), str(again)) == (PromptQuarantined, str(killer))
        assert re.match(r"killer:0: \d actors died .*remove the row.*(\nactor \d: .*died.*){2}", str(again), re.DOTALL)
        assert [ids(rollouts) for rollouts in others] == [[[10, 0], [11, 0]]] * 4
        assert pool.counters()["rollout/quarantined_prompts"] == 1
        assert ids(background(group(pool, "next")).result(patience(60.0))) == [[10, 0], [11, 0]]


def test_a_killing_prompt_on_the_only_actor_loses_neither_other_groups_nor_the_slot(
    background: Callable[..., Future[Any]],
) -> None:
    with pool_of("sound") as pool:
        publish(pool, 0)
        killer, other = background(gather(group(pool, "killer:0"), group(pool, "slow:0.5"))).result(patience(120.0))
        assert isinstance(killer, PromptQuarantined)
        assert ids(other) == [[10, 0], [11, 0]]
        assert ids(background(group(pool, "next")).result(patience(60.0))) == [[10, 0], [11, 0]]
        assert pool.counters()["rollout/dead_actors"] == 0


def test_an_actor_gets_the_groups_that_fit_and_one_more_and_the_rest_waits_in_order(
    background: Callable[..., Future[Any]],
) -> None:
    with pool_of("sound", max_num_seqs=5) as pool:
        publish(pool, 0)
        # the first three are asked for at once and may start in any order; from then on one ends every half second
        names = [f"slow:{seconds}" for seconds in (1.5, 2.0, 2.5, 1.51, 1.52, 1.53, 1.54, 1.55)]
        groups = background(gather(*(group(pool, name) for name in names)))
        _wait_until(lambda: pool.counters()["rollout/waiting_groups"] == 5)
        groups.result(patience(60.0))
        [actor] = pool._replicas.ready()
        most_running, started = ray.get([actor.handle.most_running.remote(), actor.handle.started.remote()])
        assert (most_running, sorted(started[:3]), started[3:]) == (3, names[:3], names[3:])
        assert pool.counters()["rollout/waiting_groups"] == 0


def test_counters_report_health(background: Callable[..., Future[Any]]) -> None:
    def health() -> dict[str, float]:
        return {name: pool.counters()[f"rollout/{name}_actors"] for name in ("healthy", "suspect", "stale", "dead")}

    with pool_of("sound", "sound", timeout_s=8.0) as pool:
        assert health() == {"healthy": 0, "suspect": 0, "stale": 2, "dead": 0}
        publish(pool, 0)
        assert health() == {"healthy": 2, "suspect": 0, "stale": 0, "dead": 0}
        [hung, _] = _pids_now(pool)
        os.kill(hung, signal.SIGSTOP)
        groups = background(gather(group(pool, "a"), group(pool, "b")))
        _wait_until(lambda: health()["suspect"] == 1)  # overdue by half
        _wait_until(lambda: health()["stale"] == 1)  # given up, and its successor on the way
        assert [ids(rollouts) for rollouts in groups.result(patience(60.0))] == [[[10, 0], [11, 0]]] * 2
        _wait_until(lambda: health()["suspect"] == 1)  # up, and yet to show that it is sound
        background(gather(*(group(pool, f"slow:0.2{index}") for index in range(4)))).result(patience(60.0))
        assert health() == {"healthy": 2, "suspect": 0, "stale": 0, "dead": 0}


def test_actors_that_hang_over_an_update_are_replaced_together(background: Callable[..., Future[Any]]) -> None:
    with pool_of("stuck", "stuck", "stuck", timeout_s=4.0) as pool:
        publish(pool, 0)
        hung = [psutil.Process(pid) for pid in _pids_now(pool)]
        assert publish(pool, 1) >= 1
        assert pool.counters()["rollout/lost_actors"] == 3
        assert psutil.wait_procs(hung, timeout=patience(60.0))[1] == []
        assert ids(background(group(pool, "p")).result(patience(60.0))) == [[10, 1], [11, 1]]


def test_a_wait_without_possible_progress_ends(background: Callable[..., Future[Any]]) -> None:
    with pool_of("sound") as pool:
        publish(pool, 0)
        replicas = pool._replicas
        _wait_until(replicas.up)  # what follows is not for the thread that brings it up
        replicas.limits = ReplicaLimits(timeout_s=0.5, start_timeout_s=0.5, max_num_seqs=None)
        replicas.weights = PublishedWeights(None, version(1))  # as if the learner had died halfway
        with pytest.raises(PoolFailed, match=r"'stale': 1"):
            background(group(pool, "p")).result(patience(60.0))


def test_actors_that_cannot_start_end_the_wait_with_their_own_error(background: Callable[..., Future[Any]]) -> None:
    with pool_of("stillborn", "stillborn", later="stillborn") as pool:
        with pytest.raises(PoolFailed, match="no checkpoint at /nowhere"):
            publish(pool, 0)
        with pytest.raises(PoolFailed, match="3 times in a row"):
            background(group(pool, "p")).result(patience(60.0))


def test_a_slot_that_cannot_start_leaves_the_work_to_the_others(background: Callable[..., Future[Any]]) -> None:
    behaviours = iter(["sound", *["stillborn"] * 3])
    pool = RolloutPool(
        lambda place: start_stub(next(behaviours)), 2, timeout_s=patience(60.0), start_timeout_s=patience(60.0)
    )
    assert publish(pool, 0) == 1
    assert ids(background(group(pool, "p")).result(patience(60.0))) == [[10, 0], [11, 0]]
    pool.shutdown()


def test_weights_that_every_actor_refuses_are_an_error_and_the_old_ones_stay_in_use(
    background: Callable[..., Future[Any]],
) -> None:
    with pool_of("sound", "sound") as pool:
        publish(pool, 1)
        with pytest.raises(WeightsRefused, match="not a weight of this model"):
            pool.load_weights(ray.put({"wrong": 0}), version(2))
        assert ids(background(group(pool, "p")).result(patience(60.0))) == [[10, 1], [11, 1]]
        assert pool.counters()["rollout/lost_actors"] == 0


def test_a_newcomer_is_not_lost_for_refusing_what_all_refuse() -> None:
    """It comes up during an update, is sent the same weights as the others, and waits for what becomes of them."""
    with pool_of("sound", "sound") as pool:
        publish(pool, 1)
        _wait_until(lambda: len(pool._replicas.up()) == 2)
        replicas, slot = pool._replicas, pool._replicas._slots[1]
        with replicas.changed:
            slot.replica.is_up = False
            previous, replicas.weights = replicas.weights, PublishedWeights(ray.put({"wrong": 0}), version(2))
        coming_up = threading.Thread(target=replicas._bring_up, args=(slot, slot.replica))
        coming_up.start()
        time.sleep(0.5)  # it has refused by now
        with replicas.changed:
            replicas.weights = previous
            replicas.notify()
        coming_up.join()
        assert slot.replica.is_up and pool.counters()["rollout/lost_actors"] == 0
        assert pool.counters()["rollout/ready_actors"] == 2


def test_an_actor_that_acknowledges_something_else_is_replaced(background: Callable[..., Future[Any]]) -> None:
    with pool_of("forgetful") as pool:
        assert publish(pool, 1) == 1
        assert ids(background(group(pool, "p")).result(patience(60.0))) == [[10, 1], [11, 1]]
        assert pool.counters()["rollout/lost_actors"] == 1


def test_an_actor_that_dies_between_updates_is_replaced_by_the_next_update(
    background: Callable[..., Future[Any]],
) -> None:
    with pool_of("sound", "sound") as pool:
        publish(pool, 1)
        psutil.Process(_pids_now(pool)[0]).kill()
        assert publish(pool, 2) >= 1
        _wait_until(lambda: pool.counters()["rollout/ready_actors"] == 2)
        groups = background(gather(*(group(pool, f"slow:0.3{index}") for index in range(4)))).result(patience(60.0))
        assert all(ids(rollouts) == [[10, 2], [11, 2]] for rollouts in groups)


def test_shutting_down_ends_the_processes_and_fails_running_groups(background: Callable[..., Future[Any]]) -> None:
    with pool_of("sound", "sound") as pool:
        publish(pool, 0)
        processes = [psutil.Process(pid) for pid in _pids_now(pool)]
        running = background(group(pool, "slow:60"))
        time.sleep(0.5)
        pool.shutdown()
        with pytest.raises(PoolFailed, match="shut down"):
            running.result(patience(60.0))
        assert psutil.wait_procs(processes, timeout=patience(20.0))[1] == []


def _pids_now(pool: RolloutPool) -> list[int]:
    return ray.get([actor.handle.ping.remote() for actor in pool._replicas.ready()])


def _wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + patience(timeout_s)
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_weights_lost_with_their_sender_cost_no_actor(
    background: Callable[[Coroutine[Any, Any, Any]], Future[Any]],
) -> None:
    with pool_of("sound", "sound") as pool:
        publish(pool, 0)
        before = pids([background(group(pool, f"a:{i}")).result(timeout=patience(60.0)) for i in range(4)])
        with pytest.raises(LearnerLost, match="version 1"):
            pool.load_weights(object_of_a_dead_sender(), version(1))
        assert publish(pool, 2) == 2
        assert pids([background(group(pool, f"b:{i}")).result(timeout=patience(60.0)) for i in range(4)]) <= before
        assert pool.counters()["rollout/lost_actors"] == 0


def test_a_new_replica_waits_for_weights_that_can_be_fetched() -> None:
    with pool_of("sound") as pool:
        with pytest.raises(LearnerLost, match="version 1"):
            pool.load_weights(object_of_a_dead_sender(), version(1))
        assert publish(pool, 2) == 1
        assert pool.counters()["rollout/lost_actors"] == 0


def test_groups_wait_on_and_the_loss_is_reported_when_learner_and_actors_die(
    background: Callable[[Coroutine[Any, Any, Any]], Future[Any]],
) -> None:
    with pool_of("sound") as pool:
        sender = ray.remote(num_cpus=0)(Sender).remote()
        (stored,) = ray.get(sender.put.remote(), timeout=patience(60.0))
        assert pool.load_weights(stored, version(1)) == 1
        kill_sender(sender, stored)
        pool.raise_if_weights_gone()  # the actor has them
        waiting = background(group(pool, "slow:3"))
        time.sleep(0.5)
        for pid in _pids_now(pool):
            os.kill(pid, signal.SIGKILL)

        def is_told() -> bool:
            try:
                pool.raise_if_weights_gone()
            except LearnerLost as error:
                return "version 1 were lost with the learner" in str(error)
            return False

        _wait_until(is_told)
        assert not waiting.done()
        assert publish(pool, 2) == 1
        assert ids(waiting.result(patience(60.0))) == [[10, 2], [11, 2]]
        pool.raise_if_weights_gone()
        assert pool.counters()["rollout/lost_actors"] == 1


def test_groups_wait_while_the_pool_sleeps_and_an_actor_lost_meanwhile_starts_when_it_wakes(
    background: Callable[[Coroutine[Any, Any, Any]], Future[Any]],
) -> None:
    with pool_of("sound", "sound") as pool:
        publish(pool, 1)
        pool.sleep()
        handles = [slot.replica.handle for slot in pool._replicas._slots]
        waiting = background(pool.generate(make_item("a:0"), PROMPT, (), SAMPLING))
        ray.kill(handles[0])
        assert publish(pool, 2) == 0, "none samples yet"
        assert pool._replicas._slots[0].replica.handle is handles[0], "its engine would need memory that is in use"
        assert not waiting.done()
        pool.wake()
        assert {rollout.token_versions[0] for rollout in waiting.result(patience(60.0))} == {2}
        deadline = time.monotonic() + patience(60.0)
        while pool.counters()["rollout/ready_actors"] < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert pool.counters()["rollout/ready_actors"] == 2
        assert pool.counters()["rollout/lost_actors"] == 1
        pool.sleep()
        assert pool.counters()["rollout/ready_actors"] == 0


def test_a_pool_whose_only_actor_is_lost_asleep_has_another_once_it_is_awake() -> None:
    with pool_of("sound") as pool:
        publish(pool, 1)
        pool.sleep()
        ray.kill(pool._replicas._slots[0].replica.handle)
        publish(pool, 2)
        pool.wake()
        assert pool.counters()["rollout/ready_actors"] == 1

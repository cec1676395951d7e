"""The engine's thread: order, updates between groups, and failures, with an engine that only counts."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from actors.errors import BadOutput, EngineDied, GroupAborted, NoWeights, PromptRefused, WeightsRefused
from actors.requests import GroupRequest, WeightUpdate
from actors.rollout_actor import EngineLoop
from rlsys.types import Rollout, Sampling
from rlsys.weights.manifest import NamedTensor
from rlsys.weights.version import WeightVersion
from tests.support.pace import patience
from tests.support.paths import REPO

WAIT_S = 10.0  # on the reference machine, see `tests.support.pace`
HALF_TAKEN = 99  # a version that is refused when a part of it is loaded


class CountingEngine:
    """An engine that finishes each group after as many steps as its prompt has tokens, and records its calls."""

    def __init__(self) -> None:
        self.steps_left: dict[str, int] = {}
        self.prompts: dict[str, str] = {}
        self.told: list[str] = []
        self.threads: set[int] = set()
        self.may_step = threading.Event()
        self.may_step.set()
        self.step_error: Exception | None = None
        self.most = 100
        self.version: WeightVersion | None = version(0)

    def add(self, request_id: str, request: GroupRequest, frames: Sequence[np.ndarray]) -> None:
        self.threads.add(threading.get_ident())
        if request.prompt_id == "refused":
            raise PromptRefused("refused: too long")
        self.told.append(f"add {request.prompt_id}")
        self.steps_left[request_id] = request.engine_ids.size
        self.prompts[request_id] = request.prompt_id

    @property
    def has_room(self) -> bool:
        return len(self.steps_left) < self.most

    def can_keep(self, version: WeightVersion) -> bool:
        return version.kind == "full"

    def abort(self, request_id: str) -> None:
        del self.steps_left[request_id]
        self.told.append(f"abort {self.prompts[request_id]}")

    def step(self) -> list[tuple[str, tuple[Rollout, ...] | BadOutput]]:
        self.threads.add(threading.get_ident())
        assert self.may_step.wait(patience(WAIT_S))
        if self.step_error:
            raise self.step_error
        self.steps_left = {name: left - 1 for name, left in self.steps_left.items()}
        ended = [name for name, left in self.steps_left.items() if left == 0]
        for name in ended:
            del self.steps_left[name]
            self.told.append(f"end {self.prompts[name]}")
        return [(name, BadOutput("nan") if self.prompts[name] == "bad" else ()) for name in ended]

    def load_weights(self, tensors: Mapping[str, NamedTensor], version: WeightVersion) -> WeightVersion:
        self.threads.add(threading.get_ident())
        if version.version < 0:
            raise WeightsRefused("below zero")
        self.version = None if version.version == HALF_TAKEN else version
        if self.version is None:
            raise WeightsRefused("broke off")
        self.told.append(f"load {version.version}")
        return version

    def shutdown(self) -> None:
        self.told.append("shutdown")


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@contextmanager
def _loop(engine: CountingEngine, weight_update: WeightUpdate) -> Iterator[EngineLoop]:
    loop = EngineLoop(lambda: engine, weight_update)
    loop.wait_started(patience(WAIT_S))
    yield loop
    engine.may_step.set()
    loop.stop().exception(patience(WAIT_S))


@pytest.fixture
def loop(engine: CountingEngine) -> Iterator[EngineLoop]:
    with _loop(engine, "pause") as loop:
        yield loop


def _until_told(engine: CountingEngine, what: str) -> None:
    deadline = time.monotonic() + patience(WAIT_S)
    while what not in engine.told:
        assert time.monotonic() < deadline, engine.told
        time.sleep(0.01)


def _both(prompt_id: str) -> list[str]:
    return [f"add {prompt_id}", f"end {prompt_id}"]


def request(prompt_id: str, steps: int = 1) -> GroupRequest:
    sampling = Sampling(num_samples=1, temperature=1.0, top_p=1.0, max_tokens=1, seed=0)
    return GroupRequest(
        prompt_id=prompt_id, engine_ids=np.zeros(steps, np.int32), num_tokens=steps, clips=(), sampling=sampling
    )


def version(number: int) -> WeightVersion:
    return WeightVersion(version=number, transport="", num_tensors=0, num_bytes=0, digest="")


def test_a_short_group_ends_before_a_long_one_that_was_added_first(engine: CountingEngine, loop: EngineLoop) -> None:
    engine.may_step.clear()
    groups = [loop.generate(request("long", 5), ()), loop.generate(request("short", 1), ())]
    engine.may_step.set()
    assert [group.result(patience(WAIT_S)) for group in groups] == [(), ()]
    assert engine.told.index("end short") < engine.told.index("end long")


def test_an_update_waits_for_running_groups_and_precedes_waiting_ones(engine: CountingEngine, loop: EngineLoop) -> None:
    engine.most = 1
    engine.may_step.clear()
    groups = [loop.generate(request("before", 3), ()), loop.generate(request("no room"), ())]
    _until_told(engine, "add before")
    update = loop.load_weights({}, version(4))
    groups.append(loop.generate(request("after"), ()))
    engine.may_step.set()
    assert update.result(patience(WAIT_S)).version == 4
    assert [group.result(patience(WAIT_S)) for group in groups] == [(), (), ()]
    assert engine.told == ["add before", "end before", "load 4", *_both("no room"), *_both("after")]


def test_keep_loads_while_groups_run_and_they_continue(engine: CountingEngine) -> None:
    with _loop(engine, "keep") as loop:
        engine.may_step.clear()
        running = loop.generate(request("running", 3), ())
        _until_told(engine, "add running")
        updates = [loop.load_weights({}, version(number)) for number in (1, 2)]
        engine.may_step.set()
        assert [update.result(patience(WAIT_S)).version for update in updates] == [1, 2]
        assert running.result(patience(WAIT_S)) == ()
        assert engine.told == ["add running", "load 1", "load 2", "end running"]


@pytest.mark.parametrize(("mode", "kind"), [("abort", "full"), ("keep", "adapter")])
def test_groups_that_may_not_continue_are_ended_by_an_update(
    engine: CountingEngine, mode: WeightUpdate, kind: Literal["full", "adapter"]
) -> None:
    with _loop(engine, mode) as loop:
        engine.may_step.clear()
        running = loop.generate(request("running", 1000), ())
        _until_told(engine, "add running")
        update = loop.load_weights({}, replace(version(7), kind=kind))
        engine.may_step.set()
        with pytest.raises(GroupAborted, match="version 7"):
            running.result(patience(WAIT_S))
        update.result(patience(WAIT_S))
        assert loop.generate(request("again"), ()).result(patience(WAIT_S)) == ()
        assert engine.told == ["add running", "abort running", "load 7", *_both("again")]


def test_no_group_continues_with_incomplete_weights(engine: CountingEngine) -> None:
    with _loop(engine, "keep") as loop:
        engine.may_step.clear()
        running = loop.generate(request("running", 1000), ())
        _until_told(engine, "add running")
        update = loop.load_weights({}, version(HALF_TAKEN))
        engine.may_step.set()
        with pytest.raises(WeightsRefused, match="broke off"):
            update.result(patience(WAIT_S))
        with pytest.raises(GroupAborted, match="broke off"):
            running.result(patience(WAIT_S))


def test_a_running_group_that_is_no_longer_awaited_is_aborted(engine: CountingEngine, loop: EngineLoop) -> None:
    engine.may_step.clear()
    running = loop.generate(request("running", 1000), ())
    _until_told(engine, "add running")
    loop.forget(running)
    engine.may_step.set()
    assert loop.load_weights({}, version(1)).result(patience(WAIT_S)).version == 1
    assert engine.told == ["add running", "abort running", "load 1"]
    assert not running.done()


def test_the_engine_is_only_ever_called_in_one_thread(engine: CountingEngine, loop: EngineLoop) -> None:
    callers = [
        threading.Thread(target=lambda: loop.generate(request("p", 2), ()).result(patience(WAIT_S))) for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(patience(WAIT_S))
    loop.load_weights({}, version(1)).result(patience(WAIT_S))
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


def test_a_refused_prompt_or_update_affects_no_other_group(engine: CountingEngine, loop: EngineLoop) -> None:
    with pytest.raises(PromptRefused, match="too long"):
        loop.generate(request("refused"), ()).result(patience(WAIT_S))
    with pytest.raises(WeightsRefused, match="below zero"):
        loop.load_weights({}, version(-1)).result(patience(WAIT_S))
    with pytest.raises(BadOutput, match="nan"):
        loop.generate(request("bad"), ()).result(patience(WAIT_S))
    assert loop.generate(request("good"), ()).result(patience(WAIT_S)) == ()


def test_when_the_engine_fails_everything_pending_and_later_fails_with_its_error(
    engine: CountingEngine, loop: EngineLoop
) -> None:
    engine.may_step.clear()
    engine.step_error = RuntimeError("out of memory")
    pending = [loop.generate(request("a", 3), ())]
    _until_told(engine, "add a")
    pending += [loop.generate(request("b"), ()), loop.load_weights({}, version(1))]
    engine.may_step.set()
    for future in [*pending, loop.generate(request("later"), ())]:
        with pytest.raises(EngineDied, match="RuntimeError: out of memory"):
            future.result(patience(WAIT_S))


def test_a_waiting_group_that_is_no_longer_awaited_never_reaches_the_engine(
    engine: CountingEngine, loop: EngineLoop
) -> None:
    engine.may_step.clear()
    running = loop.generate(request("running", 2), ())
    _until_told(engine, "add running")
    update = loop.load_weights({}, version(1))  # what comes after it stays in the queue
    cancelled = loop.generate(request("cancelled"), ())
    assert cancelled.cancel()
    engine.may_step.set()
    update.result(patience(WAIT_S))
    assert running.result(patience(WAIT_S)) == ()
    assert loop.generate(request("next"), ()).result(patience(WAIT_S)) == ()
    with pytest.raises(CancelledError):
        cancelled.result(patience(WAIT_S))
    assert "add cancelled" not in engine.told


def test_stopping_ends_the_engine_and_fails_running_groups(engine: CountingEngine, loop: EngineLoop) -> None:
    engine.may_step.clear()
    running = loop.generate(request("endless", 1000), ())
    stopped = loop.stop()
    engine.may_step.set()
    stopped.result(patience(WAIT_S))
    with pytest.raises(EngineDied, match="shut down"):
        running.result(patience(WAIT_S))
    assert engine.told[-1] == "shutdown"


def test_an_engine_that_cannot_load_says_why() -> None:
    def make() -> CountingEngine:
        raise NoWeights("no such folder")

    loop = EngineLoop(make)
    with pytest.raises(NoWeights, match="no such folder"):
        loop.wait_started(patience(WAIT_S))
    with pytest.raises(EngineDied, match="no such folder"):
        loop.generate(request("p"), ()).result(patience(WAIT_S))


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_process_can_end_while_its_engine_waits_or_works(is_busy: bool) -> None:
    """Ray ends the process of an actor whose cluster is gone as any Python program ends."""
    code = (
        "import sys; from tests.actors.test_rollout_actor import *\n"
        "loop = EngineLoop(CountingEngine); loop.wait_started(60)\n"
        f"if {is_busy}: group = loop.generate(request('endless', 10**7), ())\n"
        "sys.stdout.write('ending'); sys.stdout.flush(); sys.exit(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, timeout=patience(60.0)
    )
    assert (done.returncode, done.stdout) == (3, "ending"), done.stderr

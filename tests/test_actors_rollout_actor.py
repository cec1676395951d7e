"""The engine's thread: order, updates between groups, failures; with an engine that only counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError

import numpy as np
import pytest

from actors.errors import BadOutput, EngineDied, NoWeights, PromptRefused, WeightsRefused
from actors.requests import GroupRequest
from actors.rollout_actor import EngineLoop
from rlsys.types import Rollout, Sampling, WeightVersion
from rlsys.weights import NamedTensor

WAIT_S = 10.0


class CountingEngine:
    """Finishes each group after as many steps as its prompt has tokens; writes down what it is told."""

    def __init__(self) -> None:
        self.steps_left: dict[str, int] = {}
        self.prompts: dict[str, str] = {}
        self.told: list[str] = []
        self.threads: set[int] = set()
        self.may_step = threading.Event()
        self.may_step.set()
        self.step_error: Exception | None = None
        self.most = 100

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
        assert self.may_step.wait(WAIT_S)
        if self.step_error:
            raise self.step_error
        self.steps_left = {name: left - 1 for name, left in self.steps_left.items()}
        ended = [name for name, left in self.steps_left.items() if left == 0]
        for name in ended:
            del self.steps_left[name]
            self.told.append(f"end {self.prompts[name]}")
        return [(name, BadOutput("nan") if self.prompts[name] == "bad" else ()) for name in ended]

    def load_weights(self, payload: Mapping[str, NamedTensor], version: WeightVersion) -> WeightVersion:
        self.threads.add(threading.get_ident())
        assert not self.steps_left
        if version.version < 0:
            raise WeightsRefused("below zero")
        self.told.append(f"load {version.version}")
        return version

    def shutdown(self) -> None:
        self.told.append("shutdown")


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def loop(engine: CountingEngine) -> Iterator[EngineLoop]:
    loop = EngineLoop(lambda: engine)
    loop.wait_started(WAIT_S)
    yield loop
    engine.may_step.set()
    loop.stop().exception(WAIT_S)


def request(prompt_id: str, steps: int = 1) -> GroupRequest:
    sampling = Sampling(num_samples=1, temperature=1.0, top_p=1.0, max_tokens=1, seed=0)
    return GroupRequest(prompt_id=prompt_id, engine_ids=np.zeros(steps, np.int32), clips=(), sampling=sampling)


def version(number: int) -> WeightVersion:
    return WeightVersion(version=number, transport="", num_tensors=0, num_bytes=0, digest="")


def test_a_short_group_comes_out_before_a_long_one_that_came_first(engine: CountingEngine, loop: EngineLoop) -> None:
    engine.may_step.clear()
    groups = [loop.generate(request("long", 5), ()), loop.generate(request("short", 1), ())]
    engine.may_step.set()
    assert [group.result(WAIT_S) for group in groups] == [(), ()]
    assert engine.told.index("end short") < engine.told.index("end long")


def test_an_update_waits_for_what_runs_and_what_follows_waits_for_it(engine: CountingEngine, loop: EngineLoop) -> None:
    engine.may_step.clear()
    first = loop.generate(request("before", 3), ())
    update = loop.load_weights({}, version(4))
    last = loop.generate(request("after"), ())
    engine.may_step.set()
    assert update.result(WAIT_S).version == 4
    assert (first.result(WAIT_S), last.result(WAIT_S)) == ((), ())
    assert engine.told == ["add before", "end before", "load 4", "add after", "end after"]


def test_the_engine_is_only_ever_called_in_one_thread(engine: CountingEngine, loop: EngineLoop) -> None:
    callers = [threading.Thread(target=lambda: loop.generate(request("p", 2), ()).result(WAIT_S)) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(WAIT_S)
    loop.load_weights({}, version(1)).result(WAIT_S)
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads


def test_a_refused_prompt_or_payload_harms_nobody_else(engine: CountingEngine, loop: EngineLoop) -> None:
    with pytest.raises(PromptRefused, match="too long"):
        loop.generate(request("refused"), ()).result(WAIT_S)
    with pytest.raises(WeightsRefused, match="below zero"):
        loop.load_weights({}, version(-1)).result(WAIT_S)
    with pytest.raises(BadOutput, match="nan"):
        loop.generate(request("bad"), ()).result(WAIT_S)
    assert loop.generate(request("good"), ()).result(WAIT_S) == ()


def test_when_the_engine_fails_everything_pending_and_later_fails_with_its_error(
    engine: CountingEngine, loop: EngineLoop
) -> None:
    engine.may_step.clear()
    engine.step_error = RuntimeError("out of memory")
    pending = [loop.generate(request("a", 3), ()), loop.generate(request("b"), ()), loop.load_weights({}, version(1))]
    engine.may_step.set()
    for future in [*pending, loop.generate(request("later"), ())]:
        with pytest.raises(EngineDied, match="RuntimeError: out of memory"):
            future.result(WAIT_S)


def test_a_group_that_nobody_awaits_any_more_never_reaches_the_engine(engine: CountingEngine, loop: EngineLoop) -> None:
    engine.may_step.clear()
    running = loop.generate(request("running", 2), ())
    update = loop.load_weights({}, version(1))  # what comes after it stays in the queue
    cancelled = loop.generate(request("cancelled"), ())
    assert cancelled.cancel()
    engine.may_step.set()
    update.result(WAIT_S)
    assert running.result(WAIT_S) == ()
    assert loop.generate(request("next"), ()).result(WAIT_S) == ()
    with pytest.raises(CancelledError):
        cancelled.result(WAIT_S)
    assert "add cancelled" not in engine.told


def test_stopping_ends_the_engine_and_fails_what_still_runs(engine: CountingEngine, loop: EngineLoop) -> None:
    engine.may_step.clear()
    running = loop.generate(request("endless", 1000), ())
    stopped = loop.stop()
    engine.may_step.set()
    stopped.result(WAIT_S)
    with pytest.raises(EngineDied, match="shut down"):
        running.result(WAIT_S)
    assert engine.told[-1] == "shutdown"


def test_an_engine_that_cannot_load_says_why() -> None:
    def make() -> CountingEngine:
        raise NoWeights("no such folder")

    loop = EngineLoop(make)
    with pytest.raises(NoWeights, match="no such folder"):
        loop.wait_started(WAIT_S)
    with pytest.raises(EngineDied, match="no such folder"):
        loop.generate(request("p"), ()).result(WAIT_S)

"""Custom scorers in processes of their own, so that nothing they do harms the server or the other rows.

A call that is not back at the caller's deadline ends with its process, which is stopped and replaced; so does one that
ends the process itself, by os._exit or a crash. Every call gets its own copy of the response.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from reward_servers.schema import ScorerFault
from reward_servers.scorers.response import Response
from reward_servers.scorers.user_scorers import UserScorerError
from rlsys import env
from rlsys.config.run import ConfigError

MAX_AT_ONCE = 8
"""Most processes, and so most calls at once, of one server: a usual group is scored side by side."""
SLOW_S = 0.5
"""Mean seconds of a call from which a scorer is reported as slow."""
_SLOW_AFTER_CALLS = 4
_GROW_AFTER_S = 0.05  # a call that waits longer than this gets another process: fast scorers need only one
_START_TIMEOUT_S = 300.0  # a scorer's module may load a model
_STDERR = 2
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from reward_servers.scorers.scorer_worker import main; main(int(sys.argv[1]), json.loads(sys.argv[3]))"
)


class ScorerProcesses:
    """Calls the custom scorers of `reward.scorers` (score name -> `module:function`), up to `MAX_AT_ONCE` at a time.

    without: environment variables that the scorers' processes do not get. Use it from any event loop; `close` stops
    the processes, which otherwise end with this one.
    """

    def __init__(self, references: Mapping[str, str], without: Collection[str] = env.OWN_SECRETS) -> None:
        self._references = dict(references)
        self._without = frozenset(without)
        self._threads = ThreadPoolExecutor(MAX_AT_ONCE, "custom-scorers")
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._alive: set[_Worker] = set()
        self._num_starting = self._num_failed_starts = 0
        self._failure = ""
        self._is_closed = False
        self._seconds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=32))  # of the last calls, by scorer

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the custom scores."""
        return tuple(self._references)

    async def score(self, name: str, response: Response, deadline_s: float) -> float:
        """Return the score `name` of `response`. deadline_s: on the clock of time.monotonic.

        Raises UserScorerError when there is none by then.
        """
        asked_s = time.monotonic()
        call = asyncio.get_running_loop().run_in_executor(self._threads, self._call, name, response, deadline_s)
        try:
            async with asyncio.timeout(max(deadline_s - asked_s, 0.0) + 1.0):  # the thread keeps the deadline
                return await call
        except TimeoutError:
            raise self._late(name, "was not called", time.monotonic() - asked_s) from None

    def seconds(self) -> Mapping[str, float]:
        """Return the mean seconds of each scorer's last calls."""
        return {name: sum(calls) / len(calls) for name, calls in list(self._seconds.items()) if calls}

    def slow(self) -> Mapping[str, float]:
        """Return the scorers that take `SLOW_S` or more, with their mean seconds."""
        return {
            name: seconds
            for name, seconds in self.seconds().items()
            if seconds >= SLOW_S and len(self._seconds[name]) >= _SLOW_AFTER_CALLS
        }

    def close(self) -> None:
        """Stop the processes, calls included."""
        with self._changed:
            self._is_closed = True
            alive, self._alive = self._alive, set()
            self._idle.clear()
            self._changed.notify_all()
        for worker in alive:
            worker.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _call(self, name: str, response: Response, deadline_s: float) -> float:
        asked_s = time.monotonic()
        worker = self._taken(deadline_s)
        if worker is None:
            raise self._late(name, "was not called", time.monotonic() - asked_s)
        started_s = time.monotonic()
        try:
            outcome = worker.ask(name, response, deadline_s)
        except (EOFError, OSError, ValueError):  # the last is of an answer that is none
            self._drop(worker)
            raise _ended(name, worker.stop()) from None
        finally:
            self._seconds[name].append(time.monotonic() - started_s)
        if outcome is None:
            self._drop(worker)
            worker.kill()
            worker.stop()
            raise self._late(name, "did not return", time.monotonic() - started_s)
        self._give_back(worker)
        if "score" in outcome:
            return float(outcome["score"])
        raise UserScorerError(outcome["reason"], ScorerFault.model_validate(outcome["fault"]))

    def _taken(self, deadline_s: float) -> _Worker | None:
        """Return an idle process, started where none is; None when the deadline passes first."""
        waits_since_s = time.monotonic()
        with self._changed:
            failures = self._num_failed_starts
            while True:
                while self._idle:
                    worker = self._idle.pop()
                    if worker.is_alive():
                        return worker
                    self._alive.discard(worker)  # it ended between two calls, which is no scorer's fault
                now_s = time.monotonic()
                if now_s >= deadline_s or self._is_closed:
                    return None
                if self._num_failed_starts > failures:
                    fault = ScorerFault(scorer=", ".join(self.names), kind="could not start", details=self._failure)
                    raise UserScorerError(self._failure, fault)
                if self._may_start(now_s - waits_since_s):
                    self._num_starting += 1
                    threading.Thread(target=self._start, name="start-custom-scorers", daemon=True).start()
                self._changed.wait(min(deadline_s - now_s, _GROW_AFTER_S))

    def _may_start(self, waited_s: float) -> bool:
        num_ready = len(self._alive)
        if num_ready + self._num_starting >= MAX_AT_ONCE:
            return False
        return num_ready + self._num_starting == 0 or (num_ready > 0 and waited_s >= _GROW_AFTER_S)

    def _start(self) -> None:
        failure, worker = "", None
        try:
            worker = _Worker(self._references, self._without)
        except (ConfigError, OSError) as error:
            failure = str(error)
        with self._changed:
            self._num_starting -= 1
            if worker is None:
                self._num_failed_starts += 1
                self._failure = f"the process of the custom scorers could not start: {failure}"
            elif not self._is_closed:
                self._alive.add(worker)
                self._idle.append(worker)
                worker = None
            self._changed.notify_all()
        if worker is not None:
            worker.stop()

    def _drop(self, worker: _Worker) -> None:
        with self._changed:
            self._alive.discard(worker)
            self._changed.notify_all()

    def _give_back(self, worker: _Worker) -> None:
        with self._changed:
            self._idle.append(worker)
            self._changed.notify()

    def _late(self, name: str, what: str, seconds: float) -> UserScorerError:
        took = self.seconds().get(name)
        usual = f"; its last calls took {took:.2g} s on average" if took is not None else ""
        reason = f"scorer {name!r} {what} before the request's deadline ({seconds:.1f} s){usual}"
        if what == "did not return":
            reason += "; its process was stopped"
        return UserScorerError(f"{reason}.", ScorerFault(scorer=name, kind="late", details=reason))


def try_scorers(references: Mapping[str, str]) -> None:
    """Load custom scorers as the servers will, in a process that ends again. Raises ConfigError for unusable ones."""
    if references:
        _Worker(references, env.OWN_SECRETS).stop()


class _Worker:
    """One process of scorers, ready for calls. Raises ConfigError when the scorers cannot be loaded there."""

    def __init__(self, references: Mapping[str, str], without: Collection[str]) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps(sys.path), json.dumps(dict(references))],
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,  # what the scorers print is none of the command's output
                pass_fds=[theirs.fileno()],
                env={name: value for name, value in os.environ.items() if name not in without},
                start_new_session=True,  # an interrupt at the terminal is for the command, which ends its processes
            )
        finally:
            theirs.close()
        try:
            answer = self._answer(time.monotonic() + _START_TIMEOUT_S)
        except (EOFError, OSError):
            raise ConfigError(
                f"{_field(references)}: Python ended as it imported them ({_ending(self.stop())})."
            ) from None
        if answer is None or "error" in answer:
            self.stop()
            late = f"{_field(references)}: not imported within {_START_TIMEOUT_S:.0f} s."
            raise ConfigError(late if answer is None else answer["error"])

    def ask(self, name: str, response: Response, deadline_s: float) -> Mapping[str, Any] | None:
        """Return the outcome of one call, None at the deadline. Raises EOFError or OSError when the process ends."""
        self._connection.send((name, response))
        return self._answer(deadline_s)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process and what it started at once; a call that waits for it finds it ended."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the process leads a group of its own
            self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """End the process and return its exit code, which is its own where it has ended by itself."""
        self._connection.close()  # on which one that is alive and idle ends too
        try:
            code = self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        return code

    def _answer(self, deadline_s: float) -> Mapping[str, Any] | None:
        if not self._connection.poll(max(deadline_s - time.monotonic(), 0.0)):
            return None
        return dict(json.loads(self._connection.recv_bytes()))


def _field(references: Mapping[str, str]) -> str:
    return f"reward.scorers ({', '.join(references.values())})"


def _ended(name: str, code: int) -> UserScorerError:
    reason = f"scorer {name!r} ended its process ({_ending(code)}); a scorer returns a number and does not exit."
    return UserScorerError(reason, ScorerFault(scorer=name, kind="ended its process", details=reason))


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    names = {known.value: known.name for known in signal.Signals}
    return f"signal {names.get(-code, -code)}"  # real-time signals have no name

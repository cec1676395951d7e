"""The process in which a user's scorers run, one call at a time, as `ScorerProcesses` starts it.

It reads (name, response) from the connection that it inherits and answers each with JSON: {"score": 0.5}, or
{"reason": …, "fault": …}. It ends with the process that started it, also while it still loads the scorers.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NoReturn

from reward_servers.scorers.response import Response
from reward_servers.scorers.user_scorers import UserScorer, UserScorerError, call_user_scorer, load_user_scorers
from rlsys.config.run import ConfigError

Call = tuple[str, Response]


def main(descriptor: int, references: Mapping[str, str]) -> None:
    """Load the scorers and serve calls on the connection `descriptor` until its other end closes."""
    connection = Connection(descriptor)
    calls: SimpleQueue[Call] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, calls), daemon=True).start()
    try:
        scorers = load_user_scorers(references)
    except ConfigError as error:
        _answer(connection, {"error": str(error)})
        return
    _answer(connection, {})
    own_id = os.getpid()
    while True:
        outcome = _outcome(scorers, *calls.get())
        if os.getpid() != own_id:  # a scorer that forks comes back twice, and a second answer would be the next call's
            os._exit(1)
        _answer(connection, outcome)


def _read(connection: Connection, calls: SimpleQueue[Call]) -> None:
    """Pass calls on, and end this process with the one that sends them, even in the middle of a call."""
    try:
        while True:
            calls.put(connection.recv())
    except (EOFError, OSError):
        _end()


def _outcome(scorers: Mapping[str, UserScorer], name: str, response: Response) -> dict[str, Any]:
    try:
        return {"score": call_user_scorer(name, scorers[name], response)}
    except UserScorerError as error:
        return {"reason": str(error), "fault": error.fault.model_dump()}


def _answer(connection: Connection, message: Mapping[str, Any]) -> None:
    try:
        connection.send_bytes(json.dumps(message).encode())
    except OSError:  # no process is there to read it
        _end()


def _end() -> NoReturn:
    """End this process at once, with what the scorers started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)

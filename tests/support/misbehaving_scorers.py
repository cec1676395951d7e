"""Custom scorers that do what they should not, and a few that behave. Light, as processes of their own import it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import uuid
from pathlib import Path

from reward_servers.scorers.response import Response


def process_id(response: Response) -> float:
    return os.getpid() / 1e9


def exits(response: Response) -> float:
    os._exit(7)


def crashes(response: Response) -> float:
    os.abort()


def dies_of_a_nameless_signal(response: Response) -> float:
    os.kill(os.getpid(), signal.SIGRTMIN + 6)
    time.sleep(3600)
    return 1.0


def forks(response: Response) -> float:
    """Comes back twice, from two processes, the second time with a wrong score."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return float(response.text) if child else 0.0


def leaves_a_process(response: Response) -> float:
    """Waits for a process of its own, whose number it writes to the file that the response names."""
    child = subprocess.Popen(["sleep", "3600"])
    Path(response.text).write_text(str(child.pid))
    child.wait()
    return 1.0


def raises_half_a_character(response: Response) -> float:
    raise ValueError("\ud800")


def hangs(response: Response) -> float:
    if "hang" in response.text:
        time.sleep(3600)
    return 1.0


def backtracks(response: Response) -> float:
    """Holds the interpreter's lock for ever, as a careless regular expression does."""
    return float(bool(re.match(r"(a+)+$", "a" * 64 + "!")))


def half_a_second(response: Response) -> float:
    time.sleep(0.5)
    return 0.5


def meets(response: Response) -> float:
    """Waits in the folder that the response names until four calls are there."""
    folder = Path(response.text)
    (folder / uuid.uuid4().hex).touch()
    while len(list(folder.iterdir())) < 4:
        time.sleep(0.01)
    return 1.0


def vandal(response: Response) -> float:
    """Changes all that it is given, and its copy was as the others' is."""
    is_whole = response.truth == [2.0, 6.0] and set(response.answers) == {"answer"}
    response.truth[:] = [0.0, 0.0]
    response.answers.clear()  # type: ignore[attr-defined]
    response.expected.clear()  # type: ignore[attr-defined]
    object.__setattr__(response, "text", "")
    return float(is_whole)


def spoils_json(response: Response) -> float:
    """Replaces a function of the standard library, by which its own answer is written."""
    json.dumps = lambda *arguments, **named: "no JSON"  # type: ignore[assignment]
    return 1.0


def picky(response: Response) -> float:
    if "bad" in response.text:
        raise ValueError("not this one")
    return 0.75


def talks(response: Response) -> float:
    os.write(1, b"to stdout")
    print("to stdout")  # noqa: T201
    return float(os.read(0, 10) == b"")


def has_secret(response: Response) -> float:
    return float("RLSYS_TEST_SECRET" in os.environ)

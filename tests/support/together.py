"""Run as `python -m tests.support.together LABEL FOLDER URI…`: one run for each address, all in their stores at once.

The processes are forks of this one, which has imported everything, so that they meet where stores are made. Prints a
line for each: its index, and "ok" or what ended it. LABEL "killed": the first is killed as it is about to name the file
that it made, while the others wait for it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from rlsys.tracking import sqlite_store
from rlsys.tracking.store_address import TrackingError
from rlsys.tracking.tracker import Tracker
from rlsys.tracking.uploader import Patience
from tests.rlsys.tracking.test_store import log_steps, make_config

processes = multiprocessing.get_context("fork")


def one_run(index: int, uri: str, folder: Path, start: Barrier, ended: Queue[tuple[int, str]]) -> None:
    start.wait()
    try:
        with Tracker(make_config(folder / f"run{index}", uri=uri), patience=Patience(close_s=240.0)) as tracker:
            log_steps(tracker, range(1, 4))
        ended.put((index, "ok"))
    except TrackingError as error:
        ended.put((index, str(error)))


def killed(uri: str, folder: Path, made: Event) -> None:
    def die(*_: object) -> None:
        made.set()
        os.kill(os.getpid(), signal.SIGKILL)

    sqlite_store.os.replace = die  # type: ignore[attr-defined]
    Tracker(make_config(folder / "killed", uri=uri)).__enter__()


def main(label: str, folder: Path, uris: Sequence[str]) -> None:
    os.chdir(folder)  # of relative addresses
    if label == "killed":
        made = processes.Event()
        victim = processes.Process(target=killed, args=(uris[0], folder, made))
        victim.start()
        made.wait()
    start, ended = processes.Barrier(len(uris)), processes.Queue()
    runs = [
        processes.Process(target=one_run, args=(index, uri, folder, start, ended)) for index, uri in enumerate(uris)
    ]
    for run in runs:
        run.start()
    found = sorted(ended.get() for _ in runs)
    for run in runs:
        run.join()
    sys.stdout.write("".join(f"{index} {said}\n" for index, said in found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])

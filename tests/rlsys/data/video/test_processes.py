"""Work that hangs, dies or raises in a process of its own."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker

import psutil
import pytest

from rlsys.data.video.processes import each_apart
from tests.support.pace import patience


def behave(kind: str) -> str:
    if kind == "hangs":
        time.sleep(3600)
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "raises":
        raise LookupError(kind)
    return kind.upper()


def test_one_that_hangs_or_dies_costs_the_others_nothing() -> None:
    kinds = ["a", "dies", "b", "hangs", "c", "dies", "hangs", "d"]
    found = list(each_apart(behave, kinds, workers=2, timeout_s=patience(10.0)))
    assert [one if isinstance(one, str) else type(one) for one in found] == [
        "A", BrokenProcessPool, "B", TimeoutError, "C", BrokenProcessPool, TimeoutError, "D",
    ]  # fmt: skip
    assert list(each_apart(behave, [], workers=2, timeout_s=1)) == []


def test_nothing_is_left_behind_an_error_or_a_reader_who_stops() -> None:
    resource_tracker.ensure_running()  # of this process, and stays
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(LookupError, match="raises"):
        list(each_apart(behave, ["a", "raises", "hangs"], workers=2, timeout_s=3600))
    started = each_apart(behave, ["a", "hangs", "b"], workers=2, timeout_s=3600)
    assert next(started) == "A"
    started.close()  # type: ignore[attr-defined]
    left = set(psutil.Process().children(recursive=True)) - before
    _, alive = psutil.wait_procs(left, patience(30.0))
    assert not alive

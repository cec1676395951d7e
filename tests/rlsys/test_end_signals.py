"""A process that is asked to end leaves every `with` block on its way out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from rlsys.end_signals import ENDING, end_on_signals, rearm
from tests.support.pace import patience


@pytest.mark.parametrize("number", ENDING)
def test_every_ending_signal_unwinds_and_exits_with_its_number(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # whatever started the tests may ignore some, as nohup does
    try:
        with pytest.raises(SystemExit) as exited, end_on_signals():
            os.kill(os.getpid(), number)
            signal.pause()
        assert exited.value.code == 128 + number
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_the_starter_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with end_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_library_installed_meanwhile_is_replaced_and_nesting_changes_nothing() -> None:
    with pytest.raises(SystemExit), end_on_signals(), end_on_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        rearm()
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()


def test_other_threads_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)  # Ray's, where an earlier test started it in this process

    def run() -> None:
        with end_on_signals():
            rearm()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.stack
def test_sigterm_during_rays_start_ends_with_143_and_no_stack_trace() -> None:
    code = (
        "import os, signal, threading\n"
        "from rlsys.end_signals import end_on_signals, rearm\n"
        "with end_on_signals():\n"
        "    import ray\n"
        "    ray.init(num_cpus=1, include_dashboard=False, logging_level=50, _node_ip_address='127.0.0.1')\n"
        "    rearm()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(300.0))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM" not in done.stderr
    assert "stack" not in done.stderr.lower()

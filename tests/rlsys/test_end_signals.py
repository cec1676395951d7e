"""A process that is asked to end leaves every `with` block on its way out."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import pytest

from rlsys.end_signals import ENDING, defer_signals, end_on_signals, name_of_end, rearm


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
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_library_installed_meanwhile_is_replaced_and_nesting_changes_nothing() -> None:
    with pytest.raises(SystemExit), end_on_signals(), end_on_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        rearm()
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()


@pytest.mark.parametrize("made_of_it", [SystemExit(1), RuntimeError("broken off"), SystemExit(int(signal.SIGTERM))])
def test_whatever_a_library_makes_of_the_exit_the_block_ends_with_it(made_of_it: BaseException) -> None:
    with pytest.raises(SystemExit) as exited, end_on_signals():
        with contextlib.suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        raise made_of_it
    assert name_of_end(exited.value) == "SIGTERM"
    with pytest.raises(RuntimeError), end_on_signals():
        raise RuntimeError("of its own")


@pytest.mark.parametrize("number", [*ENDING, signal.SIGINT])
def test_a_deferred_signal_ends_the_block_at_its_end_and_a_second_one_at_once(number: signal.Signals) -> None:
    before = {one: signal.getsignal(one) for one in (number, signal.SIGINT)}
    signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    done = []
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)) as ended, end_on_signals(), defer_signals():
            os.kill(os.getpid(), number)
            done.append("the rest of the block")
        assert (name_of_end(ended.value), done) == (number.name, ["the rest of the block"])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises((SystemExit, KeyboardInterrupt)), end_on_signals(), defer_signals():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            done.append("not reached")
        assert len(done) == 1
        with pytest.raises((SystemExit, KeyboardInterrupt)), end_on_signals(), defer_signals():
            os.kill(os.getpid(), number)
            raise RuntimeError("the library gives up")
        with end_on_signals(), defer_signals():
            pass  # nothing is remembered
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_other_threads_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)  # Ray's, where an earlier test started it in this process

    def run() -> None:
        with end_on_signals():
            rearm()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before

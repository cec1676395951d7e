"""Arithmetic of windows, and the dates that servers send."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_servers.client.retry_after import retry_after_s
from reward_servers.judging.endpoints.limits import Breaker, Charge, Window

STEPS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 50), st.integers(0, 80), st.booleans()), max_size=40)


def fits(charges: list[Charge], at: float, tokens: int, window: Window) -> bool:
    """By counting everything again."""
    inside = [charge for charge in charges if charge.leaves_at > at]
    has_calls = not window.max_calls or sum(charge.calls for charge in inside) < window.max_calls
    held = sum(charge.tokens for charge in inside)
    return has_calls and (not window.max_tokens or held + min(tokens, window.max_tokens) <= window.max_tokens)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, max_calls=st.integers(0, 5), max_tokens=st.integers(0, 100))
def test_a_window_names_the_first_moment_at_which_a_call_fits(
    steps: list[tuple[int, int, int, bool]], max_calls: int, max_tokens: int
) -> None:
    window = Window(60.0, 5.0, max_calls, max_tokens)
    charges: list[Charge] = []
    at = 0.0
    for pause, tokens, billed, is_over in steps:
        at += pause
        free_at = window.free_at(at, tokens)
        moments = [at, *(charge.leaves_at for charge in charges if charge.leaves_at > at)]
        assert free_at == next(moment for moment in sorted(moments) if fits(charges, moment, tokens, window))
        at = free_at
        charges.append(window.add(at, tokens))
        if is_over:
            over = charges[pause % len(charges)]
            window.settle(over, at, billed, calls=min(over.calls, billed))
    window.drop_old(at)
    inside = [charge for charge in charges if charge.leaves_at > at]
    assert window.calls == sum(charge.calls for charge in inside)
    assert window.tokens == sum(charge.tokens for charge in inside)


@pytest.mark.parametrize(("end", "leaves_at"), [(12.0, 72.0), (15.0, 75.0), (40.0, 75.0)])
def test_a_call_counts_from_when_it_must_have_arrived(end: float, leaves_at: float) -> None:
    window = Window(60.0, 5.0, 1, 0)
    charge = window.add(10.0, 1)
    assert window.free_at(end, 1) == 75.0
    window.settle(charge, end, 1)
    assert window.free_at(end, 1) == leaves_at


def test_a_breaker_waits_its_time_after_every_failed_probe() -> None:
    breaker = Breaker(2, 10.0)
    breaker.failed("a", 0.0)
    assert breaker.state(0.0) == "closed"
    breaker.failed("b", 1.0)
    breaker.failed("c", 5.0)  # began before it opened: does not make it longer
    assert [breaker.state(at) for at in (1.0, 10.9, 11.0)] == ["open", "open", "half_open"]
    breaker.started("probe", 12.0)
    assert not breaker.admits(12.0)
    breaker.failed("probe", 13.0)
    assert [breaker.admits(at) for at in (22.9, 23.0)] == [False, True]
    breaker.started("next", 23.0)
    breaker.succeeded("next")
    assert breaker.state(23.0) == "closed"
    assert breaker.failures_in_row == 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "inf"}, 0.0),
        ({"retry-after": "9" * 400}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "٣"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 -0000", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0.0),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:30 GMT"}, 0.0),
    ],
    ids=str,
)
def test_retry_after_is_read_as_a_number_or_a_date(headers: dict[str, str], seconds: float) -> None:
    assert retry_after_s(headers) == seconds

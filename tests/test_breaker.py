"""The circuit breaker: a counterpart that fails is left alone, and found again by one probe at a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tallystick_server.runtime.breaker import Breaker, BreakerSettings

SETTINGS = BreakerSettings(failures=3, rest=10, longest_rest=40)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker("x", SETTINGS)
    for _ in range(SETTINGS.failures):
        breaker.failed(now)
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    """A success between failures starts the count anew; the last one of a row opens it."""
    breaker = Breaker("x", SETTINGS)
    for _ in range(5):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded()
    assert breaker.held_back(0) is None
    assert opened().held_back(4) == 6


def test_there_is_no_use_in_asking_with_bad_credentials() -> None:
    """One answer of that kind opens it."""
    breaker = Breaker("x", SETTINGS)
    breaker.failed(0, at_once=True)
    assert breaker.held_back(0) == 10


def test_one_probe_at_a_time() -> None:
    """When its rest is over one call is let through, the others wait; its success closes it."""
    breaker = opened()
    assert breaker.held_back(10) is None
    assert breaker.held_back(10) == 10
    breaker.succeeded()
    assert [breaker.held_back(10) for _ in range(5)] == [None] * 5
    assert not breaker.is_open()


def test_failed_probes_are_farther_and_farther_apart() -> None:
    """Each doubles the rest up to the longest; failures of calls that were under way change nothing."""
    breaker, now, rests = opened(), 10.0, []
    for _ in range(4):
        breaker.failed(now)
        assert breaker.held_back(now) is None
        breaker.failed(now)
        rests.append(breaker.held_back(now))
        now += rests[-1] or 0
    assert rests == [20, 40, 40, 40]


@given(st.lists(st.tuples(st.sampled_from(["ask", "fail", "succeed"]), st.floats(0, 30)), max_size=60))
def test_it_never_stays_shut(steps: list[tuple[str, float]]) -> None:
    """Whatever happened, a call is let through after the longest rest, unless a probe is under way; and a success lets all through."""
    breaker, now, probing = Breaker("x", SETTINGS), 0.0, False
    for step, wait in steps:
        now += wait
        if step == "ask":
            probing = probing or (breaker.is_open() and breaker.held_back(now) is None)
        elif step == "fail":
            breaker.failed(now)
            probing = False
        else:
            breaker.succeeded()
            probing = False
    if not probing:
        assert breaker.held_back(now + SETTINGS.longest_rest) is None
    breaker.succeeded()
    assert breaker.held_back(now) is None

"""Sealed sessions: what a cookie is worth, and for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tallystick_server.http.console import session as session_module
from tallystick_server.http.console.session import Sessions

KEY = "a key of at least thirty-two characters"


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 30, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_cookie_keeps_the_token_secret(clock: Clock) -> None:
    """The session has the token, and each session its own CSRF token; the cookie shows neither."""
    sessions = Sessions(KEY, 3600, clock)
    cookies = [sessions.begin("the-token-of-alice") for _ in range(2)]
    first, second = (sessions.read(cookie) for cookie in cookies)
    assert first is not None
    assert second is not None
    assert first.token == second.token == "the-token-of-alice"
    assert first.csrf_token != second.csrf_token
    assert all("alice" not in cookie and first.csrf_token not in cookie for cookie in cookies)


def test_processes_with_one_key_share_sessions(clock: Clock) -> None:
    """A session is valid for every process with the same key, and for none with another."""
    cookie = Sessions(KEY, 3600, clock).begin("t")
    assert Sessions(KEY, 3600, clock).read(cookie) is not None
    assert Sessions(KEY + "x", 3600, clock).read(cookie) is None
    assert Sessions("", 3600, clock).read(cookie) is None
    assert Sessions("", 3600, clock).read(Sessions("", 3600, clock).begin("t")) is None


def test_a_session_ends_with_its_lifetime(clock: Clock) -> None:
    """It is valid until the last second, and not in the next."""
    sessions = Sessions(KEY, 60, clock)
    cookie = sessions.begin("t")
    clock.time += timedelta(seconds=59)
    assert sessions.read(cookie) is not None
    clock.time += timedelta(seconds=1)
    assert sessions.read(cookie) is None


def test_an_ended_session_is_not_valid_again(clock: Clock) -> None:
    """After signing out a copy of the cookie is worth nothing; other sessions stay valid."""
    sessions = Sessions(KEY, 60, clock)
    cookie, other = sessions.begin("t"), sessions.begin("t")
    session = sessions.read(cookie)
    assert session is not None
    sessions.end(session)
    assert sessions.read(cookie) is None
    assert sessions.read(other) is not None


@pytest.mark.parametrize("cookie", ["", "x", "gAAAAA", "é", "a" * 5000])
def test_a_forged_cookie_is_no_session(clock: Clock, cookie: str) -> None:
    """What this key has not sealed is no session, and no error."""
    assert Sessions(KEY, 60, clock).read(cookie) is None


def test_a_changed_cookie_is_no_session(clock: Clock) -> None:
    """Not one character may change."""
    sessions = Sessions(KEY, 60, clock)
    cookie = sessions.begin("t")
    for place in range(0, len(cookie) - 2, 7):
        changed = "A" if cookie[place] != "A" else "B"
        assert sessions.read(cookie[:place] + changed + cookie[place + 1 :]) is None


def test_ended_sessions_take_bounded_memory(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are over are forgotten, and beyond the limit the oldest."""
    monkeypatch.setattr(session_module, "_MAX_ENDED", 3)
    sessions = Sessions(KEY, 60, clock)
    cookies = [sessions.begin("t") for _ in range(4)]
    for cookie in cookies:
        session = sessions.read(cookie)
        assert session is not None
        sessions.end(session)
    assert [sessions.read(cookie) is None for cookie in cookies] == [False, True, True, True]
    clock.time += timedelta(seconds=60)
    assert all(sessions.read(cookie) is None for cookie in cookies)

"""Sessions: a cookie that holds the person's token, sealed, so that no process must store it."""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import orjson
from cryptography.fernet import Fernet, InvalidToken

_MAX_ENDED = 10_000


@dataclass(frozen=True, slots=True)
class Session:
    """`token`: of the person, "" if the platform does not authenticate. `csrf_token`: what each act
    must send along. `end_time`: in Unix seconds. `caller`, `roles`: as the platform named them at
    sign-in; empty: it did not answer.
    """

    session_id: str
    token: str
    csrf_token: str
    end_time: int
    caller: str = ""
    roles: Sequence[str] = ()

    def may_have(self, roles: Collection[str]) -> bool:
        """Whether the person has one of the roles, as far as is known."""
        return not self.roles or not set(roles).isdisjoint(self.roles)


class Sessions:
    """Begins, reads and ends sessions. `key`: any text, of which processes that share sessions have
    the same; "": a random one. A session that was ended is remembered in this process only.
    """

    def __init__(self, key: str, lifetime_seconds: int, now: Callable[[], datetime]) -> None:
        digest = sha256(key.encode() or secrets.token_bytes(32)).digest()
        self._cipher = Fernet(urlsafe_b64encode(digest))
        self.now = now
        self._ended: dict[str, int] = {}
        self.lifetime_seconds = lifetime_seconds

    def begin(self, token: str, caller: str = "", roles: Sequence[str] = ()) -> str:
        """The value of the cookie of a new session."""
        session = {
            "session_id": secrets.token_urlsafe(16),
            "token": token,
            "csrf_token": secrets.token_urlsafe(32),
            "end_time": self._unix_time() + self.lifetime_seconds,
            "caller": caller,
            "roles": roles,
        }
        return self._cipher.encrypt(orjson.dumps(session)).decode()

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None: it is forged, ended, or too old."""
        try:
            session = Session(**orjson.loads(self._cipher.decrypt(cookie.encode())))
        except (InvalidToken, TypeError, ValueError):
            return None
        is_over = session.session_id in self._ended or session.end_time <= self._unix_time()
        return None if is_over else session

    def end(self, session: Session) -> None:
        """Ends a session at once. The oldest of very many ended sessions are forgotten: their
        cookie, which the browser has deleted, is then valid until its end time again.
        """
        now = self._unix_time()
        self._ended = {key: end for key, end in self._ended.items() if end > now}
        if len(self._ended) >= _MAX_ENDED:
            self._ended.pop(next(iter(self._ended)))
        self._ended[session.session_id] = session.end_time

    def _unix_time(self) -> int:
        return int(self.now().timestamp())

"""The provider's ids of requests, which its support asks for: from an answer to the outcome of the
call that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TypeVar, cast

from tallystick_core.provider.outcome import (
    Approved,
    LookedUp,
    ProviderOutcome,
    Verified,
)

_MAX_LENGTH = 255

O = TypeVar("O", bound=ProviderOutcome)  # noqa: E741


@dataclass(slots=True)
class NotedRequestIds:
    """The ids of the answers to one call, which may be several requests; "": none."""

    last: str = ""
    last_error: str = ""

    def add_to(self, outcome: O) -> O:
        """The outcome with the id of the last request that failed, else of the last one. An outcome
        that names a request keeps it, if the id can be stored.
        """
        request_id = self.last_error or self.last
        match outcome:
            case LookedUp():
                return cast(O, replace(outcome, outcome=self.add_to(outcome.outcome)))
            case Verified() | Approved():
                return outcome
            case _:
                if outcome.request_id == request_id or _is_storable(outcome.request_id):
                    return outcome
                return cast(O, replace(outcome, request_id=request_id))


_noted: ContextVar[Sequence[NotedRequestIds]] = ContextVar("noted_request_ids", default=())


@contextmanager
def collect_request_ids() -> Iterator[NotedRequestIds]:
    """Collects the ids of all answers in the block."""
    noted = NotedRequestIds()
    with collect_request_ids_for([noted]):
        yield noted


@contextmanager
def collect_request_ids_for(noted: Sequence[NotedRequestIds]) -> Iterator[None]:
    """Collects the ids of all answers in the block for several calls, which it makes together."""
    token = _noted.set(noted)
    try:
        yield
    finally:
        _noted.reset(token)


def current_request_ids() -> Sequence[NotedRequestIds]:
    """What collects the ids of the current call, for another task that makes it."""
    return _noted.get()


def note_request_id(request_id: str, status: int) -> None:
    """Notes the id of an answer with an HTTP status. One that cannot be stored is ignored: what
    the answer says about money counts.
    """
    if not _is_storable(request_id):
        return
    for noted in _noted.get():
        noted.last = request_id
        if status >= 400:
            noted.last_error = request_id


def _is_storable(request_id: str) -> bool:
    return 0 < len(request_id) <= _MAX_LENGTH and request_id.isascii() and request_id.isprintable()

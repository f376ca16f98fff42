"""The RPCs of PayoutService: each answers METHOD_NOT_BUILT."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

from tallystick.payout.v1 import payout_service_pb2
from tallystick_core.caller import Role
from tallystick_core.refusal import Reason, Refused
from tallystick_server.runtime.door import Access, Call

_METHODS = [method.name for method in payout_service_pb2.DESCRIPTOR.services_by_name["PayoutService"].methods]
_TEAM = frozenset({"CreatePayoutDestination", "CreatePayout"})
_OPERATOR = frozenset({"ApprovePayout", "RejectPayout", "ListDeadLetters", "GetDeadLetter", "RetryDeadLetter", "CloseDeadLetter", "ListAlerts"})
ACCESS: Access = {
    name: frozenset({Role.TEAM} if name in _TEAM else {Role.OPERATOR} if name in _OPERATOR else {Role.TEAM, Role.OPERATOR}) for name in _METHODS
}


def _not_built() -> NoReturn:
    raise Refused(Reason.METHOD_NOT_BUILT, "Payouts are not built yet.")


class PayoutHandlers:
    """Every method by its name, none of them built."""

    def __getattr__(self, name: str) -> Callable[[Any, Call], Awaitable[NoReturn]]:
        if name not in _METHODS:
            raise AttributeError(name)

        async def method(_request: Any, _call: Call) -> NoReturn:
            _not_built()

        return method

    async def WatchPayout(self, _request: Any, _call: Call) -> AsyncIterator[Any]:
        _not_built()
        yield  # makes it a stream

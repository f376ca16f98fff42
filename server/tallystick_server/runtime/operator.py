"""The RPCs that every service with due work has for operators."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

from tallystick_core.caller import Role
from tallystick_core.identifier import parse_words
from tallystick_core.refusal import Reason, Refused
from tallystick_server.runtime import alerts, dead_letters
from tallystick_server.runtime.dead_letters import DeadLetters
from tallystick_server.runtime.door import Access, Call
from tallystick_server.runtime.fields import PageToken, page_size
from tallystick_storage import alert, dead_letter
from tallystick_storage.database import Database

_OPERATOR = frozenset({Role.OPERATOR})
ACCESS: Access = {
    "ListDeadLetters": _OPERATOR,
    "GetDeadLetter": _OPERATOR,
    "RetryDeadLetter": _OPERATOR,
    "CloseDeadLetter": _OPERATOR,
    "ListAlerts": _OPERATOR,
}
_DEAD_LETTER_ID = re.compile(r"\A[A-Za-z0-9_-]{1,80}\Z", re.ASCII)


class OperatorHandlers:
    """Handlers only decode, await and encode. `messages`: the service's generated messages, which have these calls' under the same names."""

    def __init__(self, database: Database, letters: DeadLetters[Any, Any], messages: ModuleType) -> None:
        self._database = database
        self._letters = letters
        self._messages: Any = messages

    async def ListDeadLetters(self, request: Any, _call: Call) -> Any:
        size = page_size(request.page_size)
        state = dead_letters.STATES.parse(request.state, "state", "")
        token = PageToken("ListDeadLetters", state)
        before = token.before(request.page_token)
        rows = await self._database.read(lambda connection: dead_letter.list_(connection, state, before, size + 1))
        shown, following = token.page(rows, size, dead_letters.message, lambda row: (row.create_time.isoformat(), row.dead_letter_id))
        return self._messages.ListDeadLettersResponse(dead_letters=shown, next_page_token=following)

    async def RetryDeadLetter(self, request: Any, call: Call) -> Any:
        reason = parse_words(request.reason, "reason")
        row = await self._letters.retry(parse_dead_letter_id(request.dead_letter_id), call.caller.name, reason)
        return self._messages.RetryDeadLetterResponse(dead_letter=dead_letters.message(row))

    async def CloseDeadLetter(self, request: Any, call: Call) -> Any:
        reason, evidence = parse_words(request.reason, "reason"), parse_words(request.evidence, "evidence")
        row = await self._letters.close(parse_dead_letter_id(request.dead_letter_id), call.caller.name, reason, evidence)
        return self._messages.CloseDeadLetterResponse(dead_letter=dead_letters.message(row))

    async def ListAlerts(self, request: Any, _call: Call) -> Any:
        size = page_size(request.page_size)
        token = PageToken("ListAlerts", int(request.ended))
        before = token.before(request.page_token)
        rows = await self._database.read(lambda connection: alert.list_(connection, before, size + 1, ended=request.ended))
        shown, following = token.page(rows, size, alerts.message, lambda row: (row.create_time.isoformat(), row.alert_id))
        return self._messages.ListAlertsResponse(alerts=shown, next_page_token=following)


def parse_dead_letter_id(text: str) -> str:
    """Raises FIELD_REQUIRED, FIELD_INVALID."""
    if _DEAD_LETTER_ID.match(text) is None:
        reason = Reason.FIELD_INVALID if text else Reason.FIELD_REQUIRED
        raise Refused(reason, "dead_letter_id must be one that ListDeadLetters gave.", field="dead_letter_id")
    return text

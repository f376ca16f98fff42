"""What operators do in every service that makes demands: its dead letters and its alerts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Row

from tallystick_core.caller import Role
from tallystick_core.dead_letter import DeadLetterState
from tallystick_core.identifier import parse_words
from tallystick_core.provider import Answer, Declined, NotFound, NotSent, Returned, Succeeded, Unknown, Verified
from tallystick_core.recovery import Step
from tallystick_core.refusal import Reason, Refused, not_found
from tallystick_server.runtime import alerts, dead_letters
from tallystick_server.runtime.demand import InHand
from tallystick_server.runtime.door import Access, Call
from tallystick_server.runtime.execute import HeldBack
from tallystick_server.runtime.fields import PageToken, page_size
from tallystick_server.runtime.flow import Flow
from tallystick_storage import alert, dead_letter, due
from tallystick_storage.database import Database, DataRefused

H = TypeVar("H", bound=InHand)
G = TypeVar("G")

_OPERATOR = frozenset({Role.OPERATOR})
ACCESS: Access = {
    "ListDeadLetters": _OPERATOR,
    "GetDeadLetter": _OPERATOR,
    "RetryDeadLetter": _OPERATOR,
    "CloseDeadLetter": _OPERATOR,
    "ListAlerts": _OPERATOR,
}
_ASK_AGAIN = 1.0  # seconds
_DEAD_LETTER_ID = re.compile(r"\A[A-Za-z0-9_-]{1,80}\Z", re.ASCII)


class DeadLetters(Generic[H, G]):
    """What an operator may do with them. Nothing leaves by itself but by an outcome that comes after all."""

    def __init__(self, database: Database, flow: Flow[H, G]) -> None:
        self._database = database
        self._flow = flow

    def demand_id(self, row: Row[Any]) -> str:
        return self._flow.demand_id(row.subject)

    async def find(self, dead_letter_id: str) -> Row[Any]:
        """The dead letter. Raises NOT_FOUND."""
        found = await self._database.read(lambda connection: dead_letter.find(connection, dead_letter_id))
        if found is None:
            raise not_found("dead letter")
        return found

    async def retry(self, dead_letter_id: str, operator: str, reason: str) -> tuple[Row[Any], bool]:
        """Has it tried again; it as it stands, and whether it was before. Raises NOT_FOUND, STATE_FORBIDS."""
        end = _End(DeadLetterState.RETRIED, operator, reason)
        row = await self.find(dead_letter_id)

        def retry(connection: Connection) -> None:
            end.write(connection, row)
            due.revive(connection, [self.demand_id(row)])

        ours = False
        with suppress(_Overtaken):
            await self._database.transact(retry)
            ours = True
        return await self._ended(dead_letter_id, "RETRY", end), not ours

    async def close(self, dead_letter_id: str, operator: str, reason: str, evidence: str) -> tuple[Row[Any], bool]:
        """Fails its demand, unless the provider knows better; it as it stands, and whether it was closed before. Raises NOT_FOUND, STATE_FORBIDS."""
        end = _End(DeadLetterState.CLOSED, operator, reason, evidence)
        row = await self.find(dead_letter_id)
        if row.state != DeadLetterState.OPEN:  # its provider need not be asked
            return await self._ended(dead_letter_id, "CLOSE", end), True
        item, outcome = await self._ask(row)
        match outcome:
            case Succeeded() | Declined() | Returned() | Verified():
                try:
                    await self._flow.record(item, outcome)  # which resolves it
                except DataRefused:
                    raise _forbidden(
                        "What its provider answers cannot be stored, and has to be set right with the provider first.", "UNSTORABLE"
                    ) from None
                return await self.find(dead_letter_id), False
            case NotSent() | Unknown() | NotFound():
                pass
            case _:
                raise _forbidden("The provider still works on it; retry the dead letter, and wait.", "PENDING")

        def close(connection: Connection) -> G:
            (claimed,) = self._claimed(connection, item.demand_id)
            made = self._flow.close(connection, claimed, operator, reason)
            end.write(connection, row)
            return made

        ours = False
        with suppress(_Overtaken):
            self._flow.failed(item, await self._database.transact(close))
            ours = True
        return await self._ended(dead_letter_id, "CLOSE", end), not ours

    async def _ask(self, row: Row[Any]) -> tuple[H, Answer]:
        """What the provider says to the demand now. Raises PROVIDER_UNAVAILABLE, STATE_FORBIDS."""
        tokens, now = {self.demand_id(row): 0}, asyncio.get_running_loop().time()
        items = await self._database.load(lambda connection: self._flow.load(connection, tokens, now))
        if not items:
            raise _forbidden("It came to its end meanwhile; read the dead letter again.", "RESOLVED")
        (item,) = items
        if item.step(now, self._flow.execute.key_window(item.provider), self._flow.lease) in (Step.PREPARE, Step.SETTLE):
            raise _forbidden("It waits for wallet or ledger, not for its provider; retry the dead letter.", "UNSETTLED")
        if item.answer is None and not self._flow.execute.knows(item.provider):  # nobody is left to ask: the operator's evidence decides
            return item, Unknown(f"the provider {item.provider} is not configured")
        outcome = item.answer or await self._flow.execute.ask(item, Step.LOOK_UP)
        if isinstance(outcome, HeldBack):
            wait = outcome.seconds or _ASK_AGAIN
            raise Refused(Reason.PROVIDER_UNAVAILABLE, "The provider does not answer, and is asked before anything is closed.", retry_after=wait)
        return item, outcome

    def _claimed(self, connection: Connection, demand_id: str) -> Sequence[H]:
        """The demand, leased. Raises _Overtaken if it came on meanwhile."""
        token = due.claim_aside(connection, demand_id, self._flow.lease) if self._flow.lock_undecided(connection, [demand_id]) else None
        if token is None:
            raise _Overtaken
        return self._flow.load(connection, {demand_id: token}, 0.0)

    async def _ended(self, dead_letter_id: str, verb: str, end: _End) -> Row[Any]:
        """The dead letter as it is now. Raises STATE_FORBIDS if somebody else was faster."""
        row = await self.find(dead_letter_id)
        if not end.stands_in(row):
            is_open = row.state == DeadLetterState.OPEN
            said = "Somebody else works on it now; read the dead letter again." if is_open else f"The dead letter is {row.state} already."
            raise _forbidden(said, row.state, verb)
        return row


class _Overtaken(Exception):
    """Somebody else was faster; nothing is stored."""


@dataclass(frozen=True, slots=True)
class _End:
    """How a dead letter is to end, by whom and why."""

    state: DeadLetterState
    operator: str
    reason: str
    evidence: str = ""

    def stands_in(self, row: Row[Any]) -> bool:
        """Whether it ended so."""
        return (row.state, row.operator, row.reason, row.evidence) == (self.state, self.operator, self.reason, self.evidence)

    def write(self, connection: Connection, row: Row[Any]) -> None:
        """Ends an open dead letter, and tells of it. Raises _Overtaken if it has ended."""
        ended = dead_letter.end(connection, [row.subject], self.state, self.operator, self.reason, self.evidence)
        if [one.dead_letter_id for one in ended] != [row.dead_letter_id]:
            raise _Overtaken
        dead_letters.tell_changed(connection, ended, lambda _: (self.operator, ""))


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
        row, replayed = await self._letters.retry(parse_dead_letter_id(request.dead_letter_id), call.caller.name, reason)
        if replayed:
            call.replayed()
        return self._messages.RetryDeadLetterResponse(dead_letter=dead_letters.message(row))

    async def CloseDeadLetter(self, request: Any, call: Call) -> Any:
        reason, evidence = parse_words(request.reason, "reason"), parse_words(request.evidence, "evidence")
        row, replayed = await self._letters.close(parse_dead_letter_id(request.dead_letter_id), call.caller.name, reason, evidence)
        if replayed:
            call.replayed()
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


def _forbidden(message: str, state: str, verb: str = "CLOSE") -> Refused:
    return Refused(Reason.STATE_FORBIDS, message, metadata={"state": state, "verb": verb})

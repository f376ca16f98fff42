"""Dead letters as every service shows them and tells of them, and what an operator may do with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import Connection, Row

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.recovery.v1 import recovery_pb2
from tallystick_core.dead_letter import DeadLetterState
from tallystick_core.provider import Declined, Outcome, Pending, Succeeded
from tallystick_core.recovery import Step
from tallystick_core.refusal import Reason, Refused, not_found
from tallystick_server.runtime.demand import InHand
from tallystick_server.runtime.execute import Execute, HeldBack
from tallystick_server.runtime.fields import EnumNames, to_timestamp
from tallystick_server.runtime.relay import tell
from tallystick_storage import dead_letter, due, outbox
from tallystick_storage.database import Database

H = TypeVar("H", bound=InHand)
G = TypeVar("G")

STATES = EnumNames(recovery_pb2.DeadLetterState.DESCRIPTOR)


def message(row: Row[Any]) -> recovery_pb2.DeadLetter:
    return recovery_pb2.DeadLetter(
        dead_letter_id=row.dead_letter_id,
        subject=row.subject,
        state=STATES.number(row.state),
        cause=row.cause,
        detail=row.detail,
        tries=row.tries,
        operator=row.operator,
        reason=row.reason,
        evidence=row.evidence,
        create_time=to_timestamp(row.create_time),
        end_time=to_timestamp(row.end_time) if row.end_time else None,
    )


def tell_changed(connection: Connection, rows: Sequence[Row[Any]], on_behalf: Callable[[Row[Any]], tuple[str, str]]) -> None:
    """Tells of dead letters that were set aside or have ended; `on_behalf` gives the caller and the traceparent of each."""
    if not rows:
        return
    told = BatchPublishRequest()
    for row in rows:
        letter, version = message(row), 2 if row.end_time else 1
        at = letter.end_time if row.end_time else letter.create_time
        type_, aggregate = event_pb2.EVENT_TYPE_DEAD_LETTER_CHANGED, f"deadLetters/{row.dead_letter_id}"
        tell(told, type_, aggregate, version, at, *on_behalf(row), dead_letter=letter)
    outbox.tell(connection, rows[0].told, told.SerializeToString())


def must_be_open(row: Row[Any], verb: str) -> None:
    """Raises STATE_FORBIDS for one that has ended."""
    if row.state != DeadLetterState.OPEN:
        raise Refused(Reason.STATE_FORBIDS, f"The dead letter is {row.state} already.", metadata={"state": row.state, "verb": verb})


class Owner(Protocol[H, G]):
    """Whose demands they are: what differs between services."""

    lease: float
    execute: Execute

    def load(self, connection: Connection, tokens: dict[str, int], now: float) -> Sequence[H]:
        """The demands under these lease tokens at this time of the loop."""
        ...

    async def record(self, item: H, outcome: Outcome) -> H:
        """Writes a provider's answer down."""
        ...

    def close(self, connection: Connection, item: H) -> G:
        """Fails a demand, as an operator has decided."""
        ...

    def failed(self, item: H, made: G) -> None:
        """Says what was made of a demand that was failed."""
        ...


class DeadLetters(Generic[H, G]):
    """What an operator may do with them. Nothing leaves by itself but by an outcome that comes after all."""

    def __init__(self, database: Database, collection: str, owner: Owner[H, G]) -> None:
        self._database = database
        self._prefix = f"{collection}/"
        self._owner = owner

    def demand_id(self, row: Row[Any]) -> str:
        return str(row.subject).removeprefix(self._prefix)

    async def find(self, dead_letter_id: str) -> Row[Any]:
        """The dead letter. Raises NOT_FOUND."""
        found = await self._database.read(lambda connection: dead_letter.find(connection, dead_letter_id))
        if found is None:
            raise not_found("dead letter")
        return found

    async def retry(self, dead_letter_id: str, operator: str, reason: str) -> Row[Any]:
        """Has it tried again. Raises NOT_FOUND, STATE_FORBIDS."""
        row = await self.find(dead_letter_id)
        if (row.state, row.operator, row.reason) == (DeadLetterState.RETRIED, operator, reason):
            return row
        must_be_open(row, "RETRY")

        def retry(connection: Connection) -> None:
            ended = dead_letter.end(connection, [row.subject], DeadLetterState.RETRIED, operator, reason)
            tell_changed(connection, ended, lambda _: (operator, ""))
            due.revive(connection, [self.demand_id(one) for one in ended])

        await self._database.transact(retry)
        return await self._ended(dead_letter_id, "RETRY", DeadLetterState.RETRIED)

    async def close(self, dead_letter_id: str, operator: str, reason: str, evidence: str) -> Row[Any]:
        """Fails its demand, unless the provider knows better. Raises NOT_FOUND, STATE_FORBIDS."""
        row = await self.find(dead_letter_id)
        if (row.state, row.operator, row.reason, row.evidence) == (DeadLetterState.CLOSED, operator, reason, evidence):
            return row
        must_be_open(row, "CLOSE")
        item, outcome = await self._ask(row)
        match outcome:
            case Succeeded() | Declined():
                await self._owner.record(item, outcome)  # which resolves it
                return await self.find(dead_letter_id)
            case Pending():
                raise _forbidden("The provider still works on it; retry the dead letter, and wait.", "PENDING")

        def close(connection: Connection) -> G:
            (claimed,) = self._claimed(connection, item.demand_id)
            made = self._owner.close(connection, claimed)
            ended = dead_letter.end(connection, [row.subject], DeadLetterState.CLOSED, operator, reason, evidence)
            tell_changed(connection, ended, lambda _: (operator, ""))
            return made

        self._owner.failed(item, await self._database.transact(close))
        return await self._ended(dead_letter_id, "CLOSE", DeadLetterState.CLOSED)

    async def _ask(self, row: Row[Any]) -> tuple[H, Outcome | None]:
        """What the provider says to the demand now."""
        tokens, now = {self.demand_id(row): 0}, asyncio.get_running_loop().time()
        (item,) = await self._database.read(lambda connection: self._owner.load(connection, tokens, now))
        if item.succeeded:
            raise _forbidden("It has succeeded, so it cannot fail; retry the dead letter.", "SUCCESS")
        outcome = item.answer or await self._owner.execute.ask(item, Step.LOOK_UP)
        if isinstance(outcome, HeldBack):
            raise Refused(
                Reason.PROVIDER_UNAVAILABLE, "The provider does not answer, and is asked before anything is closed.", retry_after=outcome.seconds
            )
        return item, outcome

    def _claimed(self, connection: Connection, demand_id: str) -> Sequence[H]:
        """The demand, leased. Raises STATE_FORBIDS if it came on meanwhile."""
        token = due.claim_aside(connection, demand_id, self._owner.lease) if due.lock_open_attempts(connection, [demand_id]) else None
        if token is None:
            raise _forbidden("It came on meanwhile; read the dead letter again.", "RESOLVED")
        return self._owner.load(connection, {demand_id: token}, 0.0)

    async def _ended(self, dead_letter_id: str, verb: str, state: str) -> Row[Any]:
        """The dead letter as it is now. Raises STATE_FORBIDS if somebody else was faster."""
        row = await self.find(dead_letter_id)
        if row.state != state:
            must_be_open(row, verb)
        return row


def _forbidden(message: str, state: str) -> Refused:
    return Refused(Reason.STATE_FORBIDS, message, metadata={"state": state, "verb": "CLOSE"})

"""Dead letters of charges: an operator has them tried again, or closes them."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import Connection, Row

from tallystick.payment.v1 import payment_pb2
from tallystick_core.dead_letter import DeadLetterState
from tallystick_core.payment import Cause, Happening, move
from tallystick_core.provider import Declined, FailureReason, Outcome, Pending, Succeeded
from tallystick_core.recovery import Step
from tallystick_core.refusal import Reason, Refused, not_found
from tallystick_server.payment import encode
from tallystick_server.payment.changes import Changes
from tallystick_server.payment.charge import Charge, ChargedOrder, stored_charges
from tallystick_server.payment.execute import Execute, HeldBack
from tallystick_server.payment.move import Move, Moved, move_orders
from tallystick_server.payment.record import Answered, Recorded
from tallystick_server.runtime.dead_letters import must_be_open, tell_changed
from tallystick_server.runtime.stage import Stage
from tallystick_storage import dead_letter, due
from tallystick_storage import payment as store
from tallystick_storage.database import Database


class DeadLetters:
    """What an operator may do with them. Nothing leaves by itself but by an outcome that comes after all."""

    def __init__(self, database: Database, execute: Execute, record: Stage[Answered, Recorded], changes: Changes, lease: float) -> None:
        self._database = database
        self._execute = execute
        self._record = record
        self._changes = changes
        self._lease = lease

    async def find(self, dead_letter_id: str) -> Row[Any]:
        """The dead letter. Raises NOT_FOUND."""
        found = await self._database.read(lambda connection: dead_letter.find(connection, dead_letter_id))
        if found is None:
            raise not_found("dead letter")
        return found

    async def orders(self, row: Row[Any]) -> list[payment_pb2.PaymentOrder]:
        """The orders of its charge, as they stand."""
        found = await self._database.read(lambda connection: store.orders_of(connection, _charge_id(row)))
        return [encode.payment_order(order) for order in found]

    async def retry(self, dead_letter_id: str, operator: str, reason: str) -> Row[Any]:
        """Has it tried again. Raises NOT_FOUND, STATE_FORBIDS."""
        row = await self.find(dead_letter_id)
        if (row.state, row.operator, row.reason) == (DeadLetterState.RETRIED, operator, reason):
            return row
        must_be_open(row, "RETRY")

        def retry(connection: Connection) -> None:
            ended = dead_letter.end(connection, [row.subject], DeadLetterState.RETRIED, operator, reason)
            tell_changed(connection, ended, lambda _: (operator, ""))
            due.revive(connection, [_charge_id(one) for one in ended])

        await self._database.transact(retry)
        return await self._ended(dead_letter_id, "RETRY", DeadLetterState.RETRIED)

    async def close(self, dead_letter_id: str, operator: str, reason: str, evidence: str) -> Row[Any]:
        """Fails its orders, unless the provider knows better. Raises NOT_FOUND, STATE_FORBIDS."""
        row = await self.find(dead_letter_id)
        if (row.state, row.operator, row.reason, row.evidence) == (DeadLetterState.CLOSED, operator, reason, evidence):
            return row
        must_be_open(row, "CLOSE")
        charge, outcome = await self._ask(row)
        match outcome:
            case Succeeded() | Declined():
                await self._record.submit(Answered(charge, outcome), charge.context)  # which resolves it
                return await self.find(dead_letter_id)
            case Pending():
                raise _forbidden("The provider still works on the charge; retry the dead letter, and wait.", "PENDING")
        moved = await self._database.transact(lambda connection: self._close(connection, row, operator, reason, evidence))
        for checkout_id, payment in moved.closed.items():
            self._changes.happened(checkout_id, rest=True, closed=payment)
        return await self._ended(dead_letter_id, "CLOSE", DeadLetterState.CLOSED)

    async def _ask(self, row: Row[Any]) -> tuple[Charge, Outcome | None]:
        """What the provider says to the charge now."""
        found = await self._database.read(lambda connection: due.charges(connection, [_charge_id(row)]))
        (charge,) = stored_charges(found, {_charge_id(row): 0}, asyncio.get_running_loop().time(), self._lease)
        if charge.succeeded:
            raise _forbidden("The buyer was charged, so the orders cannot fail; retry the dead letter.", "SUCCESS")
        outcome = charge.answer or await self._execute.charge(charge, Step.LOOK_UP)
        if isinstance(outcome, HeldBack):
            raise Refused(
                Reason.PROVIDER_UNAVAILABLE, "The provider does not answer, and is asked before anything is closed.", retry_after=outcome.seconds
            )
        return charge, outcome

    def _close(self, connection: Connection, row: Row[Any], operator: str, reason: str, evidence: str) -> Moved:
        charge_id = _charge_id(row)
        token = due.claim_aside(connection, charge_id, self._lease) if due.lock_open_attempts(connection, [charge_id]) else None
        if token is None:
            raise _forbidden("The charge came on meanwhile; read the dead letter again.", "RESOLVED")
        (charge,) = stored_charges(due.charges(connection, [charge_id]), {charge_id: token}, 0.0, self._lease)
        moved = move_orders(connection, [_closed(charge, order) for order in charge.orders])
        tell_changed(
            connection, dead_letter.end(connection, [row.subject], DeadLetterState.CLOSED, operator, reason, evidence), lambda _: (operator, "")
        )
        return moved

    async def _ended(self, dead_letter_id: str, verb: str, state: str) -> Row[Any]:
        """The dead letter as it is now. Raises STATE_FORBIDS if somebody else was faster."""
        row = await self.find(dead_letter_id)
        if row.state != state:
            must_be_open(row, verb)
        return row


def _charge_id(row: Row[Any]) -> str:
    return str(row.subject).removeprefix("charges/")


def _closed(charge: Charge, order: ChargedOrder) -> Move:
    to = store.OrderMove(
        payment_order_id=order.payment_order_id,
        charge_id=charge.charge_id,
        lease_token=charge.lease_token,
        version=order.version,
        status=move(order.status, Happening.CLOSED),
        cause=Cause.CLOSED_BY_OPERATOR,
        failure_reason=FailureReason.CLOSED_BY_OPERATOR,
    )
    return Move(charge, order, to)


def _forbidden(message: str, state: str) -> Refused:
    return Refused(Reason.STATE_FORBIDS, message, metadata={"state": state, "verb": "CLOSE"})

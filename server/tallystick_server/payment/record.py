"""Record: what providers said, written down in one transaction for each batch. Every answer ends here, from whatever side it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from tallystick_core.payment import Cause, Status, happening, judge, move
from tallystick_core.provider import Declined, Outcome, Pending, Succeeded
from tallystick_server.payment.charge import Charge
from tallystick_server.runtime.stage import by_halves
from tallystick_storage import payment as store
from tallystick_storage.database import Database


@dataclass(frozen=True, slots=True)
class Answered:
    """A charge, and what the provider said to it."""

    charge: Charge
    outcome: Outcome


class Record:
    """The record stage's work: an attempt's outcome is stored whoever holds the lease, orders move only under it."""

    def __init__(self, database: Database, retry_delay: float) -> None:
        self._database = database
        self._retry_delay = retry_delay

    async def run(self, items: Sequence[Answered]) -> Sequence[Charge | Exception]:
        """The charges as they stand afterwards."""
        return await by_halves(self._record, items)

    async def _record(self, items: Sequence[Answered]) -> Sequence[Charge | Exception]:
        answers = [_answer(item) for item in items]
        moves = [one for item in items for one in _moves(item)]
        again = [(item.charge.charge_id, item.charge.lease_token, self._delay(item)) for item in items if _rests_unsettled(item)]

        def record(connection: Connection) -> dict[str, int]:
            store.record_answers(connection, answers)
            moved = store.move_orders(connection, moves) if moves else {}
            if again:
                store.make_due(connection, again)
            return moved

        moved = await self._database.transact(record)
        status = {one.payment_order_id: Status(one.status) for one in moves}
        return [_after(item.charge, moved, status) for item in items]

    def _delay(self, item: Answered) -> float | None:
        """Seconds until the same key is sent again; None: the provider will speak."""
        return None if isinstance(item.outcome, Pending) else self._retry_delay


def _rests_unsettled(item: Answered) -> bool:
    """Whether the charge neither ends nor goes on to be settled."""
    return not isinstance(_judged(item), Succeeded | Declined)


def _judged(item: Answered) -> Outcome:
    return judge(item.outcome, item.charge.amount, item.charge.currency)


def _answer(item: Answered) -> store.Answer:
    outcome = item.outcome
    charged = (outcome.amount, outcome.currency) if isinstance(outcome, Succeeded) else (None, None)
    reference = getattr(outcome, "reference", "")
    return store.Answer(item.charge.charge_id, item.charge.number, happening(outcome), reference, *charged)


def _moves(item: Answered) -> list[store.OrderMove]:
    outcome = _judged(item)
    told = _told(outcome)
    moves = []
    for order in item.charge.orders:
        status = move(order.status, happening(outcome))
        if status == order.status:
            continue
        charge = item.charge
        moves.append(
            store.OrderMove(order.payment_order_id, charge.charge_id, charge.lease_token, order.version, status, Cause.PROVIDER_ANSWER, **told)
        )
    return moves


def _told(outcome: Outcome) -> dict[str, Any]:
    """What an outcome says of each order of its charge."""
    match outcome:
        case Succeeded():
            return {"provider_reference": outcome.reference}
        case Declined():
            return {"failure_reason": outcome.reason, "decline_code": outcome.code, "provider_reference": outcome.reference}
        case Pending():
            return {"pending_reason": outcome.reason, "next_action_url": outcome.next_action_url, "provider_reference": outcome.reference}
        case _:
            return {}


def _after(charge: Charge, moved: Mapping[str, int], status: Mapping[str, Status]) -> Charge:
    """The charge with the orders that moved at their new version and status."""
    orders = tuple(
        replace(order, version=moved[order.payment_order_id], status=status[order.payment_order_id]) if order.payment_order_id in moved else order
        for order in charge.orders
    )
    return replace(charge, orders=orders)

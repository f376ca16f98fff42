"""Record: what providers said, written down in one transaction for each batch. Every answer ends here, from whatever side it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from tallystick.payment.v1 import payment_pb2
from tallystick_core.payment import FINAL, Cause, happening, judge, move
from tallystick_core.provider import Declined, Outcome, Pending, PendingReason, Succeeded
from tallystick_server.payment.charge import Charge, ChargedOrder, stored_answer
from tallystick_server.payment.move import Move, Moved, move_orders
from tallystick_server.payment.unapplied import find_unapplied
from tallystick_server.runtime.dead_letters import go_on
from tallystick_server.runtime.demand import Answered, to_store
from tallystick_server.runtime.stage import by_halves
from tallystick_storage import due
from tallystick_storage.database import Database
from tallystick_storage.payment import orders as store


@dataclass(frozen=True, slots=True)
class Recorded:
    """The charge as it stands after the answer, and its payment if that came to its end by it."""

    charge: Charge
    closed: payment_pb2.Payment | None


class Record:
    """The record stage's work: an attempt's outcome is stored whoever holds the lease, orders move only under it."""

    def __init__(self, database: Database, resolve_within: Mapping[PendingReason, float]) -> None:
        self._database = database
        self._resolve_within = resolve_within

    async def run(self, items: Sequence[Answered[Charge, Outcome]]) -> Sequence[Recorded | Exception]:
        """What became of each charge."""
        return await by_halves(self._record, items)

    async def _record(self, items: Sequence[Answered[Charge, Outcome]]) -> Sequence[Recorded | Exception]:
        answers = [to_store(item.item, happening(item.outcome), item.outcome) for item in items]

        def record(connection: Connection) -> Moved:
            final = due.record_answers(connection, answers)
            stand = [_as_it_stands(item, answer, final) for item, answer in zip(items, answers, strict=True)]
            moved = move_orders(connection, [one for item in stand for one in _moves(item, self._resolve_within)])
            _note_rest(connection, [item for item, stands in zip(items, stand, strict=True) if stands is not item or not _applied(item, moved)])
            return moved

        moved = await self._database.transact(record)
        return [Recorded(moved.of(item.item), moved.closed.get(item.item.checkout_id)) for item in items]


def _as_it_stands(item: Answered[Charge, Outcome], told: due.Answer, final: Mapping[tuple[str, int], due.Answer]) -> Answered[Charge, Outcome]:
    """The charge with the answer that counts: the first final one that was written down, whoever heard it."""
    stands = final.get((told.demand_id, told.number), told)
    outcome = item.outcome if stands is told else stored_answer(stands)
    return item if outcome in (None, item.outcome) else replace(item, outcome=outcome)


def _applied(item: Answered[Charge, Outcome], moved: Moved) -> bool:
    """Whether there is nothing more to an answer than what has moved."""
    if not isinstance(item.outcome, Succeeded | Declined):
        return True
    return _judged(item) is item.outcome and item.item.orders[0].payment_order_id in moved.orders


def _note_rest(connection: Connection, items: Sequence[Answered[Charge, Outcome]]) -> None:
    """Of final answers that moved no order, or not all of the money: what fits none is unapplied, and what was set aside goes on."""
    if not items:
        return
    find_unapplied(connection, [(item.item, item.outcome) for item in items if isinstance(item.outcome, Succeeded)])
    go_on(connection, [item.item for item in items])


def _judged(item: Answered[Charge, Outcome]) -> Outcome:
    return judge(item.outcome, item.item.amount, item.item.currency)


def _moves(item: Answered[Charge, Outcome], resolve_within: Mapping[PendingReason, float]) -> list[Move]:
    outcome = _judged(item)
    told = _told(outcome, resolve_within)
    charge = item.item
    moves = []
    for order in charge.orders:
        if order.status in FINAL:  # money that comes later is none of its
            continue
        status = move(order.status, happening(outcome))
        if status != order.status or (isinstance(outcome, Pending) and _waits_for_else(order, outcome)):
            to = store.OrderMove(order.payment_order_id, charge.charge_id, charge.lease_token, order.version, status, Cause.PROVIDER_ANSWER, **told)
            moves.append(Move(charge, order, to))
    return moves


def _waits_for_else(order: ChargedOrder, outcome: Pending) -> bool:
    """Whether a pending order waits for something else than it did, or for the same elsewhere; the same again changes nothing."""
    known, reason = order.message, payment_pb2.PendingReason.Value(f"PENDING_REASON_{outcome.reason}")
    return (known.pending_reason, known.next_action_url) != (reason, outcome.next_action_url) or outcome.reference not in (
        "",
        known.provider_reference,
    )


def _told(outcome: Outcome, resolve_within: Mapping[PendingReason, float]) -> dict[str, Any]:
    """What an outcome says of each order of its charge."""
    match outcome:
        case Succeeded():
            return {"provider_reference": outcome.reference}
        case Declined():
            return {"failure_reason": outcome.reason, "decline_code": outcome.code, "provider_reference": outcome.reference}
        case Pending():
            return {
                "pending_reason": outcome.reason,
                "next_action_url": outcome.next_action_url,
                "provider_reference": outcome.reference,
                "resolve_within": resolve_within.get(outcome.reason),
            }
        case _:
            return {}

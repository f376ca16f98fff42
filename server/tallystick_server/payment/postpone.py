"""Postpone: charges that did not come on, given back to the table of due work or given up, as their policies say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from tallystick.payment.v1 import payment_pb2
from tallystick_core.payment import Cause, Happening, Status, move
from tallystick_core.provider import FailureReason, NotSent, Outcome, Pending, Trouble, Unknown
from tallystick_core.recovery import Resort, Step, resort
from tallystick_server.payment.charge import Charge
from tallystick_server.payment.move import Move, Moved, move_orders
from tallystick_server.runtime.dead_letters import tell_changed
from tallystick_server.runtime.retry import Policies
from tallystick_server.runtime.stage import by_halves
from tallystick_storage import dead_letter, due
from tallystick_storage import payment as store
from tallystick_storage.database import Database

_LONGEST_DETAIL = 255


@dataclass(frozen=True, slots=True)
class Troubled:
    """A charge that did not come on, and why."""

    charge: Charge
    trouble: Trouble
    detail: str
    retry_after: float = 0.0
    """Seconds before which the provider wants to hear nothing."""
    give_up: FailureReason | None = None
    """It was never sent and is not wanted any more: why its orders are FAILED."""


def troubled(charge: Charge, outcome: Outcome, step: Step) -> Troubled | None:
    """What an outcome means for a charge that it does not bring to an end."""
    waits = any(order.status is Status.PENDING for order in charge.orders)
    match outcome:
        case Pending():
            return Troubled(charge, Trouble.WAITING, f"the provider waits: {outcome.reason}")
        case NotSent():
            return Troubled(charge, _asked(step, Trouble.NOT_SENT, waits=waits), outcome.detail)
        case Unknown():
            return Troubled(charge, _asked(step, outcome.trouble, waits=waits), outcome.detail, outcome.retry_after)
        case _:
            return None


def _asked(step: Step, trouble: Trouble, *, waits: bool) -> Trouble:
    """The trouble of a look-up, or a cancellation, is that it tells nothing, whatever the reason."""
    if step is Step.SEND:
        return trouble
    return Trouble.WAITING if waits else Trouble.UNRESOLVED


class Postpone:
    """The postpone stage's work. Each charge is taken up again later, is FAILED, or becomes a dead letter."""

    def __init__(self, database: Database, policies: Policies) -> None:
        self._database = database
        self._policies = policies

    async def run(self, items: Sequence[Troubled]) -> Sequence[payment_pb2.Payment | Exception | None]:
        """Each charge's payment if it came to its end by it."""
        return await by_halves(self._postpone, items)

    async def _postpone(self, items: Sequence[Troubled]) -> Sequence[payment_pb2.Payment | Exception | None]:
        decided = [(item, self._decide(item)) for item in items]
        again = [decision for _, decision in decided if isinstance(decision, due.Again)]
        given_up = [item for item, decision in decided if decision is Resort.FAIL]
        aside = [item for item, decision in decided if decision is Resort.SET_ASIDE]

        def postpone(connection: Connection) -> Moved:
            # an answer that another holder wrote down meanwhile stands: it is judged when this lease ends
            undecided = [item.charge.charge_id for item in (*given_up, *aside) if not item.charge.succeeded]
            open_ = due.lock_open_attempts(connection, undecided) if undecided else set()
            moved = move_orders(connection, [one for item in given_up if item.charge.charge_id in open_ for one in _given_up(item)])
            if again:
                due.again_later(connection, again)
            if aside:
                _set_aside(connection, [item for item in aside if item.charge.succeeded or item.charge.charge_id in open_])
            return moved

        moved = await self._database.transact(postpone)
        return [moved.closed.get(item.charge.checkout_id) for item in items]

    def _decide(self, item: Troubled) -> due.Again | Resort:
        """When it is taken up again, or its last resort."""
        charge = item.charge
        if item.give_up is not None:
            return Resort.FAIL
        if item.trouble is Trouble.HELD_BACK:
            return _again(item, item.retry_after, charge.tries, looking=charge.looking)
        delay = self._policies.of(charge.provider, item.trouble).delay(charge.tries + 1, charge.charge_id)
        if delay is not None:
            return _again(item, max(delay, item.retry_after), charge.tries + 1, looking=charge.looking)
        last = resort(item.trouble, maybe_sent=charge.maybe_sent)
        return _again(item, item.retry_after, 0, looking=True) if last is Resort.LOOK_UP else last


def _set_aside(connection: Connection, items: Sequence[Troubled]) -> None:
    """Makes dead letters of charges whose leases still hold."""
    by_id = {item.charge.charge_id: item for item in items}
    held = due.again_later(connection, [_again(item, None, item.charge.tries + 1, looking=item.charge.looking) for item in items])
    new = [
        dead_letter.NewDeadLetter(f"charges/{charge_id}", item.trouble, item.detail[:_LONGEST_DETAIL], item.charge.tries + 1)
        for charge_id, item in sorted(by_id.items())
        if charge_id in held
    ]
    charges = {f"charges/{charge_id}": item.charge for charge_id, item in by_id.items()}
    tell_changed(connection, dead_letter.insert(connection, new), lambda row: (charges[row.subject].caller, charges[row.subject].traceparent))


def _again(item: Troubled, delay: float | None, tries: int, *, looking: bool) -> due.Again:
    charge = item.charge
    sent = charge.maybe_sent or item.trouble not in (Trouble.NOT_SENT, Trouble.HELD_BACK)
    return due.Again(charge.charge_id, charge.lease_token, delay, sent, looking, tries, item.trouble, item.detail[:_LONGEST_DETAIL])


def _given_up(item: Troubled) -> list[Move]:
    charge = item.charge
    return [
        Move(
            charge,
            order,
            store.OrderMove(
                payment_order_id=order.payment_order_id,
                charge_id=charge.charge_id,
                lease_token=charge.lease_token,
                version=order.version,
                status=move(order.status, Happening.GIVEN_UP),
                cause=Cause.GIVEN_UP,
                failure_reason=item.give_up or FailureReason.PROVIDER_UNREACHABLE,
            ),
        )
        for order in charge.orders
    ]

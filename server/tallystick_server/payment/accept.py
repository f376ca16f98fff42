"""Accept: payments are stored, or found, in one transaction for each batch; the provider is asked only after it has committed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from tallystick.payment.v1 import payment_pb2
from tallystick_core.payment import (
    Cause,
    Charging,
    FeeRates,
    Happening,
    MethodType,
    OnPartial,
    Order,
    PaymentEvent,
    Status,
    charge_id,
    first_difference,
    move,
    refuse_siblings,
)
from tallystick_core.provider import FailureReason
from tallystick_core.refusal import Reason, Refused, id_taken, key_reused
from tallystick_core.risk import RiskCheck
from tallystick_server.payment import encode, events
from tallystick_server.payment.charge import FIRST_ATTEMPT, Charge, new_charges
from tallystick_server.payment.move import tell_closed
from tallystick_server.runtime.relay import telling
from tallystick_server.runtime.stage import once_per_key
from tallystick_server.runtime.telemetry import SpanContext
from tallystick_storage.database import Database, DataRefused
from tallystick_storage.payment import orders as store


@dataclass(frozen=True, slots=True)
class Arrival:
    """A payment event that has come in."""

    event: PaymentEvent
    fingerprint: bytes
    traceparent: str
    context: SpanContext
    refused: Refused | None = None
    """Why it is not stored, unless it was before."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The payment is on disk. `replayed`: it was before. `moving`: charges of it have just been handed on."""

    checkout_id: str
    replayed: bool
    moving: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """How many more charges may wait while their provider fails. `probe`: one payment is taken besides, to find out whether it answers again."""

    charges: int
    probe: bool


@dataclass(frozen=True, slots=True)
class _Judged:
    """An arrival with its orders as risk judged them, the message of each, and the charges for those that passed."""

    arrival: Arrival
    checkout: store.NewCheckout
    orders: list[tuple[store.NewOrder, payment_pb2.PaymentOrder]]
    charges: list[Charge]


class Accept:
    """The accept stage's work. Each charge it has stored is handed on, leased to this process."""

    def __init__(
        self,
        database: Database,
        risk: RiskCheck,
        fees: FeeRates,
        provider: str,
        environment: str,
        lease: float,
        hand_on: Callable[[Charge], None],
        room: Callable[[Connection, float], Room | None],
    ) -> None:
        self._database = database
        self._risk = risk
        self._fees = fees
        self._provider = provider
        self._environment = environment
        self._lease = lease
        self._hand_on = hand_on
        self._room = room

    async def run(self, arrivals: Sequence[Arrival]) -> Sequence[Accepted | Exception]:
        """One result for each arrival: accepted, KEY_REUSED or ID_TAKEN."""
        return await once_per_key(
            arrivals,
            lambda arrival: (arrival.event.checkout_id, arrival.fingerprint),
            self._accept,
        )

    async def _accept(self, arrivals: Sequence[Arrival]) -> Sequence[Accepted | Exception]:
        now = asyncio.get_running_loop().time()
        deadline = now + self._lease
        times: dict[str, datetime] = {}

        def accept(connection: Connection) -> tuple[dict[str, Accepted | Exception], list[_Judged]]:
            known = _find(connection, arrivals)
            known |= {one.event.checkout_id: one.refused for one in arrivals if one.refused is not None and one.event.checkout_id not in known}
            fresh = [arrival for arrival in arrivals if arrival.event.checkout_id not in known]
            judged = self._judge(connection, fresh, deadline)
            full = _beyond(judged, self._room(connection, now))
            known |= {one.arrival.event.checkout_id: provider_unavailable() for one in full}
            judged = judged[: len(judged) - len(full)]
            inserted = self._insert(connection, judged) if judged else {}
            late = [one.arrival for one in judged if one.arrival.event.checkout_id not in inserted]
            if late:  # another process stored them since we looked; the next statement sees them
                known |= _find(connection, late)
            stored = [one for one in judged if one.arrival.event.checkout_id in inserted]
            _tell(connection, stored, inserted)
            times.update({checkout_id: row.create_time for checkout_id, row in inserted.items()})
            return known, stored

        try:
            results, stored = await self._database.transact(accept)
        except DataRefused as error:
            if error.sqlstate != "23505" or len(arrivals) > 1:
                raise
            results, stored = await self._database.transact(accept)  # an order id was taken while we stored; now it is found
        for one in stored:
            results[one.arrival.event.checkout_id] = Accepted(one.arrival.event.checkout_id, replayed=False, moving=bool(one.charges))
            for charge in one.charges:
                self._hand_on(self._until_it_expires(charge, one, times))
        return [results[arrival.event.checkout_id] for arrival in arrivals]

    def _until_it_expires(self, charge: Charge, one: _Judged, times: Mapping[str, datetime]) -> Charge:
        """The charge with the time of the loop that its payment's expiry is at, by the database's clock."""
        expiry = one.arrival.event.expire_time
        if expiry is None:
            return charge
        expires_at = charge.lease_deadline - self._lease + (expiry - times[charge.checkout_id]).total_seconds()
        return replace(charge, expires_at=expires_at, look_by=expires_at)

    def _judge(self, connection: Connection, arrivals: Sequence[Arrival], deadline: float) -> list[_Judged]:
        """Asks risk; the orders of this batch count for those after them."""
        recent: Counter[str] = Counter()
        if self._risk.velocity_window is not None and arrivals:
            buyers = sorted({order.buyer_account for arrival in arrivals for order in arrival.event.orders})
            recent.update(store.recent_orders(connection, buyers, self._risk.velocity_window))
        judged = []
        for arrival in arrivals:
            event = arrival.event
            refused = refuse_siblings(event, self._risk.check(event, recent))
            recent.update(order.buyer_account for order in event.orders)
            orders = [self._order(event, order, refused.get(order.payment_order_id)) for order in event.orders]
            with_messages = [(order, encode.new_order(order)) for order in orders]
            charges = new_charges(event, with_messages, self._environment, deadline, arrival.traceparent, arrival.context)
            judged.append(_Judged(arrival, self._checkout(arrival, len(refused)), with_messages, charges))
        return judged

    def _insert(self, connection: Connection, judged: Sequence[_Judged]) -> dict[str, Row[Any]]:
        attempts = [
            store.NewAttempt(charge.charge_id, charge.checkout_id, charge.provider, charge.provider_key, charge.amount, charge.currency)
            for one in judged
            for charge in one.charges
        ]
        orders = [order for one in judged for order, _ in one.orders]
        rows = store.insert(connection, [one.checkout for one in judged], orders, attempts, self._lease)
        return {row.checkout_id: row for row in rows}

    def _checkout(self, arrival: Arrival, refused: int) -> store.NewCheckout:
        event = arrival.event
        return store.NewCheckout(
            checkout_id=event.checkout_id,
            caller=event.caller,
            owner=event.owner,
            fingerprint=arrival.fingerprint.hex(),
            buyer_info=event.buyer_info,
            seller_info=event.seller_info,
            buyer_country=event.buyer_country,
            payment_token=event.payment_token,
            payment_method_type=event.payment_method_type,
            charging=event.charging,
            on_partial=event.on_partial,
            provider=self._provider,
            traceparent=arrival.traceparent,
            expire_time=event.expire_time,
            order_count=len(event.orders),
            open_orders=len(event.orders) - refused,
        )

    def _order(self, event: PaymentEvent, order: Order, reason: FailureReason | None) -> store.NewOrder:
        verdict = Happening.RISK_REFUSED if reason else Happening.RISK_PASSED
        return store.NewOrder(
            payment_order_id=order.payment_order_id,
            checkout_id=event.checkout_id,
            charge_id=charge_id(event, order),
            buyer_account=order.buyer_account,
            seller_account=order.seller_account,
            amount=order.amount,
            currency=order.currency,
            asked_fee=order.platform_fee,
            platform_fee=self._fees.fee(order),
            status=move(Status.NOT_STARTED, verdict),
            cause=Cause.RISK_REFUSED if reason else Cause.RISK_PASSED,
            failure_reason=reason or "",
            provider="" if reason else self._provider,
            attempt_count=0 if reason else FIRST_ATTEMPT,
        )


def _beyond(judged: Sequence[_Judged], room: Room | None) -> Sequence[_Judged]:
    """Those whose charges find no room any more."""
    if room is None:
        return ()
    left, probe = room.charges, room.probe
    for place, one in enumerate(judged):
        if probe and one.charges:
            probe = False
            continue
        left -= len(one.charges)
        if left < 0:
            return judged[place:]
    return ()


def provider_unavailable() -> Refused:
    """The refusal of a new payment while its provider fails, and enough payments wait for it."""
    message = "The provider does not answer, and enough payments wait for it. Nothing was stored."
    return Refused(Reason.PROVIDER_UNAVAILABLE, message, retry_after=30.0)


def _tell(connection: Connection, stored: Sequence[_Judged], inserted: Mapping[str, Row[Any]]) -> None:
    """Tells of new payments: each order is first stored, then judged."""
    with telling(connection, inserted.values()) as told:
        for one in stored:
            checkout = one.checkout
            payment = encode.new_payment(checkout, inserted[checkout.checkout_id].create_time)
            events.payment_created(told, payment, checkout.traceparent)
            for order, message in one.orders:
                message.create_time.CopyFrom(payment.create_time)
                message.update_time.CopyFrom(payment.create_time)
                events.order_changed(told, message, checkout)
                encode.judge_order(message, order)
                events.order_changed(told, message, checkout)
        closed = {row.checkout_id for row in inserted.values() if row.closed}
        if closed:
            tell_closed(connection, told, closed, (message for one in stored for _, message in one.orders))


def _find(connection: Connection, arrivals: Sequence[Arrival]) -> dict[str, Accepted | Exception]:
    """The answers to those whose ids exist already, by checkout id."""
    checkouts = [arrival.event.checkout_id for arrival in arrivals]
    orders = [order.payment_order_id for arrival in arrivals for order in arrival.event.orders]
    found = store.taken(connection, checkouts, orders)
    by_checkout = {row.id: row for row in found if row.what == "checkout"}
    by_order = {row.id: row for row in found if row.what == "order"}
    known: dict[str, Accepted | Exception] = {}
    for arrival in arrivals:
        event = arrival.event
        if event.checkout_id in by_checkout:
            known[event.checkout_id] = _repeat(connection, arrival, by_checkout[event.checkout_id])
        elif (taken := next((order for order in event.orders if order.payment_order_id in by_order), None)) is not None:
            known[event.checkout_id] = _order_taken(event, taken, by_order[taken.payment_order_id])
    return known


def _repeat(connection: Connection, arrival: Arrival, row: Row[Any]) -> Accepted | Exception:
    """The answer to an id that exists: the payment, or why not."""
    if row.owner != arrival.event.owner:
        return id_taken("checkout_id")
    if bytes(row.fingerprint) == arrival.fingerprint:
        return Accepted(row.id, replayed=True)
    rows = store.stored_event(connection, row.id)
    orders = tuple(Order(r.payment_order_id, r.buyer_account, r.seller_account, r.amount, r.currency, r.asked_fee) for r in rows)
    first = rows[0]
    stored = PaymentEvent(
        checkout_id=first.checkout_id,
        caller=first.caller,
        owner=first.owner,
        buyer_info=first.buyer_info,
        seller_info=first.seller_info,
        buyer_country=first.buyer_country,
        payment_token=first.payment_token,
        payment_method_type=MethodType(first.payment_method_type),
        charging=Charging(first.charging),
        on_partial=OnPartial(first.on_partial),
        orders=orders,
        expire_time=first.expire_time,
    )
    return key_reused(first_difference(arrival.event, stored))


def _order_taken(event: PaymentEvent, order: Order, row: Row[Any]) -> Exception:
    """The answer to an order id that belongs to another checkout."""
    path = f"payment_orders[{order.place}].payment_order_id"
    if row.owner != event.owner:
        return id_taken(path)
    return Refused(Reason.KEY_REUSED, f"{path} belongs to another checkout.", field=path, metadata={"field": path})

"""Accept: payments are stored, or found, in one transaction for each batch; the provider is asked only after it has committed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.payment import FeeRates, Order, PaymentEvent, charge_id, first_difference, refuse_siblings
from tallystick_core.refusal import Reason, Refused, key_reused
from tallystick_core.risk import RiskCheck
from tallystick_server.payment.charge import Charge, new_charges
from tallystick_server.runtime.stage import by_halves, once_per_key
from tallystick_server.runtime.telemetry import SpanContext
from tallystick_storage import payment as store
from tallystick_storage.database import Database, DataRefused


@dataclass(frozen=True, slots=True)
class Arrival:
    """A payment event that has come in."""

    event: PaymentEvent
    fingerprint: bytes
    traceparent: str
    context: SpanContext


@dataclass(frozen=True, slots=True)
class Accepted:
    """The payment is on disk. `replayed`: it was before. `moving`: charges of it have just been handed on."""

    checkout_id: str
    replayed: bool
    moving: bool = False


@dataclass(frozen=True, slots=True)
class _Judged:
    """An arrival with what risk refused of it and the charges for the rest."""

    arrival: Arrival
    refused: dict[str, str]
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
    ) -> None:
        self._database = database
        self._risk = risk
        self._fees = fees
        self._provider = provider
        self._environment = environment
        self._lease = lease
        self._hand_on = hand_on

    async def run(self, arrivals: Sequence[Arrival]) -> Sequence[Accepted | Exception]:
        """One result for each arrival: accepted, KEY_REUSED or ID_TAKEN."""
        return await once_per_key(
            arrivals,
            lambda arrival: (arrival.event.checkout_id, arrival.fingerprint),
            lambda unique: by_halves(self._accept, unique),
            lambda accepted: accepted if isinstance(accepted, Exception) else replace(accepted, replayed=True),
        )

    async def _accept(self, arrivals: Sequence[Arrival]) -> Sequence[Accepted | Exception]:
        deadline = asyncio.get_running_loop().time() + self._lease
        results: dict[str, Accepted | Exception] = {}
        stored: list[_Judged] = []

        def accept(connection: Connection) -> None:
            results.clear()
            stored.clear()
            fresh = self._find(connection, arrivals, results)
            if not fresh:
                return
            recent = self._recent(connection, fresh)
            judged = [self._judge(arrival, recent, deadline) for arrival in fresh]
            inserted = self._insert(connection, judged)
            stored.extend(one for one in judged if one.arrival.event.checkout_id in inserted)
            late = [one.arrival for one in judged if one.arrival.event.checkout_id not in inserted]
            if late:  # another process stored them since we looked; the next statement sees them
                self._find(connection, late, results)

        try:
            await self._database.transact(accept)
        except DataRefused as error:
            if error.sqlstate != "23505" or len(arrivals) > 1:
                raise
            await self._database.transact(accept)  # an order id was taken while we stored; now it is found
        for one in stored:
            results[one.arrival.event.checkout_id] = Accepted(one.arrival.event.checkout_id, replayed=False, moving=bool(one.charges))
            for charge in one.charges:
                self._hand_on(charge)
        return [results[arrival.event.checkout_id] for arrival in arrivals]

    def _find(self, connection: Connection, arrivals: Sequence[Arrival], results: dict[str, Accepted | Exception]) -> list[Arrival]:
        """Answers those whose ids exist already; returns the others."""
        checkouts = [arrival.event.checkout_id for arrival in arrivals]
        orders = [order.payment_order_id for arrival in arrivals for order in arrival.event.orders]
        found = store.taken(connection, checkouts, orders)
        by_checkout = {row.id: row for row in found if row.what == "checkout"}
        by_order = {row.id: row for row in found if row.what == "order"}
        fresh = []
        for arrival in arrivals:
            event = arrival.event
            if event.checkout_id in by_checkout:
                results[event.checkout_id] = _repeat(connection, arrival, by_checkout[event.checkout_id])
            elif (taken := next((order for order in event.orders if order.payment_order_id in by_order), None)) is not None:
                results[event.checkout_id] = _order_taken(event, taken, by_order[taken.payment_order_id])
            else:
                fresh.append(arrival)
        return fresh

    def _recent(self, connection: Connection, arrivals: Sequence[Arrival]) -> Counter[str]:
        if self._risk.velocity_window is None:
            return Counter()
        buyers = sorted({order.buyer_account for arrival in arrivals for order in arrival.event.orders})
        return Counter(store.recent_orders(connection, buyers, self._risk.velocity_window))

    def _judge(self, arrival: Arrival, recent: Counter[str], deadline: float) -> _Judged:
        """Asks risk; the orders of this batch count for those after them."""
        event = arrival.event
        refused = refuse_siblings(event, self._risk.check(event, recent))
        recent.update(order.buyer_account for order in event.orders)
        charges = new_charges(event, refused, self._fees, self._provider, self._environment, deadline, arrival.context)
        return _Judged(arrival, refused, charges)

    def _insert(self, connection: Connection, judged: Sequence[_Judged]) -> set[str]:
        checkouts = [self._checkout(one) for one in judged]
        orders = [self._order(one, order) for one in judged for order in one.arrival.event.orders]
        attempts = [
            store.NewAttempt(charge.charge_id, charge.checkout_id, charge.provider, charge.provider_key, charge.amount, charge.currency)
            for one in judged
            for charge in one.charges
        ]
        return store.insert(connection, checkouts, orders, attempts, self._lease)

    def _checkout(self, one: _Judged) -> store.NewCheckout:
        event = one.arrival.event
        return store.NewCheckout(
            event.checkout_id,
            event.caller,
            one.arrival.fingerprint.hex(),
            event.buyer_info,
            event.seller_info,
            event.buyer_country,
            event.payment_token,
            event.payment_method_type,
            event.charging,
            event.on_partial,
            self._provider,
            one.arrival.traceparent,
            len(event.orders),
            len(event.orders) - len(one.refused),
        )

    def _order(self, one: _Judged, order: Order) -> store.NewOrder:
        event = one.arrival.event
        reason = one.refused.get(order.payment_order_id, "")
        return store.NewOrder(
            order.payment_order_id,
            event.checkout_id,
            charge_id(event, order),
            order.buyer_account,
            order.seller_account,
            order.amount,
            order.currency,
            order.platform_fee,
            self._fees.fee(order),
            "FAILED" if reason else "EXECUTING",
            reason,
            "" if reason else self._provider,
        )


def _repeat(connection: Connection, arrival: Arrival, row: Row[Any]) -> Accepted | Exception:
    """The answer to an id that exists: the payment, or why not."""
    if row.caller != arrival.event.caller:
        return Refused(Reason.ID_TAKEN, "This checkout_id is taken.", field="checkout_id")
    if bytes(row.fingerprint) == arrival.fingerprint:
        return Accepted(row.id, replayed=True)
    rows = store.stored_event(connection, row.id)
    orders = tuple(Order(r.payment_order_id, r.buyer_account, r.seller_account, r.amount, r.currency, r.asked_fee) for r in rows)
    first = rows[0]
    stored = PaymentEvent(
        first.checkout_id, first.caller, first.buyer_info, first.seller_info, first.buyer_country, first.payment_token,
        first.payment_method_type, first.charging, first.on_partial, orders,
    )  # fmt: skip
    return key_reused(first_difference(arrival.event, stored))


def _order_taken(event: PaymentEvent, order: Order, row: Row[Any]) -> Exception:
    """The answer to an order id that belongs to another checkout."""
    path = f"payment_orders[{order.place}].payment_order_id"
    if row.caller != event.caller:
        return Refused(Reason.ID_TAKEN, f"{path} is taken.", field=path)
    return Refused(Reason.KEY_REUSED, f"{path} belongs to another checkout.", field=path, metadata={"field": path})

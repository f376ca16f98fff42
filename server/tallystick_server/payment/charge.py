"""A charge in hand: what a process knows of the work it holds the lease of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Row

from tallystick_core.payment import FeeRates, Order, PaymentEvent, charge_id, provider_key
from tallystick_core.provider import Demand
from tallystick_server.runtime.telemetry import SpanContext, context_of

FIRST_TOKEN = 1


@dataclass(frozen=True, slots=True)
class ChargedOrder:
    """One order of a charge, at a version."""

    payment_order_id: str
    version: int
    status: str
    buyer_account: str
    seller_account: str
    amount: int
    platform_fee: int


@dataclass(frozen=True, slots=True)
class Charge:
    """One demand on a provider, leased to this process until `lease_deadline` (the loop's time)."""

    charge_id: str
    checkout_id: str
    caller: str
    number: int
    provider: str
    provider_key: str
    currency: str
    payment_token: str
    payment_method_type: str
    orders: tuple[ChargedOrder, ...]
    lease_token: int
    lease_deadline: float
    context: SpanContext

    @property
    def amount(self) -> int:
        """Minor units: the sum of its orders."""
        return sum(order.amount for order in self.orders)

    def demand(self) -> Demand:
        """What the provider is asked."""
        return Demand(self.provider_key, self.charge_id, self.amount, self.currency, self.payment_token, self.payment_method_type)


def new_charges(
    event: PaymentEvent, refused: dict[str, str], fees: FeeRates, provider: str, environment: str, deadline: float, context: SpanContext
) -> list[Charge]:
    """The charges of a payment that is being accepted, for the orders that risk let pass."""
    groups: dict[str, list[Order]] = {}
    for order in event.orders:
        if order.payment_order_id not in refused:
            groups.setdefault(charge_id(event, order), []).append(order)
    return [
        Charge(
            charge,
            event.checkout_id,
            event.caller,
            1,
            provider,
            provider_key(environment, charge, 1),
            orders[0].currency,
            event.payment_token,
            event.payment_method_type,
            tuple(ChargedOrder(o.payment_order_id, 2, "EXECUTING", o.buyer_account, o.seller_account, o.amount, fees.fee(o)) for o in orders),
            FIRST_TOKEN,
            deadline,
            context,
        )
        for charge, orders in groups.items()
    ]


def stored_charges(rows: Iterable[Row[Any]], tokens: dict[str, int], deadline: float) -> list[Charge]:
    """Charges out of the database, claimed under `tokens`."""
    charges = []
    for charge, grouped in groupby(rows, key=lambda row: row.charge_id):
        members: Sequence[Row[Any]] = list(grouped)
        first = members[0]
        orders = tuple(
            ChargedOrder(r.payment_order_id, r.version, r.status, r.buyer_account, r.seller_account, r.amount, r.platform_fee) for r in members
        )
        charges.append(
            Charge(
                charge,
                first.checkout_id,
                first.caller,
                first.number,
                first.provider,
                first.provider_key,
                first.currency,
                first.payment_token,
                first.payment_method_type,
                orders,
                tokens[charge],
                deadline,
                context_of(first.traceparent),
            )
        )
    return charges

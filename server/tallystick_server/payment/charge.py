"""A charge in hand: what a process knows of the work it holds the lease of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Row

from tallystick_core.payment import FeeRates, Order, PaymentEvent, Status, charge_id, provider_key
from tallystick_core.provider import Demand, FailureReason
from tallystick_server.runtime.telemetry import SpanContext, context_of

# What accept stores of a new charge and its orders, and what this process therefore knows without reading it back.
FIRST_TOKEN = 1
FIRST_ATTEMPT = 1
ACCEPTED_VERSION = 2  # NOT_STARTED, then EXECUTING


@dataclass(frozen=True, slots=True)
class ChargedOrder:
    """One order of a charge, at a version."""

    payment_order_id: str
    version: int
    status: Status
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

    @property
    def succeeded(self) -> bool:
        """Whether its orders are SUCCESS, so that they can be settled."""
        return all(order.status is Status.SUCCESS for order in self.orders)

    def demand(self) -> Demand:
        """What the provider is asked."""
        return Demand(self.provider_key, self.charge_id, self.amount, self.currency, self.payment_token, self.payment_method_type)


def new_charges(
    event: PaymentEvent, refused: Mapping[str, FailureReason], fees: FeeRates, provider: str, environment: str, deadline: float, context: SpanContext
) -> list[Charge]:
    """The charges of a payment that is being accepted, for the orders that risk let pass."""
    groups: dict[str, list[Order]] = {}
    for order in event.orders:
        if order.payment_order_id not in refused:
            groups.setdefault(charge_id(event, order), []).append(order)
    return [
        Charge(
            charge_id=charge,
            checkout_id=event.checkout_id,
            caller=event.caller,
            number=FIRST_ATTEMPT,
            provider=provider,
            provider_key=provider_key(environment, charge, FIRST_ATTEMPT),
            currency=orders[0].currency,
            payment_token=event.payment_token,
            payment_method_type=event.payment_method_type,
            orders=tuple(_accepted(order, fees) for order in orders),
            lease_token=FIRST_TOKEN,
            lease_deadline=deadline,
            context=context,
        )
        for charge, orders in groups.items()
    ]


def _accepted(order: Order, fees: FeeRates) -> ChargedOrder:
    """An order as accept stores it."""
    return ChargedOrder(
        payment_order_id=order.payment_order_id,
        version=ACCEPTED_VERSION,
        status=Status.EXECUTING,
        buyer_account=order.buyer_account,
        seller_account=order.seller_account,
        amount=order.amount,
        platform_fee=fees.fee(order),
    )


def stored_charges(rows: Iterable[Row[Any]], tokens: dict[str, int], deadline: float) -> list[Charge]:
    """Charges out of the database, claimed under `tokens`."""
    charges = []
    for charge, grouped in groupby(rows, key=lambda row: row.charge_id):
        members: Sequence[Row[Any]] = list(grouped)
        first = members[0]
        charges.append(
            Charge(
                charge_id=charge,
                checkout_id=first.checkout_id,
                caller=first.caller,
                number=first.number,
                provider=first.provider,
                provider_key=first.provider_key,
                currency=first.currency,
                payment_token=first.payment_token,
                payment_method_type=first.payment_method_type,
                orders=tuple(_stored(row) for row in members),
                lease_token=tokens[charge],
                lease_deadline=deadline,
                context=context_of(first.traceparent),
            )
        )
    return charges


def _stored(row: Row[Any]) -> ChargedOrder:
    return ChargedOrder(
        payment_order_id=row.payment_order_id,
        version=row.version,
        status=Status(row.status),
        buyer_account=row.buyer_account,
        seller_account=row.seller_account,
        amount=row.amount,
        platform_fee=row.platform_fee,
    )

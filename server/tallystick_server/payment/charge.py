"""A charge in hand: what a process knows of the work it holds the lease of."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf
from typing import Any, NamedTuple

from sqlalchemy import Row

from tallystick.payment.v1 import payment_pb2
from tallystick_core.payment import Happening, PaymentEvent, Status, next_step
from tallystick_core.provider import ChargeDemand, Declined, FailureReason, Found, Outcome, PendingReason, Provider, Succeeded, provider_key
from tallystick_core.recovery import Step
from tallystick_server.payment import encode
from tallystick_server.runtime.demand import InHand, stored_tries
from tallystick_server.runtime.telemetry import SpanContext, context_of
from tallystick_storage import due
from tallystick_storage.payment import orders as store

# What accept stores of a new charge, and what this process therefore knows without reading it back.
SUBJECTS = "charges/"
"""What the subject of a charge begins with; its id follows."""
FIRST_TOKEN = 1
FIRST_ATTEMPT = 1


class ChargedOrder(NamedTuple):
    """One order of a charge, at a version; `message` is what was last told of it."""

    payment_order_id: str
    version: int
    status: Status
    buyer_account: str
    seller_account: str
    amount: int
    platform_fee: int
    message: payment_pb2.PaymentOrder

    def waits_for_buyer(self) -> float:
        """Seconds from its last move until the buyer's time is up; inf if it does not wait for the buyer."""
        if self.message.pending_reason != payment_pb2.PENDING_REASON_BUYER_ACTION:
            return inf
        return (self.message.resolve_by_time.ToNanoseconds() - self.message.update_time.ToNanoseconds()) / 1e9

    def moved(self, move: store.OrderMove, row: Row[Any]) -> ChargedOrder:
        """The order after a move, as the row says."""
        message = payment_pb2.PaymentOrder()
        message.CopyFrom(self.message)
        encode.move_order(message, move, row)
        return self._replace(version=row.version, status=Status(move.status), message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge(InHand):
    """One demand on a provider, for one order or for several. Its orders move together."""

    checkout_id: str
    owner: str
    currency: str
    payment_token: str
    payment_method_type: str
    orders: tuple[ChargedOrder, ...]
    cancelled: bool = False
    overdue: bool = False
    """The buyer has not done in time what it waits for."""

    @property
    def subject(self) -> str:
        return f"{SUBJECTS}{self.demand_id}"

    @property
    def charge_id(self) -> str:
        return self.demand_id

    @property
    def weight(self) -> int:
        return len(self.orders)

    def ending(self, now: float) -> FailureReason | None:
        if self.cancelled:
            return FailureReason.CALLER_CANCELLED
        expired = now >= self.expires_at and self.orders[0].status in (Status.NOT_STARTED, Status.EXECUTING)
        return FailureReason.EXPIRED if expired or self.overdue else None

    def step(self, now: float, key_window: float, lease: float) -> Step:
        return next_step(
            (order.status for order in self.orders),
            answered=self.answer is not None,
            ending=self.ending(now) is not None,
            maybe_sent=self.maybe_sent,
            looking=self.looking,
            key_honoured=self.key_honoured(key_window, lease),
        )

    @property
    def amount(self) -> int:
        """Minor units: the sum of its orders."""
        return sum(order.amount for order in self.orders)

    @property
    def to_settle(self) -> bool:
        return all(order.status is Status.SUCCESS for order in self.orders)

    @property
    def phase(self) -> str:
        order = self.orders[0]
        if order.status is Status.EXECUTING:
            return ""
        if order.status is Status.PENDING and order.message.pending_reason != payment_pb2.PENDING_REASON_BUYER_ACTION:
            return "REVIEW"
        return order.status

    @property
    def waits(self) -> bool:
        return any(order.status is Status.PENDING for order in self.orders)

    def demand(self) -> ChargeDemand:
        """What the provider is asked."""
        return ChargeDemand(self.provider_key, self.charge_id, self.amount, self.currency, self.payment_token, self.payment_method_type)

    def ask(self, provider: Provider, step: Step) -> Awaitable[Found]:
        match step:
            case Step.SEND:
                return provider.send(self.demand())
            case Step.CANCEL:
                return provider.cancel(self.demand())
            case _:
                return provider.look_up(self.demand())


def new_charges(
    event: PaymentEvent,
    orders: Iterable[tuple[store.NewOrder, payment_pb2.PaymentOrder]],
    environment: str,
    deadline: float,
    traceparent: str,
    context: SpanContext,
) -> list[Charge]:
    """The charges of a payment that is being accepted, for the orders that risk let pass."""
    groups: dict[str, list[tuple[store.NewOrder, payment_pb2.PaymentOrder]]] = {}
    for order, message in orders:
        if order.status == Status.EXECUTING:
            groups.setdefault(order.charge_id, []).append((order, message))
    return [
        Charge(
            demand_id=charge,
            checkout_id=event.checkout_id,
            caller=event.caller,
            owner=event.owner,
            number=FIRST_ATTEMPT,
            provider=members[0][0].provider,
            provider_key=provider_key(environment, charge, FIRST_ATTEMPT),
            currency=members[0][0].currency,
            payment_token=event.payment_token,
            payment_method_type=event.payment_method_type,
            orders=tuple(_accepted(order, message) for order, message in members),
            lease_token=FIRST_TOKEN,
            lease_deadline=deadline,
            traceparent=traceparent,
            context=context,
        )
        for charge, members in groups.items()
    ]


def _accepted(order: store.NewOrder, message: payment_pb2.PaymentOrder) -> ChargedOrder:
    """An order as accept stores it."""
    return ChargedOrder(
        payment_order_id=order.payment_order_id,
        version=encode.ACCEPTED_VERSION,
        status=Status.EXECUTING,
        buyer_account=order.buyer_account,
        seller_account=order.seller_account,
        amount=order.amount,
        platform_fee=order.platform_fee,
        message=message,
    )


def stored_charges(rows: Iterable[Row[Any]], tokens: dict[str, int], now: float, lease: float) -> list[Charge]:
    """Charges out of the database, claimed under `tokens` at this time of the loop for so many seconds."""
    charges = []
    for charge, grouped in groupby(rows, key=lambda row: row.charge_id):
        members: Sequence[Row[Any]] = list(grouped)
        first = members[0]
        charges.append(
            Charge(
                demand_id=charge,
                checkout_id=first.checkout_id,
                caller=first.caller,
                owner=first.owner,
                number=first.number,
                provider=first.provider,
                provider_key=first.provider_key,
                currency=first.currency,
                payment_token=first.payment_token,
                payment_method_type=first.payment_method_type,
                orders=tuple(_stored(row) for row in members),
                lease_token=tokens[charge],
                lease_deadline=now + lease,
                traceparent=first.traceparent,
                context=context_of(first.traceparent),
                age=float(first.age),
                expires_at=inf if first.expires_in is None else now + float(first.expires_in),
                cancelled=first.cancel_reason != "",
                overdue=_is_overdue(first),
                look_by=now + _time_left(first),
                answer=stored_answer(_told(first)),
                maybe_sent=first.maybe_sent,
                looking=first.looking,
                tries=stored_tries(first.tries),
                since_sent=None if first.since_sent is None else float(first.since_sent),
                not_found=first.not_found,
            )
        )
    return charges


def _is_overdue(row: Row[Any]) -> bool:
    """Whether the buyer has not acted in time."""
    return row.pending_reason == PendingReason.BUYER_ACTION and row.resolves_in is not None and row.resolves_in <= 0


def _time_left(row: Row[Any]) -> float:
    """Seconds until its time is up: the payment's while it is not known to have been charged, then the buyer's; inf if none is to come."""
    if row.outcome in (Happening.SUCCEEDED, Happening.DECLINED):  # which decides, whenever it is applied
        return inf
    unsure = row.status in (Status.NOT_STARTED, Status.EXECUTING)
    until = row.resolves_in if row.pending_reason == PendingReason.BUYER_ACTION else row.expires_in if unsure else None
    return inf if until is None or until <= 0 else float(until)


def stored_answer(answer: due.Answer) -> Outcome | None:
    """What the provider said, if it was final, as its attempt keeps it."""
    match answer:
        case due.Answer(outcome=Happening.SUCCEEDED, moved_amount=int(amount), moved_currency=str(currency)):
            return Succeeded(answer.provider_reference, amount, currency)
        case due.Answer(outcome=Happening.DECLINED):
            return Declined(FailureReason(answer.failure_reason), answer.decline_code, answer.provider_reference)
        case _:
            return None


def _told(row: Row[Any]) -> due.Answer:
    """What stands on the attempt in a row that has its order's columns too."""
    amount, currency = row.moved_amount, row.moved_currency
    return due.Answer(row.charge_id, row.number, row.outcome, row.attempt_reference, amount, currency, row.attempt_reason, row.attempt_code)


def _stored(row: Row[Any]) -> ChargedOrder:
    return ChargedOrder(
        payment_order_id=row.payment_order_id,
        version=row.version,
        status=Status(row.status),
        buyer_account=row.buyer_account,
        seller_account=row.seller_account,
        amount=row.amount,
        platform_fee=row.platform_fee,
        message=encode.stored_order(row),
    )

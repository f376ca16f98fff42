"""Stored payments as messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row

from tallystick.payment.v1 import payment_pb2
from tallystick_core.money import format_amount
from tallystick_core.payment import Status
from tallystick_server.payment.decode import METHOD_TYPES, STATES
from tallystick_server.runtime.fields import EnumNames, to_timestamp

_STATUSES = EnumNames(payment_pb2.PaymentOrderStatus.DESCRIPTOR)
_PENDING_REASONS = EnumNames(payment_pb2.PendingReason.DESCRIPTOR)
_FAILURE_REASONS = EnumNames(payment_pb2.FailureReason.DESCRIPTOR)
_OUTCOMES = EnumNames(payment_pb2.Outcome.DESCRIPTOR)


def payment(orders: Sequence[Row[Any]]) -> payment_pb2.Payment:
    """A payment with its orders, whose rows have its columns too."""
    versions = sum(order.version for order in orders)
    updated = max(order.update_time for order in orders)
    message = _payment(orders[0], versions, updated)
    message.payment_orders.extend(payment_order(order) for order in orders)
    return message


def payment_head(row: Row[Any]) -> payment_pb2.Payment:
    """A payment without its orders; the row has the sum of their versions and their last update."""
    return _payment(row, row.versions, row.update_time)


def _payment(row: Row[Any], versions: int, updated: Any) -> payment_pb2.Payment:
    return payment_pb2.Payment(
        checkout_id=row.checkout_id,
        buyer_info=row.buyer_info,
        seller_info=row.seller_info,
        buyer_country=row.buyer_country,
        payment_method_type=METHOD_TYPES.number(row.payment_method_type),
        payment_state=STATES.number(row.payment_state),
        is_payment_done=row.is_payment_done,
        caller=row.caller,
        version=row.checkout_version + int(versions),
        create_time=to_timestamp(row.checkout_create_time),
        update_time=to_timestamp(updated),
        done_time=to_timestamp(row.done_time) if row.done_time else None,
    )


def payment_order(row: Row[Any]) -> payment_pb2.PaymentOrder:
    """An order as it stands; a row of any of the order queries."""
    message = order_head(row)
    move_on(message, row)
    if row.next_attempt_time is not None and row.status == Status.EXECUTING:
        message.next_attempt_time.CopyFrom(to_timestamp(row.next_attempt_time))
    return message


def order_head(row: Row[Any]) -> payment_pb2.PaymentOrder:
    """What never changes of an order."""
    return payment_pb2.PaymentOrder(
        payment_order_id=row.payment_order_id,
        checkout_id=row.checkout_id,
        charge_id=row.charge_id,
        buyer_account=row.buyer_account,
        seller_account=row.seller_account,
        amount=format_amount(row.amount, row.currency),
        currency=row.currency,
        platform_fee=format_amount(row.platform_fee, row.currency),
        provider=row.provider,
        create_time=to_timestamp(row.create_time),
    )


def move_on(order: payment_pb2.PaymentOrder, row: Row[Any]) -> None:
    """Makes the message of an order that of the row's version: what a move can change."""
    order.payment_order_status = _STATUSES.number(row.status)
    order.wallet_updated = row.wallet_updated
    order.ledger_updated = row.ledger_updated
    order.pending_reason = _PENDING_REASONS.number(row.pending_reason)
    order.next_action_url = row.next_action_url
    order.failure_reason = _FAILURE_REASONS.number(row.failure_reason)
    order.decline_code = row.decline_code
    order.provider_reference = row.provider_reference
    order.attempt_count = row.attempt_count
    order.version = row.version
    order.update_time.CopyFrom(to_timestamp(row.update_time))


def transitions(rows: Iterable[Row[Any]]) -> list[payment_pb2.Transition]:
    return [
        payment_pb2.Transition(
            version=row.version,
            from_status=_STATUSES.number(row.from_status),
            to_status=_STATUSES.number(row.to_status),
            cause=row.cause,
            create_time=to_timestamp(row.create_time),
        )
        for row in rows
    ]


def attempts(rows: Iterable[Row[Any]]) -> list[payment_pb2.Attempt]:
    return [
        payment_pb2.Attempt(
            charge_id=row.charge_id,
            number=row.number,
            provider=row.provider,
            provider_key=row.provider_key,
            outcome=_OUTCOMES.number(row.outcome),
            provider_reference=row.provider_reference,
            start_time=to_timestamp(row.start_time),
            end_time=to_timestamp(row.end_time) if row.end_time else None,
        )
        for row in rows
    ]

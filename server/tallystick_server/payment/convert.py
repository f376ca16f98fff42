"""Converts stored rows of PaymentService into messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.money import format_amount
from tallystick_core.payment.hosted_page import RequestedPage
from tallystick_core.payment.state import TERMINAL_STATUSES, OrderStatus
from tallystick_server.operations.history import acknowledgement_fields
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import to_optional_timestamp, to_timestamp
from tallystick_storage.payment import checkouts as checkout_store
from tallystick_storage.payment import orders as store
from tallystick_storage.payment.queries import (
    FinalCheckoutRow,
    OrderWithPaymentRow,
    PaymentRow,
    PaymentSummaryRow,
    ScheduledOrderRow,
)
from tallystick_storage.payment.unapplied_charges import UnappliedChargeRow

METHOD_TYPES = EnumNames(payment_pb2.PaymentMethodType.DESCRIPTOR)
CHARGE_MODES = EnumNames(payment_pb2.ChargeMode.DESCRIPTOR)
PARTIAL_FAILURE_POLICIES = EnumNames(payment_pb2.PartialFailurePolicy.DESCRIPTOR)
PAYMENT_STATES = EnumNames(payment_pb2.PaymentState.DESCRIPTOR)
WAIT_CONDITIONS = EnumNames(payment_service_pb2.WaitFor.DESCRIPTOR)


_STATUSES = EnumNames(payment_pb2.PaymentOrderStatus.DESCRIPTOR)
_PENDING_REASONS = EnumNames(payment_pb2.PendingReason.DESCRIPTOR)
_FAILURE_REASONS = EnumNames(payment_pb2.FailureReason.DESCRIPTOR)
_UNAPPLIED_CAUSES = EnumNames(payment_pb2.UnappliedCause.DESCRIPTOR)

_DECIDED_VERSION = 2
"""The version of a new order after the decision of the risk rules; version 1 is NOT_STARTED."""


def created_version(order: checkout_store.NewOrder) -> int:
    """The version in which a new order is stored."""
    return 1 if order.status == OrderStatus.NOT_STARTED else _DECIDED_VERSION


def payment(orders: Sequence[OrderWithPaymentRow]) -> payment_pb2.Payment:
    """A payment with its orders."""
    version_sum = sum(order.version for order in orders)
    update_time = max(order.update_time for order in orders)
    message = _payment(orders[0].checkout_id, orders[0], version_sum, update_time)
    complete_payment(message, (payment_order(order) for order in orders), orders[0])
    return message


def final_payment(
    row: FinalCheckoutRow, orders: Iterable[payment_pb2.PaymentOrder]
) -> payment_pb2.Payment:
    """A final payment, without its orders."""
    return _payment(row.checkout_id, row, sum(order.version for order in orders), row.done_time)


def complete_payment(
    payment: payment_pb2.Payment,
    orders: Iterable[payment_pb2.PaymentOrder],
    row: OrderWithPaymentRow | FinalCheckoutRow,
) -> None:
    """Adds what an event of a payment does not have: its orders, sorted by id, the link to its
    status page, and the URL of its hosted page while the buyer can pay there.
    """
    payment.payment_orders.extend(sorted(orders, key=lambda order: order.payment_order_id))
    payment.status_url = row.status_url or ""
    if payment.HasField("hosted_page") and row.takes_payment:
        payment.hosted_page.url = next(
            filter(None, (order.next_action_url for order in payment.payment_orders)), ""
        )


def payment_summary(row: PaymentSummaryRow) -> payment_pb2.Payment:
    """A payment without its orders."""
    return _payment(row.checkout_id, row, row.versions, row.update_time)


def _payment(
    checkout_id: str, row: PaymentRow, version_sum: int, update_time: datetime
) -> payment_pb2.Payment:
    return payment_pb2.Payment(
        checkout_id=checkout_id,
        **_checkout_fields(row),
        payment_state=PAYMENT_STATES.number(row.payment_state),
        is_payment_done=row.is_payment_done,
        version=row.checkout_version + version_sum,
        create_time=to_timestamp(row.checkout_create_time),
        update_time=to_timestamp(update_time),
        done_time=to_optional_timestamp(row.done_time),
        hosted_page=None
        if row.page_success_url is None
        else _hosted_page(
            row.page_success_url, row.page_cancel_url or "", row.page_locale or "", row.expire_time
        ),
    )


def _hosted_page(
    success_url: str, cancel_url: str, locale: str, expire_time: datetime | None
) -> payment_pb2.HostedPage:
    return payment_pb2.HostedPage(
        success_url=success_url,
        cancel_url=cancel_url,
        locale=locale,
        expire_time=to_optional_timestamp(expire_time),
    )


def _checkout_fields(checkout: PaymentRow | checkout_store.NewCheckout) -> dict[str, Any]:
    """The immutable fields of a payment, except its id and its creation time."""
    return {
        "buyer_info": checkout.buyer_info,
        "seller_info": checkout.seller_info,
        "buyer_country": checkout.buyer_country,
        "payment_method_type": METHOD_TYPES.number(checkout.payment_method_type),
        "caller": checkout.caller,
        "owner": checkout.owner,
        "expire_time": to_optional_timestamp(checkout.expire_time),
    }


def new_payment(
    checkout: checkout_store.NewCheckout,
    page: RequestedPage | None,
    version_sum: int,
    create_time: datetime,
) -> payment_pb2.Payment:
    """A new payment without its orders, as it is stored; `version_sum` is that of its orders."""
    timestamp = to_timestamp(create_time)
    return payment_pb2.Payment(
        checkout_id=checkout.checkout_id,
        **_checkout_fields(checkout),
        payment_state=payment_pb2.PAYMENT_STATE_OPEN,
        version=1 + version_sum,
        create_time=timestamp,
        update_time=timestamp,
        hosted_page=None
        if page is None
        else _hosted_page(page.success_url, page.cancel_url, page.locale, checkout.expire_time),
    )


def close_new_payment(payment: payment_pb2.Payment) -> None:
    """Closes a new payment whose orders the risk rules have all rejected."""
    payment.payment_state = payment_pb2.PAYMENT_STATE_FAILED
    payment.version += 1
    payment.done_time.CopyFrom(payment.create_time)


def payment_order(row: ScheduledOrderRow) -> payment_pb2.PaymentOrder:
    """The current order."""
    message = stored_order(row)
    if row.next_try_time is not None and row.status not in TERMINAL_STATUSES:
        message.next_try_time.CopyFrom(to_timestamp(row.next_try_time))
    return message


def stored_order(row: store.OrderRow) -> payment_pb2.PaymentOrder:
    """The current order, without its next_try_time."""
    return payment_pb2.PaymentOrder(
        **_order_fields(row),
        **_money_fields(
            row.currency, row.captured_amount, row.refunded_amount, row.disputed_amount
        ),
        payment_order_status=_STATUSES.number(row.status),
        wallet_updated=row.wallet_updated,
        ledger_updated=row.ledger_updated,
        pending_reason=_PENDING_REASONS.number(row.pending_reason),
        next_action_url=row.next_action_url,
        failure_reason=_FAILURE_REASONS.number(row.failure_reason),
        decline_code=row.decline_code,
        provider_reference=row.provider_reference,
        attempt_count=row.attempt_count,
        resolve_by_time=to_optional_timestamp(row.resolve_by_time),
        delivery_confirmed_time=to_optional_timestamp(row.delivery_confirmed_time),
        version=row.version,
        create_time=to_timestamp(row.create_time),
        update_time=to_timestamp(row.update_time),
    )


def new_order(order: checkout_store.NewOrder) -> payment_pb2.PaymentOrder:
    """A new order as it is stored, without its times."""
    return payment_pb2.PaymentOrder(
        **_order_fields(order),
        **_money_fields(order.currency, 0, 0, 0),
        payment_order_status=payment_pb2.PAYMENT_ORDER_STATUS_NOT_STARTED,
        attempt_count=order.attempt_count if order.status == OrderStatus.NOT_STARTED else 0,
        version=1,
    )


def _order_fields(order: store.OrderRow | checkout_store.NewOrder) -> dict[str, Any]:
    """The immutable fields of an order, except its creation time."""
    return {
        "payment_order_id": order.payment_order_id,
        "checkout_id": order.checkout_id,
        "charge_id": order.charge_id,
        "buyer_account": order.buyer_account,
        "seller_account": order.seller_account,
        "amount": format_amount(order.amount, order.currency),
        "currency": order.currency,
        "platform_fee": format_amount(order.platform_fee, order.currency),
        "provider": order.provider,
    }


def _money_fields(currency: str, captured: int, refunded: int, disputed: int) -> dict[str, Any]:
    return {
        "captured_amount": format_amount(captured, currency),
        "refunded_amount": format_amount(refunded, currency),
        "disputed_amount": format_amount(disputed, currency),
    }


def apply_risk_decision(message: payment_pb2.PaymentOrder, order: checkout_store.NewOrder) -> None:
    """Applies the risk decision to the message of a new order."""
    message.payment_order_status = _STATUSES.number(order.status)
    message.failure_reason = _FAILURE_REASONS.number(order.failure_reason)
    message.attempt_count = order.attempt_count
    message.version = _DECIDED_VERSION


def apply_transition(
    message: payment_pb2.PaymentOrder,
    transition: store.OrderTransitionRow,
    update_time: datetime,
    resolve_by_time: datetime | None,
) -> None:
    """Applies a transition to the message of an order."""
    message.payment_order_status = _STATUSES.number(transition.status)
    message.wallet_updated = message.ledger_updated = transition.booked
    if transition.status == OrderStatus.SUCCESS:
        message.captured_amount = message.amount
    message.pending_reason = _PENDING_REASONS.number(transition.pending_reason)
    message.next_action_url = transition.next_action_url
    message.failure_reason = _FAILURE_REASONS.number(transition.failure_reason)
    message.decline_code = transition.decline_code
    if transition.provider_reference:
        message.provider_reference = transition.provider_reference
    if transition.provider is not None:
        message.provider = transition.provider
        message.attempt_count += 1
    if resolve_by_time:
        message.resolve_by_time.CopyFrom(to_timestamp(resolve_by_time))
    else:
        message.ClearField("resolve_by_time")
    message.version = transition.version + 1
    message.update_time.CopyFrom(to_timestamp(update_time))


def unapplied_charge(row: UnappliedChargeRow) -> payment_pb2.UnappliedCharge:
    return payment_pb2.UnappliedCharge(
        unapplied_charge_id=row.unapplied_charge_id,
        charge_id=row.charge_id,
        checkout_id=row.checkout_id,
        caller=row.caller,
        provider=row.provider,
        provider_reference=row.provider_reference,
        amount=format_amount(row.amount, row.currency),
        currency=row.currency,
        cause=_UNAPPLIED_CAUSES.number(row.cause),
        ledger_updated=row.ledger_updated,
        version=row.version,
        create_time=to_timestamp(row.create_time),
        update_time=to_timestamp(row.update_time),
        **acknowledgement_fields(row),
    )

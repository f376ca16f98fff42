"""Converts PaymentService messages: requests into validated values, stored rows into messages.

The values that `parse_` functions return can be stored, charged and booked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.access import Caller
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.money import MAX_AMOUNT, format_amount, parse_amount, parse_currency
from tallystick_core.payment.checkout import (
    MAX_ORDERS,
    ChargeMode,
    CheckoutRequest,
    MethodType,
    Order,
    PartialFailurePolicy,
    normalize,
)
from tallystick_core.payment.state import TERMINAL_STATUSES, OrderStatus
from tallystick_core.validation import (
    parse_country,
    parse_id,
    parse_items,
    parse_optional_id,
    parse_text,
    parse_token,
)
from tallystick_server.operations.history import acknowledgement_fields
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import parse_time, to_optional_timestamp, to_timestamp
from tallystick_storage.payment import checkouts as checkout_store
from tallystick_storage.payment import orders as store
from tallystick_storage.payment.queries import (
    FinalCheckoutRow,
    OrderWithPaymentRow,
    PaymentFilter,
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
_MAX_INFO_LENGTH = 1024


def parse_checkout(
    request: payment_service_pb2.CreatePaymentRequest, caller: Caller
) -> CheckoutRequest:
    """Parses a CreatePayment call. Raises ApiError with the path of the first invalid field."""
    checkout_id = parse_id(request.checkout_id, "checkout_id")
    buyer_info = parse_text(request.buyer_info, "buyer_info", _MAX_INFO_LENGTH)
    seller_info = parse_text(request.seller_info, "seller_info", _MAX_INFO_LENGTH)
    country = parse_country(request.buyer_country, "buyer_country")
    if request.WhichOneof("payment_method") is None:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED,
            "payment_method is required: set credit_card_info.",
            field="payment_method",
        )
    checkout = CheckoutRequest(
        checkout_id,
        caller.name,
        caller.owner,
        buyer_info,
        seller_info,
        country,
        parse_token(request.credit_card_info, "credit_card_info"),
        MethodType(
            METHOD_TYPES.parse(request.payment_method_type, "payment_method_type", MethodType.CARD)
        ),
        ChargeMode(CHARGE_MODES.parse(request.charge_mode, "charge_mode", ChargeMode.PER_ORDER)),
        PartialFailurePolicy(
            PARTIAL_FAILURE_POLICIES.parse(
                request.partial_failure_policy,
                "partial_failure_policy",
                PartialFailurePolicy.KEEP_SUCCEEDED,
            )
        ),
        _orders(request),
        parse_time(request, "expire_time"),
    )
    _check_charge_mode(checkout)
    return normalize(checkout)


def _orders(request: payment_service_pb2.CreatePaymentRequest) -> tuple[Order, ...]:
    return tuple(
        parse_items(
            request.payment_orders,
            _order,
            field="payment_orders",
            item_name="order",
            id_field="payment_order_id",
            max_items=MAX_ORDERS,
        )
    )


def _order(message: payment_pb2.NewPaymentOrder, index: int) -> Order:
    order_id = parse_id(message.payment_order_id, "payment_order_id")
    buyer = parse_id(message.buyer_account, "buyer_account")
    seller = parse_id(message.seller_account, "seller_account")
    if buyer == seller:
        raise ApiError(
            ErrorReason.SAME_ACCOUNT,
            "seller_account must not be equal to buyer_account.",
            field="seller_account",
        )
    currency = parse_currency(message.currency)
    amount = parse_amount(message.amount, currency)
    return Order(
        order_id,
        buyer,
        seller,
        amount,
        currency,
        _fee(message.platform_fee, amount, currency),
        index,
    )


def _fee(text: str, amount: int, currency: str) -> int | None:
    """Parses the fee; None: the configured fee applies. The seller's share is always positive."""
    if not text:
        return None
    fee = parse_amount(text, currency, "platform_fee", min_amount=0)
    if fee >= amount:
        raise ApiError(
            ErrorReason.AMOUNT_OUT_OF_RANGE,
            "platform_fee must be less than amount.",
            field="platform_fee",
        )
    return fee


def _check_charge_mode(checkout: CheckoutRequest) -> None:
    if (
        checkout.charge_mode is ChargeMode.COMBINED
        and len({order.currency for order in checkout.orders}) > 1
    ):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "charge_mode COMBINED needs all orders in one currency.",
            field="charge_mode",
        )
    if (
        checkout.partial_failure_policy is PartialFailurePolicy.ALL_OR_NOTHING
        and checkout.charge_mode is not ChargeMode.COMBINED
    ):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "partial_failure_policy ALL_OR_NOTHING needs charge_mode COMBINED.",
            field="partial_failure_policy",
        )
    if (
        checkout.charge_mode is ChargeMode.COMBINED
        and sum(order.amount for order in checkout.orders) > MAX_AMOUNT
    ):
        max_total = format_amount(MAX_AMOUNT, checkout.orders[0].currency)
        raise ApiError(
            ErrorReason.AMOUNT_OUT_OF_RANGE,
            f"The orders charged together must sum to at most {max_total}.",
            field="payment_orders",
        )


def parse_payment_filter(
    request: payment_service_pb2.ListPaymentsRequest, owner: str | None
) -> PaymentFilter:
    """The filter of a payment list; `owner` None: payments of all owners."""
    return PaymentFilter(
        owner,
        parse_optional_id(request.buyer_account, "buyer_account") or None,
        parse_optional_id(request.seller_account, "seller_account") or None,
        PAYMENT_STATES.parse(request.payment_state, "payment_state", "") or None,
        parse_time(request, "create_time_from"),
        parse_time(request, "create_time_until"),
    )


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
    message.payment_orders.extend(payment_order(order) for order in orders)
    return message


def final_payment(
    row: FinalCheckoutRow, orders: Iterable[payment_pb2.PaymentOrder]
) -> payment_pb2.Payment:
    """A final payment, without its orders."""
    return _payment(row.checkout_id, row, sum(order.version for order in orders), row.done_time)


def add_orders(payment: payment_pb2.Payment, orders: Iterable[payment_pb2.PaymentOrder]) -> None:
    """Adds orders to a payment, sorted by id."""
    payment.payment_orders.extend(sorted(orders, key=lambda order: order.payment_order_id))


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
    checkout: checkout_store.NewCheckout, version_sum: int, create_time: datetime
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

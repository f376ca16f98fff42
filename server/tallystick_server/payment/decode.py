"""Requests of PaymentService as values. Parsing is validation: what comes out of here can be stored, charged and booked."""

from __future__ import annotations

from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.caller import Caller
from tallystick_core.identifier import parse_country, parse_id, parse_text, parse_token
from tallystick_core.money import MAX_AMOUNT, format_amount, parse_amount, parse_currency
from tallystick_core.payment import MAX_ORDERS, ChargeMode, CheckoutRequest, MethodType, Order, PartialFailurePolicy, normalize
from tallystick_core.refusal import ApiError, ErrorReason
from tallystick_server.runtime.fields import EnumNames, parse_time
from tallystick_storage.payment.reads import PaymentFilter

METHOD_TYPES = EnumNames(payment_pb2.PaymentMethodType.DESCRIPTOR)
CHARGE_MODES = EnumNames(payment_pb2.Charging.DESCRIPTOR)
PARTIAL_FAILURE_POLICIES = EnumNames(payment_pb2.OnPartial.DESCRIPTOR)
PAYMENT_STATES = EnumNames(payment_pb2.PaymentState.DESCRIPTOR)
WAIT_CONDITIONS = EnumNames(payment_service_pb2.WaitFor.DESCRIPTOR)
_MAX_INFO_LENGTH = 1024


def checkout_request(request: payment_service_pb2.CreatePaymentRequest, caller: Caller) -> CheckoutRequest:
    """The payment event. Raises Refused with the path of the first field that is wrong."""
    checkout_id = parse_id(request.checkout_id, "checkout_id")
    buyer_info = parse_text(request.buyer_info, "buyer_info", _MAX_INFO_LENGTH)
    seller_info = parse_text(request.seller_info, "seller_info", _MAX_INFO_LENGTH)
    country = parse_country(request.buyer_country, "buyer_country")
    if request.WhichOneof("payment_method") is None:
        raise ApiError(ErrorReason.FIELD_REQUIRED, "payment_method is required: set credit_card_info.", field="payment_method")
    checkout = CheckoutRequest(
        checkout_id,
        caller.name,
        caller.owner,
        buyer_info,
        seller_info,
        country,
        parse_token(request.credit_card_info, "credit_card_info"),
        MethodType(METHOD_TYPES.parse(request.payment_method_type, "payment_method_type", MethodType.CARD)),
        ChargeMode(CHARGE_MODES.parse(request.charging, "charging", ChargeMode.PER_ORDER)),
        PartialFailurePolicy(PARTIAL_FAILURE_POLICIES.parse(request.on_partial, "on_partial", PartialFailurePolicy.KEEP)),
        _orders(request),
        parse_time(request, "expire_time"),
    )
    _check_charge_mode(checkout)
    return normalize(checkout)


def _orders(request: payment_service_pb2.CreatePaymentRequest) -> tuple[Order, ...]:
    if not request.payment_orders:
        raise ApiError(ErrorReason.FIELD_REQUIRED, "payment_orders must have at least one order.", field="payment_orders")
    if len(request.payment_orders) > MAX_ORDERS:
        raise ApiError(ErrorReason.TOO_MANY_ITEMS, f"payment_orders must have at most {MAX_ORDERS} orders.", field="payment_orders")
    orders, seen_ids = [], set()
    for index, message in enumerate(request.payment_orders):
        try:
            orders.append(_order(message, index))
        except ApiError as error:
            raise error.with_field_prefix(f"payment_orders[{index}]") from None
        if message.payment_order_id in seen_ids:
            path = f"payment_orders[{index}].payment_order_id"
            raise ApiError(ErrorReason.DUPLICATE_ITEM, f"{path} stands twice in the request.", field=path)
        seen_ids.add(message.payment_order_id)
    return tuple(orders)


def _order(message: payment_pb2.NewPaymentOrder, index: int) -> Order:
    order_id = parse_id(message.payment_order_id, "payment_order_id")
    buyer = parse_id(message.buyer_account, "buyer_account")
    seller = parse_id(message.seller_account, "seller_account")
    if buyer == seller:
        raise ApiError(ErrorReason.SAME_ACCOUNT, "seller_account must be another account than buyer_account.", field="seller_account")
    currency = parse_currency(message.currency)
    amount = parse_amount(message.amount, currency)
    return Order(order_id, buyer, seller, amount, currency, _fee(message.platform_fee, amount, currency), index)


def _fee(text: str, amount: int, currency: str) -> int | None:
    """The fee; None: as configured. The seller always gets something."""
    if not text:
        return None
    fee = parse_amount(text, currency, "platform_fee", min_amount=0)
    if fee >= amount:
        raise ApiError(ErrorReason.AMOUNT_OUT_OF_RANGE, "platform_fee must be less than the amount.", field="platform_fee")
    return fee


def _check_charge_mode(checkout: CheckoutRequest) -> None:
    if checkout.charging is ChargeMode.TOGETHER and len({order.currency for order in checkout.orders}) > 1:
        raise ApiError(ErrorReason.FIELD_INVALID, "charging TOGETHER needs all orders in one currency.", field="charging")
    if checkout.on_partial is PartialFailurePolicy.ALL_OR_NOTHING and checkout.charging is not ChargeMode.TOGETHER:
        raise ApiError(ErrorReason.FIELD_INVALID, "on_partial ALL_OR_NOTHING needs charging TOGETHER.", field="on_partial")
    if checkout.charging is ChargeMode.TOGETHER and sum(order.amount for order in checkout.orders) > MAX_AMOUNT:
        max_total = format_amount(MAX_AMOUNT, checkout.orders[0].currency)
        raise ApiError(ErrorReason.AMOUNT_OUT_OF_RANGE, f"The orders charged together must sum to at most {max_total}.", field="payment_orders")


def payment_filter(request: payment_service_pb2.ListPaymentsRequest, owner: str | None) -> PaymentFilter:
    """Which payments to list; `owner` None: everybody's."""
    return PaymentFilter(
        owner,
        parse_id(request.buyer_account, "buyer_account") if request.buyer_account else None,
        parse_id(request.seller_account, "seller_account") if request.seller_account else None,
        PAYMENT_STATES.parse(request.payment_state, "payment_state", "") or None,
        parse_time(request, "create_time_from"),
        parse_time(request, "create_time_until"),
    )

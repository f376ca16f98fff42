"""Parses the requests of PaymentService into values that can be stored, charged and booked."""

from __future__ import annotations

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
from tallystick_core.payment.hosted_page import RequestedPage, parse_locale
from tallystick_core.payment.return_url import parse_return_url
from tallystick_core.validation import (
    parse_country,
    parse_id,
    parse_items,
    parse_optional_id,
    parse_text,
    parse_token,
)
from tallystick_server.payment import convert
from tallystick_server.rpc.timestamps import parse_time
from tallystick_storage.payment.queries import PaymentFilter

_MAX_INFO_LENGTH = 1024


def parse_checkout(
    request: payment_service_pb2.CreatePaymentRequest, caller: Caller
) -> CheckoutRequest:
    """Parses a CreatePayment call. Raises ApiError with the path of the first invalid field."""
    checkout_id = parse_id(request.checkout_id, "checkout_id")
    buyer_info = parse_text(request.buyer_info, "buyer_info", _MAX_INFO_LENGTH)
    seller_info = parse_text(request.seller_info, "seller_info", _MAX_INFO_LENGTH)
    country = parse_country(request.buyer_country, "buyer_country")
    method = request.WhichOneof("payment_method")
    if method is None:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED,
            "payment_method is required: set credit_card_info or hosted_page.",
            field="payment_method",
        )
    page = _page(request.hosted_page) if method == "hosted_page" else None
    default_charge_mode = ChargeMode.PER_ORDER if page is None else ChargeMode.COMBINED
    checkout = CheckoutRequest(
        checkout_id,
        caller.name,
        caller.owner,
        buyer_info,
        seller_info,
        country,
        parse_token(request.credit_card_info, "credit_card_info") if page is None else "",
        MethodType(
            convert.METHOD_TYPES.parse(
                request.payment_method_type, "payment_method_type", MethodType.CARD
            )
        ),
        ChargeMode(
            convert.CHARGE_MODES.parse(request.charge_mode, "charge_mode", default_charge_mode)
        ),
        PartialFailurePolicy(
            convert.PARTIAL_FAILURE_POLICIES.parse(
                request.partial_failure_policy,
                "partial_failure_policy",
                PartialFailurePolicy.KEEP_SUCCEEDED,
            )
        ),
        _orders(request),
        parse_time(request, "expire_time"),
        page,
    )
    _check_charge_mode(checkout)
    return normalize(checkout)


def _page(message: payment_pb2.NewHostedPage) -> RequestedPage:
    try:
        return RequestedPage(
            parse_return_url(message.success_url, "success_url"),
            parse_return_url(message.cancel_url, "cancel_url"),
            parse_time(message, "expire_time"),
            parse_locale(message.locale, "locale"),
        )
    except ApiError as error:
        raise error.with_field_prefix("hosted_page") from None


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
    if checkout.page is not None and checkout.charge_mode is not ChargeMode.COMBINED:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "charge_mode must be COMBINED or unset with hosted_page: the buyer pays once.",
            field="charge_mode",
        )
    if checkout.page is not None and checkout.expire_time is not None:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "expire_time must be unset with hosted_page: set hosted_page.expire_time.",
            field="expire_time",
        )
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
        convert.PAYMENT_STATES.parse(request.payment_state, "payment_state", "") or None,
        parse_time(request, "create_time_from"),
        parse_time(request, "create_time_until"),
    )

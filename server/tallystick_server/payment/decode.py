"""Requests of PaymentService as values. Parsing is validation: what comes out of here can be stored, charged and booked."""

from __future__ import annotations

from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.caller import Caller
from tallystick_core.identifier import parse_country, parse_id, parse_text, parse_token
from tallystick_core.money import MAX_AMOUNT, format_amount, parse_amount, parse_currency
from tallystick_core.payment import MOST_ORDERS, Charging, MethodType, OnPartial, Order, PaymentEvent, normalised
from tallystick_core.refusal import Reason, Refused
from tallystick_server.runtime.fields import EnumNames, parse_time
from tallystick_storage.payment.reads import PaymentFilter

METHOD_TYPES = EnumNames(payment_pb2.PaymentMethodType.DESCRIPTOR)
CHARGINGS = EnumNames(payment_pb2.Charging.DESCRIPTOR)
ON_PARTIALS = EnumNames(payment_pb2.OnPartial.DESCRIPTOR)
STATES = EnumNames(payment_pb2.PaymentState.DESCRIPTOR)
WAITS = EnumNames(payment_service_pb2.WaitFor.DESCRIPTOR)
_LONGEST_INFO = 1024


def payment_event(request: payment_service_pb2.CreatePaymentRequest, caller: Caller) -> PaymentEvent:
    """The payment event. Raises Refused with the path of the first field that is wrong."""
    checkout_id = parse_id(request.checkout_id, "checkout_id")
    buyer_info = parse_text(request.buyer_info, "buyer_info", _LONGEST_INFO)
    seller_info = parse_text(request.seller_info, "seller_info", _LONGEST_INFO)
    country = parse_country(request.buyer_country, "buyer_country")
    if request.WhichOneof("payment_method") is None:
        raise Refused(Reason.FIELD_REQUIRED, "payment_method is required: set credit_card_info.", field="payment_method")
    event = PaymentEvent(
        checkout_id,
        caller.name,
        caller.owner,
        buyer_info,
        seller_info,
        country,
        parse_token(request.credit_card_info, "credit_card_info"),
        MethodType(METHOD_TYPES.parse(request.payment_method_type, "payment_method_type", MethodType.CARD)),
        Charging(CHARGINGS.parse(request.charging, "charging", Charging.PER_ORDER)),
        OnPartial(ON_PARTIALS.parse(request.on_partial, "on_partial", OnPartial.KEEP)),
        _orders(request),
        parse_time(request, "expire_time"),
    )
    _check_together(event)
    return normalised(event)


def _orders(request: payment_service_pb2.CreatePaymentRequest) -> tuple[Order, ...]:
    if not request.payment_orders:
        raise Refused(Reason.FIELD_REQUIRED, "payment_orders must have at least one order.", field="payment_orders")
    if len(request.payment_orders) > MOST_ORDERS:
        raise Refused(Reason.TOO_MANY_ITEMS, f"payment_orders must have at most {MOST_ORDERS} orders.", field="payment_orders")
    orders, seen = [], set()
    for place, new in enumerate(request.payment_orders):
        try:
            orders.append(_order(new, place))
        except Refused as refused:
            raise refused.below(f"payment_orders[{place}]") from None
        if new.payment_order_id in seen:
            path = f"payment_orders[{place}].payment_order_id"
            raise Refused(Reason.DUPLICATE_ITEM, f"{path} stands twice in the request.", field=path)
        seen.add(new.payment_order_id)
    return tuple(orders)


def _order(new: payment_pb2.NewPaymentOrder, place: int) -> Order:
    order_id = parse_id(new.payment_order_id, "payment_order_id")
    buyer = parse_id(new.buyer_account, "buyer_account")
    seller = parse_id(new.seller_account, "seller_account")
    if buyer == seller:
        raise Refused(Reason.SAME_ACCOUNT, "seller_account must be another account than buyer_account.", field="seller_account")
    currency = parse_currency(new.currency)
    amount = parse_amount(new.amount, currency)
    return Order(order_id, buyer, seller, amount, currency, _fee(new.platform_fee, amount, currency), place)


def _fee(text: str, amount: int, currency: str) -> int | None:
    """The fee; None: as configured. The seller always gets something."""
    if not text:
        return None
    fee = parse_amount(text, currency, "platform_fee", least=0)
    if fee >= amount:
        raise Refused(Reason.AMOUNT_OUT_OF_RANGE, "platform_fee must be less than the amount.", field="platform_fee")
    return fee


def _check_together(event: PaymentEvent) -> None:
    if event.charging is Charging.TOGETHER and len({order.currency for order in event.orders}) > 1:
        raise Refused(Reason.FIELD_INVALID, "charging TOGETHER needs all orders in one currency.", field="charging")
    if event.on_partial is OnPartial.ALL_OR_NOTHING and event.charging is not Charging.TOGETHER:
        raise Refused(Reason.FIELD_INVALID, "on_partial ALL_OR_NOTHING needs charging TOGETHER.", field="on_partial")
    if event.charging is Charging.TOGETHER and sum(order.amount for order in event.orders) > MAX_AMOUNT:
        highest = format_amount(MAX_AMOUNT, event.orders[0].currency)
        raise Refused(Reason.AMOUNT_OUT_OF_RANGE, f"The orders charged together must sum to at most {highest}.", field="payment_orders")


def payment_filter(request: payment_service_pb2.ListPaymentsRequest, owner: str | None) -> PaymentFilter:
    """Which payments to list; `owner` None: everybody's."""
    return PaymentFilter(
        owner,
        parse_id(request.buyer_account, "buyer_account") if request.buyer_account else None,
        parse_id(request.seller_account, "seller_account") if request.seller_account else None,
        STATES.parse(request.payment_state, "payment_state", "") or None,
        parse_time(request, "create_time_from"),
        parse_time(request, "create_time_until"),
    )

"""A checkout and its orders, as a caller requests them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from tallystick_core.fingerprint import fingerprint, to_microseconds
from tallystick_core.payment.hosted_page import RequestedPage
from tallystick_core.provider.outcome import FailureReason

MAX_ORDERS = 200


class MethodType(StrEnum):
    """The buyer's payment method."""

    CARD = "CARD"
    APPLE_PAY = "APPLE_PAY"
    GOOGLE_PAY = "GOOGLE_PAY"
    BANK_TRANSFER = "BANK_TRANSFER"
    CASH = "CASH"


class ChargeMode(StrEnum):
    """The number of charges of a checkout: one per order, or one combined."""

    PER_ORDER = "PER_ORDER"
    COMBINED = "COMBINED"


class PartialFailurePolicy(StrEnum):
    """Whether the remaining orders of a checkout continue when one of them is rejected."""

    KEEP_SUCCEEDED = "KEEP_SUCCEEDED"
    ALL_OR_NOTHING = "ALL_OR_NOTHING"


@dataclass(frozen=True, slots=True)
class Order:
    """One seller's part of a payment, as the caller requested it. Amounts are in minor units.
    `platform_fee` None: the configured rate.
    """

    payment_order_id: str
    buyer_account: str
    seller_account: str
    amount: int
    currency: str
    platform_fee: int | None
    index: int = field(default=0, compare=False)
    """Its position in the request. Not part of its values."""

    def values(self) -> tuple[str | int, ...]:
        """The values that define equality of two orders."""
        fee = "" if self.platform_fee is None else self.platform_fee
        return (
            self.payment_order_id,
            self.buyer_account,
            self.seller_account,
            self.amount,
            self.currency,
            fee,
        )


@dataclass(frozen=True, slots=True)
class CheckoutRequest:
    """The parsed request of a caller. `orders` are sorted by id, so that their order in the request
    makes no difference.
    """

    checkout_id: str
    caller: str
    owner: str
    buyer_info: str
    seller_info: str
    buyer_country: str
    payment_token: str
    payment_method_type: MethodType
    charge_mode: ChargeMode
    partial_failure_policy: PartialFailurePolicy
    orders: tuple[Order, ...]
    expire_time: datetime | None = None
    """None with a hosted page, which has its own."""
    page: RequestedPage | None = None
    """The hosted page on which the buyer pays; None: the buyer pays by token."""

    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values, regardless of how they were written."""
        identity = (
            self.checkout_id,
            self.owner,
            self.buyer_info,
            self.seller_info,
            self.buyer_country,
        )
        options = (
            self.payment_token,
            self.payment_method_type,
            self.charge_mode,
            self.partial_failure_policy,
            to_microseconds(self.expire_time),
        )
        return fingerprint(
            *identity,
            *options,
            *(value for order in self.orders for value in order.values()),
            *(self.page.values() if self.page else ()),
        )


def first_difference(sent: CheckoutRequest, stored: CheckoutRequest) -> str:
    """The API name of the first field in which two checkouts differ, in the order of the
    request.
    """
    if (sent.page is None) != (stored.page is None):
        return "payment_method"
    names = (
        "buyer_info",
        "seller_info",
        "buyer_country",
        "payment_token",
        "payment_method_type",
        "charge_mode",
        "partial_failure_policy",
        "expire_time",
    )
    for name in names:
        if getattr(sent, name) != getattr(stored, name):
            return "credit_card_info" if name == "payment_token" else name
    for name in ("success_url", "cancel_url", "expire_time", "locale"):
        if getattr(sent.page, name, None) != getattr(stored.page, name, None):
            return f"hosted_page.{name}"
    if len(sent.orders) != len(stored.orders):
        return "payment_orders"
    order_fields = (
        "payment_order_id",
        "buyer_account",
        "seller_account",
        "amount",
        "currency",
        "platform_fee",
    )
    for sent_order, stored_order in zip(sent.orders, stored.orders, strict=True):
        for name, sent_value, stored_value in zip(
            order_fields, sent_order.values(), stored_order.values(), strict=True
        ):
            if sent_value != stored_value:
                return f"payment_orders[{sent_order.index}].{name}"
    return "checkout_id"


def reject_siblings(
    checkout: CheckoutRequest, rejections: dict[str, FailureReason]
) -> dict[str, FailureReason]:
    """Returns the risk rejections by order id. With ALL_OR_NOTHING, orders that passed fail
    together with those that were rejected.
    """
    if checkout.partial_failure_policy is not PartialFailurePolicy.ALL_OR_NOTHING or not rejections:
        return rejections
    return {
        order.payment_order_id: rejections.get(order.payment_order_id, FailureReason.SIBLING_FAILED)
        for order in checkout.orders
    }


def normalize(checkout: CheckoutRequest) -> CheckoutRequest:
    """The checkout with its orders sorted by id."""
    return replace(
        checkout, orders=tuple(sorted(checkout.orders, key=lambda order: order.payment_order_id))
    )

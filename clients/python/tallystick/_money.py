"""Amounts in the format of the API: decimal text, never floating point."""

from __future__ import annotations

from decimal import Decimal

from tallystick.payment.v1 import payment_pb2


def amount_text(amount: str | Decimal) -> str:
    """Returns plain decimal text. Raises TypeError for types other than str and Decimal, and
    ValueError for a Decimal that is not finite.
    """
    if isinstance(amount, str):
        return amount
    if not isinstance(amount, Decimal):
        raise TypeError(
            f"amount must be a str or a Decimal, not {type(amount).__name__}: binary floating "
            "point is not exact"
        )
    if not amount.is_finite():
        raise ValueError("amount must be a finite number")
    return format(amount, "f")


def new_order(
    payment_order_id: str,
    buyer_account: str,
    seller_account: str,
    amount: str | Decimal,
    currency: str,
    *,
    platform_fee: str | Decimal = "",
) -> payment_pb2.NewPaymentOrder:
    """Returns one seller's share of a payment. `amount` is in major units; `platform_fee` ""
    means the configured fee.
    """
    return payment_pb2.NewPaymentOrder(
        payment_order_id=payment_order_id,
        buyer_account=buyer_account,
        seller_account=seller_account,
        amount=amount_text(amount),
        currency=currency,
        platform_fee=amount_text(platform_fee),
    )

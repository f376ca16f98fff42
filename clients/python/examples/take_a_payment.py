"""Creates a payment for two sellers and prints its result.

Usage: python take_a_payment.py [ADDRESS]
"""

import sys
import uuid
from decimal import Decimal

from tallystick import Client, new_order
from tallystick.payment.v1 import payment_pb2


def main(address: str) -> None:
    checkout = f"example-{uuid.uuid4().hex[:12]}"
    orders = [
        new_order(f"{checkout}-1", "buyer-ada", "seller-books", "24.90", "EUR"),
        new_order(
            f"{checkout}-2", "buyer-ada", "seller-music", Decimal("9.5"), "EUR", platform_fee="0.95"
        ),
    ]
    with Client(address) as client:
        payment = client.create_payment(
            checkout, orders, credit_card_info="tok_visa", buyer_country="GB"
        )
        print(f"{payment.checkout_id}: {payment_pb2.PaymentState.Name(payment.payment_state)}")
        for order in payment.payment_orders:
            status = payment_pb2.PaymentOrderStatus.Name(order.payment_order_status)
            print(
                f"  {order.payment_order_id}: {order.amount} {order.currency} to "
                f"{order.seller_account}, fee {order.platform_fee}: {status}"
            )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070")

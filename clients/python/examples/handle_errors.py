"""Handles rejected calls and declined payments: errors name the field to fix, declines are data.

Usage: python handle_errors.py [ADDRESS]
"""

import sys
import uuid

from tallystick import AlreadyExistsError, Client, InvalidArgumentError, new_order
from tallystick.payment.v1 import payment_pb2


def main(address: str) -> None:
    checkout = f"example-{uuid.uuid4().hex[:12]}"
    with Client(address) as client:
        try:
            client.create_payment(
                checkout,
                [new_order(f"{checkout}-1", "buyer-1", "seller-1", "1.005", "USD")],
                credit_card_info="tok_visa",
            )
        except InvalidArgumentError as error:
            print(
                f"rejected: {error.reason} in {error.field_violations[0].field}: "
                f"{error.field_violations[0].description}"
            )

        order = new_order(f"{checkout}-1", "buyer-1", "seller-1", "20.00", "USD")
        payment = client.create_payment(
            checkout, [order], credit_card_info="tok_decline:insufficient_funds"
        )
        failed_order = payment.payment_orders[0]
        print(
            f"declined: {payment_pb2.FailureReason.Name(failed_order.failure_reason)} "
            f"({failed_order.decline_code})"
        )

        repeated = client.create_payment(
            checkout, [order], credit_card_info="tok_decline:insufficient_funds"
        )
        print(
            f"the same call again: version {repeated.version}, as before: "
            f"{repeated.version == payment.version}"
        )
        try:
            client.create_payment(checkout, [order], credit_card_info="tok_visa")
        except AlreadyExistsError as error:
            print(f"another body: {error.reason}, {error.metadata['field']} differs")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070")

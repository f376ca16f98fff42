"""Registers a seller's bank account, pays the seller out, and prints each version of the payout.

Usage: python pay_a_seller.py [ADDRESS]
"""

import sys
import time
import uuid

from tallystick import Client, FailedPreconditionError, new_order
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2

_ACCOUNT = "acct_ok"  # the provider's token for the bank account, never its number


def main(address: str) -> None:
    seller = f"seller-{uuid.uuid4().hex[:12]}"
    with Client(address) as client:
        client.create_payment(
            f"{seller}-sale",
            [new_order(f"{seller}-sale-1", "buyer-ada", seller, "40.00", "EUR")],
            credit_card_info="tok_visa",
        )
        client.payment.ConfirmDelivery(
            payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=f"{seller}-sale-1")
        )
        create_destination = payout_service_pb2.CreatePayoutDestinationRequest(
            payout_destination_id=f"{seller}-bank",
            seller_account=seller,
            currency="EUR",
            bank_account_token=_ACCOUNT,
            description="savings bank",
        )
        client.payout.CreatePayoutDestination(create_destination)

        preview = wait_until_available(client, seller, "40.00")
        print(f"{seller} can be paid {preview.amount} EUR now")
        new_payout = client.create_payout(f"{seller}-1", seller, "EUR", "25.00")
        print(f"held: {new_payout.amount} {new_payout.currency}")
        for payout in client.watch_payout(new_payout.payout_id):
            print(f"version {payout.version}: {payout_pb2.PayoutState.Name(payout.payout_state)}")

        final_payout = client.wait_for_payout(new_payout.payout_id)
        repeated_payout = client.create_payout(f"{seller}-1", seller, "EUR", "25.00")
        print(
            f"the same call again pays nothing: version {repeated_payout.version}, as before: "
            f"{repeated_payout.version == final_payout.version}"
        )
        try:
            client.create_payout(f"{seller}-2", seller, "EUR", "25.00")
        except FailedPreconditionError as error:
            print(f"rejected: {error.reason}")


def wait_until_available(
    client: Client, seller: str, amount: str
) -> payout_service_pb2.PreviewPayoutResponse:
    """Waits until the destination is verified and the wallet has released the sale."""
    for _ in range(100):
        preview = client.payout.PreviewPayout(
            payout_service_pb2.PreviewPayoutRequest(seller_account=seller, currency="EUR")
        )
        if preview.amount == amount:
            return preview
        time.sleep(0.1)
    raise TimeoutError(
        "cannot be paid yet: "
        f"{[payout_pb2.PayoutBlocker.Name(shortfall.blocker) for shortfall in preview.shortfalls]}"
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070")

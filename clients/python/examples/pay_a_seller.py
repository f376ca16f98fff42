"""Registers a seller's bank account, pays the seller out, and shows every move of it. python pay_a_seller.py [ADDRESS]"""

import sys
import time
import uuid

from tallystick import Client, FailedPreconditionError, new_order
from tallystick.payout.v1 import payout_pb2, payout_service_pb2

_ACCOUNT = "ba_ok"  # the provider's token for her bank account, never its number


def main(address: str) -> None:
    seller = f"seller-{uuid.uuid4().hex[:12]}"
    with Client(address) as client:
        client.create_payment(f"{seller}-sale", [new_order(f"{seller}-sale-1", "buyer-ada", seller, "40.00", "EUR")], credit_card_info="tok_visa")
        register = payout_service_pb2.CreatePayoutDestinationRequest(
            payout_destination_id=f"{seller}-bank", seller_account=seller, currency="EUR", bank_account_token=_ACCOUNT, description="her savings bank"
        )
        client.payout.CreatePayoutDestination(register)
        wait_until_verified(client, f"{seller}-bank")

        preview = client.payout.PreviewPayout(payout_service_pb2.PreviewPayoutRequest(seller_account=seller, currency="EUR"))
        print(f"{seller} could be paid {preview.amount} EUR now")
        held = client.create_payout(f"{seller}-1", seller, "EUR", "25.00")
        print(f"held: {held.amount} {held.currency}")
        for payout in client.watch_payout(held.payout_id):
            print(f"version {payout.version}: {payout_pb2.PayoutState.Name(payout.payout_state)}")

        paid = client.wait_for_payout(held.payout_id)
        again = client.create_payout(f"{seller}-1", seller, "EUR", "25.00")
        print(f"the same call again pays nothing: version {again.version}, as before: {again.version == paid.version}")
        try:
            client.create_payout(f"{seller}-2", seller, "EUR", "25.00")
        except FailedPreconditionError as error:
            print(f"refused: {error.reason}")


def wait_until_verified(client: Client, payout_destination_id: str) -> None:
    """The provider says whether it can pay there, mostly at once."""
    request = payout_service_pb2.GetPayoutDestinationRequest(payout_destination_id=payout_destination_id)
    for _ in range(100):
        if client.payout.GetPayoutDestination(request).payout_destination.state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED:
            return
        time.sleep(0.1)
    raise TimeoutError("the destination is not verified yet")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070")

"""Watches a payment and reads its events, with asyncio.

Usage: python follow_events.py [ADDRESS]
"""

import asyncio
import sys
import uuid

from tallystick import AsyncClient, new_order
from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2


async def main(address: str) -> None:
    checkout = f"example-{uuid.uuid4().hex[:12]}"
    async with AsyncClient(address) as client:
        last = 0
        async for event in client.events():
            last = event.cursor
        order = new_order(f"{checkout}-1", "buyer-1", "seller-1", "5.00", "GBP")
        await client.create_payment(
            checkout,
            [order],
            credit_card_info="tok_delay:200",
            wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
        )
        async for payment in client.watch_payment(checkout):
            print(
                f"version {payment.version}: {payment_pb2.PaymentState.Name(payment.payment_state)}"
            )
        async with asyncio.timeout(30):
            async for event in client.events(last, follow=True):
                print(f"{event.cursor} {event_pb2.EventType.Name(event.type)} {event.event_id}")
                if (
                    event.aggregate_id == f"payments/{checkout}"
                    and event.type == event_pb2.EVENT_TYPE_PAYMENT_CLOSED
                ):
                    break


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"))

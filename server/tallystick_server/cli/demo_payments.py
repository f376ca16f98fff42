"""The steps of the demo that charge buyers, and the delivery of the goods."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tallystick import AsyncClient, new_order
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_server.cli.demo_output import (
    SELLERS,
    format_state,
    format_webhook_event,
    load_wallets,
    print_step,
    print_wallet_changes,
    require,
    show_history,
    show_ledger,
    show_wallets,
    wait_until,
)
from tallystick_server.cli.demo_provider import RunningLookAlike
from tallystick_server.cli.output import print_line

_CARD = "pm_card_visa"
_CARD_WITH_AUTHENTICATION = "pm_card_authenticationRequired"
"""Test cards of Stripe. The buyer must confirm a payment by the second one."""


async def run_first_payment(client: AsyncClient, checkout: str) -> payment_pb2.Payment:
    """Steps 1 to 5: a payment with two sellers. Returns it once it is done."""
    before = await load_wallets(client)
    orders = [
        new_order(f"{checkout}-1", "buyer-ada", SELLERS[0], "24.90", "EUR", platform_fee="1.25"),
        new_order(f"{checkout}-2", "buyer-ada", SELLERS[1], "9.50", "EUR", platform_fee="0.48"),
    ]
    await _check_out(client, checkout, orders)
    payment = await _wait_for_charge(client, checkout)
    print_step("3  The sellers' wallets, before and after")
    print_wallet_changes(before, await load_wallets(client))
    print_step("4  The ledger transactions of the payment")
    print_line("     psp/…/clearing is what the provider owes the platform; buyers/… is one of")
    print_line("     16 accounts that all buyers share, and zero after each transaction")
    await show_ledger(client, payment)
    await _repeat_check_out(client, checkout, orders, payment)
    return payment


async def run_pending_payment(
    client: AsyncClient, checkout: str, look_alike: RunningLookAlike, webhook_endpoint: str
) -> payment_pb2.Payment:
    """Step 6: a payment that waits for the buyer. A webhook reports its result; without it the
    provider would be asked only after 30 seconds. Returns the payment once it is done.
    """
    print_step("6  A payment waits for its buyer, until a webhook reports the result")
    checkout_id, order_id = f"{checkout}-waits", f"{checkout}-3"
    order = new_order(order_id, "buyer-ada", SELLERS[0], "12.00", "EUR", platform_fee="0.60")
    await client.create_payment(
        checkout_id,
        [order],
        credit_card_info=_CARD_WITH_AUTHENTICATION,
        buyer_country="GB",
        wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
    )

    await wait_until(
        lambda: _is_pending(client, checkout_id), f"the order {order_id} should be PENDING"
    )
    payment = await client.get_payment(checkout_id)
    reference = payment.payment_orders[0].provider_reference
    print_line(f"     {order_id}: {order.amount} {order.currency} by {_CARD_WITH_AUTHENTICATION}")
    await _wait_for_event(client, reference, "payment_intent.requires_action")
    print_line(f"     PENDING: the buyer must confirm {reference}, by 3-D Secure")
    await look_alike.post("/sandbox/advance", id=reference, status="succeeded")
    print_line(f"     the buyer confirms; webhooks come to {webhook_endpoint}")
    payment = await client.wait_for_payment(checkout_id, timeout=30)
    await show_history(client, payment)
    require(payment.is_payment_done, f"the payment should be done, but is {format_state(payment)}")
    await _wait_for_event(client, reference, "payment_intent.succeeded")
    print_line("     its webhook events; each made the platform ask the provider for the state:")
    for event in reversed(await _list_events(client, reference)):
        print_line(f"       {format_webhook_event(event)}")
    return payment


async def _is_pending(client: AsyncClient, checkout_id: str) -> bool:
    payment = await client.get_payment(checkout_id)
    status = payment.payment_orders[0].payment_order_status
    return status == payment_pb2.PAYMENT_ORDER_STATUS_PENDING


async def _list_events(client: AsyncClient, reference: str) -> Sequence[operator_pb2.WebhookEvent]:
    """The webhook events about a charge, newest first."""
    request = operator_pb2.ListWebhookEventsRequest(reference=reference, page_size=200)
    return (await client.payment.ListWebhookEvents(request)).webhook_events


async def _wait_for_event(client: AsyncClient, reference: str, event_type: str) -> None:
    """Waits for an event about a charge, until it and all others have been applied."""

    async def is_applied() -> bool:
        events = await _list_events(client, reference)
        applied = operator_pb2.WEBHOOK_EVENT_STATE_APPLIED
        types = {event.event_type for event in events}
        return event_type in types and all(event.state == applied for event in events)

    await wait_until(is_applied, f"the event {event_type} should be APPLIED")


async def _check_out(
    client: AsyncClient, checkout: str, orders: Sequence[payment_pb2.NewPaymentOrder]
) -> None:
    print_step(f"1  The buyer buyer-ada checks out with two sellers ({checkout})")
    for order in orders:
        print_line(
            f"     {order.payment_order_id}: {order.amount} {order.currency} to "
            f"{order.seller_account}, platform fee {order.platform_fee}"
        )
    accepted_payment = await client.create_payment(
        checkout,
        orders,
        credit_card_info=_CARD,
        buyer_country="GB",
        wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
    )
    print_line(f"     accepted and stored: the payment is {format_state(accepted_payment)}")


async def _wait_for_charge(client: AsyncClient, checkout: str) -> payment_pb2.Payment:
    print_step("2  The provider charges the buyer; wallets and ledger follow (times in UTC)")
    payment = await client.wait_for_payment(checkout, timeout=30)
    await show_history(client, payment)
    require(payment.is_payment_done, f"the payment should be done, but is {format_state(payment)}")
    print_line(
        f"     the payment is {format_state(payment)}, is_payment_done = "
        f"{str(payment.is_payment_done).lower()}"
    )
    return payment


async def _repeat_check_out(
    client: AsyncClient,
    checkout: str,
    orders: Sequence[payment_pb2.NewPaymentOrder],
    payment: payment_pb2.Payment,
) -> None:
    print_step("5  Repeating the same call charges nothing")
    repeated_payment = await client.create_payment(
        checkout, orders, credit_card_info=_CARD, buyer_country="GB"
    )
    require(
        repeated_payment.version == payment.version, "a repeated call should not change the payment"
    )
    print_line(
        f"     the response is the current payment: {format_state(repeated_payment)}, still "
        f"version {repeated_payment.version}"
    )


async def confirm_deliveries(client: AsyncClient, payments: Sequence[payment_pb2.Payment]) -> None:
    """Step 8: the goods of each order are delivered."""
    print_step("8  The goods are delivered: pending funds become available")
    for payment in payments:
        for order in payment.payment_orders:
            await client.payment.ConfirmDelivery(
                payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=order.payment_order_id)
            )
        await wait_until(
            partial(_is_released, client, payment),
            "the funds of delivered orders should be available",
        )
    await show_wallets(client)


async def _is_released(client: AsyncClient, payment: payment_pb2.Payment) -> bool:
    """Whether the funds of each order are available. The wallets may also hold funds of earlier
    runs.
    """
    for order in payment.payment_orders:
        request = wallet_service_pb2.ListWalletEntriesRequest(
            seller_account=order.seller_account, currency=order.currency, page_size=200
        )
        entries = (await client.wallet.ListWalletEntries(request)).entries
        released_source_ids = {
            entry.source_id
            for entry in entries
            if entry.kind == wallet_pb2.WALLET_ENTRY_KIND_RELEASE
        }
        if f"PAY_IN/{order.payment_order_id}" not in released_source_ids:
            return False
    return True

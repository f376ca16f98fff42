"""The step of the demo in which a buyer pays on a page of the provider."""

from __future__ import annotations

import aiohttp

from tallystick import AsyncClient, new_order
from tallystick.payment.v1 import payment_pb2
from tallystick_server.cli.demo_output import (
    SELLERS,
    format_state,
    print_step,
    require,
    wait_until,
)
from tallystick_server.cli.output import print_line

_HEADERS = {"Accept-Language": "en"}
_TIMEOUT = aiohttp.ClientTimeout(total=30)
_PAID_HEADING = "Thank you for your payment"


async def create_hosted_payment(
    client: AsyncClient, checkout: str, shop_url: str
) -> payment_pb2.Payment:
    """Step 7: a payment that is open until a buyer pays on its page. `shop_url`: where the buyer
    can go from the status page.
    """
    print_step("7  A buyer pays on a page of the provider")
    order = new_order(f"{checkout}-4", "buyer-ada", SELLERS[1], "15.00", "EUR", platform_fee="0.75")
    payment = await client.create_payment(
        f"{checkout}-page",
        [order],
        hosted_page=payment_pb2.NewHostedPage(success_url=shop_url, cancel_url=shop_url),
        buyer_country="GB",
    )
    print_line(
        f"     {order.payment_order_id}: {order.amount} {order.currency} to "
        f"{order.seller_account}, platform fee {order.platform_fee}"
    )
    require(payment.hosted_page.url, "the payment should have a page")
    print_links(payment)
    return payment


def print_links(payment: payment_pb2.Payment) -> None:
    """Where the buyer pays, and where the buyer sees the state of the payment."""
    print_line("     the page of the provider:")
    print_line(f"       {payment.hosted_page.url}")
    print_line("     the buyer's status page:")
    print_line(f"       {payment.status_url}")


async def pay_as_buyer(client: AsyncClient, payment: payment_pb2.Payment) -> payment_pb2.Payment:
    """Submits the page of the look-alike as a browser would, and follows it to the status page.
    Returns the payment, which is then done.
    """
    from tallystick_sandbox.stripe.checkout_sessions import BuyerCard

    async with aiohttp.ClientSession(
        headers={"Accept-Language": "en"}, timeout=_TIMEOUT
    ) as browser:
        print_line("     the buyer opens the page, chooses the card that is charged, and pays")
        form = {"card": BuyerCard.SUCCESS.value}
        async with browser.post(payment.hosted_page.url, data=form) as response:
            shown_url = str(response.url.with_query(None))
            require(
                shown_url == payment.status_url,
                f"the page should lead to the status page, but leads to {shown_url}",
            )

        async def is_shown_as_paid() -> bool:
            async with browser.get(payment.status_url) as response:
                return f"<h1>{_PAID_HEADING}</h1>" in await response.text()

        await wait_until(is_shown_as_paid, f'the status page should say "{_PAID_HEADING}"')
    print_line(f'     it leads to the status page, which says "{_PAID_HEADING}"')
    paid = await client.get_payment(payment.checkout_id)
    require(paid.is_payment_done, f"the payment should be done, but is {format_state(paid)}")
    print_line(f"     GetPayment says {format_state(paid)}")
    return paid

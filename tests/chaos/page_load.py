"""The callers of payments by hosted page, and their buyers, who send the pages of the look-alike by
HTTP.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, MutableMapping

import httpx

from tallystick import AsyncClient, TallystickError, new_order
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tests.chaos.calls import PaymentCalls, is_outcome_unknown

PAGE_SELLER = "seller-page"
"""Whose payments a routing rule gives to Stripe."""
SHOP = "https://shop.example"
_CARD_WEIGHTS = {
    BuyerCard.SUCCESS: 60,
    BuyerCard.DECLINED: 10,
    BuyerCard.INSUFFICIENT_FUNDS: 5,
    BuyerCard.THREE_D_SECURE: 15,
}
_MAX_VISITS = 3
"""How often a buyer sends a page at most."""
_RETRY_SECONDS = 0.3


class PageCaller:
    """Creates payments, one after the other. After the buyer's visit it cancels each, which changes
    nothing if it is paid. `calls`: where it records what it is answered.
    """

    def __init__(
        self,
        client: AsyncClient,
        number: int,
        seed: int,
        stop_event: asyncio.Event,
        calls: MutableMapping[str, PaymentCalls],
    ) -> None:
        self._client = client
        self._number = number
        self._random = random.Random(f"{seed}/page {number}")
        self._stop_event = stop_event
        self._calls = calls
        self.visit_count = 0

    async def run(self) -> None:
        count = 0
        async with httpx.AsyncClient(trust_env=False) as browser:
            while not self._stop_event.is_set():
                count += 1
                checkout_id = f"g-{self._number}-{count}"
                self._calls[checkout_id] = PaymentCalls("", 1)
                await _repeat(self._create, checkout_id)
                await self._visit(browser, checkout_id)
                await _repeat(self._cancel, checkout_id)

    async def _create(self, checkout_id: str) -> bool:
        """Whether the call was answered."""
        calls = self._calls[checkout_id]
        order = new_order(f"{checkout_id}-0", "buyer-page", PAGE_SELLER, "7.50", "EUR")
        page = payment_pb2.NewHostedPage(success_url=f"{SHOP}/thanks", cancel_url=f"{SHOP}/basket")
        try:
            calls.payments.append(
                await self._client.create_payment(checkout_id, [order], hosted_page=page)
            )
        except TallystickError as error:
            if is_outcome_unknown(error):
                return False
            calls.errors.append(f"{error.reason}: {error}")
        return True

    async def _visit(self, browser: httpx.AsyncClient, checkout_id: str) -> None:
        """The buyer sends the page, sometimes twice at once, and again after a decline."""
        url = ""
        while not url and not self._stop_event.is_set():
            try:
                payment = await self._client.get_payment(checkout_id)
            except TallystickError:
                pass
            else:
                url = payment.hosted_page.url
                if payment.payment_state != payment_pb2.PAYMENT_STATE_OPEN:
                    return
            await asyncio.sleep(_RETRY_SECONDS)
        for _ in range(self._random.randint(0, _MAX_VISITS) if url else 0):
            card = self._random.choices([*_CARD_WEIGHTS], [*_CARD_WEIGHTS.values()])[0]
            tabs = 2 if self._random.random() < 0.2 else 1
            await asyncio.gather(*(self._send(browser, url, card) for _ in range(tabs)))
            await asyncio.sleep(self._random.uniform(0, 2))

    async def _send(self, browser: httpx.AsyncClient, url: str, card: BuyerCard) -> None:
        self.visit_count += 1
        try:
            answer = await browser.post(url, data={"card": card})
            if answer.headers.get("Location", "").endswith("/authenticate"):
                result = "pass" if self._random.random() < 0.7 else "fail"
                await browser.post(f"{url}/authenticate", data={"result": result})
        except httpx.TransportError:  # the look-alike was killed, or is frozen
            pass

    async def _cancel(self, checkout_id: str) -> bool:
        """Whether the payment is cancelled, or has ended."""
        request = payment_service_pb2.CancelPaymentRequest(checkout_id=checkout_id, reason="left")
        try:
            payment = (await self._client.payment.CancelPayment(request)).payment
        except TallystickError as error:
            return error.reason in ("INVALID_STATE", "NOT_FOUND")
        self._calls[checkout_id].payments.append(payment)
        return True


async def _repeat(call: Callable[[str], Awaitable[bool]], checkout_id: str) -> None:
    """Calls until there is an answer."""
    while True:
        if await call(checkout_id):
            return
        await asyncio.sleep(_RETRY_SECONDS)

"""The load: callers create payments and payouts, through the SDK and by JSON over HTTP, and record
every answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from tallystick import AsyncClient, ClientSettings, TallystickError, new_order
from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_service_pb2
from tests.chaos.calls import PaymentCalls, PayoutCalls, is_outcome_unknown
from tests.chaos.json_client import JsonClient
from tests.chaos.page_load import PageCaller

_CARD_TOKEN_WEIGHTS = {
    "tok_visa": 60,
    "tok_delay:100": 5,
    "tok_lost_before": 6,
    "tok_lost_after": 6,
    "tok_error_before": 3,
    "tok_error_after": 3,
    "tok_unreachable": 3,
    "tok_busy": 3,
    "tok_decline": 4,
    "tok_amount_too_small": 1,
    "tok_pending:paid": 3,
    "tok_pending:declined": 1,
    "tok_other_amount": 1,
    "tok_error_stored": 0.5,
    "tok_rejected": 0.3,
}
_BANK_TOKEN_WEIGHTS = {
    "acct_ok": 50,
    "acct_slow": 8,
    "acct_returned": 6,
    "acct_returned_part": 4,
    "acct_failed": 2,
    "acct_decline:balance_insufficient": 4,
    "acct_lost_before": 6,
    "acct_lost_after": 6,
    "acct_error_after": 3,
    "acct_unreachable": 3,
    "acct_busy": 3,
    "acct_batch_lost": 4,
    "acct_paid_late": 2,
    "acct_other_amount": 1,
    "acct_rejected": 0.3,
}
"""Connected accounts of the look-alike, and bank accounts of the sandbox: the process that stores
the destination decides.
"""
_EXPECTED_REASONS = frozenset(
    {"INSUFFICIENT_FUNDS", "DESTINATION_UNUSABLE", "AMOUNT_OUT_OF_RANGE", "NOT_FOUND"}
)
"""The reasons for which a payout may be rejected: the seller has no funds, or the bank account is
not verified yet.
"""


class PaymentClient(Protocol):
    """What creates payments: the SDK, or the client of JSON."""

    async def create_payment(
        self,
        checkout_id: str,
        payment_orders: Sequence[payment_pb2.NewPaymentOrder],
        *,
        credit_card_info: str,
    ) -> payment_pb2.Payment: ...


class ChaosLoad:
    """Runs the given number of callers, each with one call in flight; a fifth of the calls are
    repeats. Every third caller calls by JSON over HTTP. An eighth as many more have hosted pages.
    """

    def __init__(
        self,
        address: str,
        payout_addresses: Sequence[str],
        http_address: str,
        seed: int,
        caller_count: int,
    ) -> None:
        self._address = address
        self._payout_addresses = payout_addresses
        self._http_address = http_address
        self._seed = seed
        self._random = random.Random(f"{seed}/load")
        self._caller_count = caller_count
        self._stop_event = asyncio.Event()
        self.payment_calls: dict[str, PaymentCalls] = {}
        self.payout_calls: dict[str, PayoutCalls] = {}
        self.call_count = self.json_call_count = self.json_retry_count = self.visit_count = 0

    async def run(self) -> None:
        settings = ClientSettings(
            deadlines={"CreatePayment": 8.0, "CreatePayout": 8.0},
            tries=4,
            jitter=self._random.random,
        )
        json_client = JsonClient(self._http_address, self._random.random)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(json_client.close)
            clients = [
                await stack.enter_async_context(
                    AsyncClient(self._address, payout=payout_address, settings=settings)
                )
                for payout_address in self._payout_addresses
            ]
            page_callers = [
                PageCaller(clients[0], number, self._seed, self._stop_event, self.payment_calls)
                for number in range(self._caller_count // 8)
            ]
            await asyncio.gather(
                *(caller.run() for caller in page_callers),
                *(
                    self._run_caller(clients[0] if number % 3 else json_client, number)
                    for number in range(self._caller_count)
                ),
                *(
                    self._run_payout_caller(clients[number % len(clients)], number)
                    for number in range(self._caller_count // 4)
                ),
            )
        self.visit_count = sum(caller.visit_count for caller in page_callers)
        self.json_call_count = json_client.call_count
        self.json_retry_count = json_client.retry_count

    def stop(self) -> None:
        self._stop_event.set()

    async def _run_caller(self, client: PaymentClient, number: int) -> None:
        count = 0
        while not self._stop_event.is_set():
            count += 1
            checkout_id = f"t-{number}-{count}"
            token = self._random.choices([*_CARD_TOKEN_WEIGHTS], [*_CARD_TOKEN_WEIGHTS.values()])[0]
            order_count = self._random.randint(1, 3)
            self.payment_calls[checkout_id] = PaymentCalls(token, order_count)
            calls = [
                self._call_payment(client, checkout_id)
                for _ in range(2 if self._random.random() < 0.2 else 1)
            ]
            if self._random.random() < 0.1:
                calls.append(self._call_and_cancel(client, checkout_id))
            await asyncio.gather(*calls)
            # A caller retries with the same id.
            if self.payment_calls[checkout_id].unknown_count and not self._stop_event.is_set():
                await self._call_payment(client, checkout_id)

    async def _call_and_cancel(self, client: PaymentClient, checkout_id: str) -> None:
        """Calls, and cancels the call while it is in flight."""
        call = asyncio.ensure_future(self._call_payment(client, checkout_id))
        await asyncio.wait((call,), timeout=self._random.uniform(0, 0.2))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        self.payment_calls[checkout_id].unknown_count += 1

    async def _run_payout_caller(self, client: AsyncClient, number: int) -> None:
        """Creates payouts one after the other; an id whose call was not answered is sent again."""
        count = 0
        while not self._stop_event.is_set():
            count += 1
            payout_id, seller = f"w-{number}-{count}", f"seller-{self._random.randrange(7)}"
            token = self._random.choices([*_BANK_TOKEN_WEIGHTS], [*_BANK_TOKEN_WEIGHTS.values()])[0]
            separator = ":" if ":" in token else "::"  # each payout has an account of its own
            token = f"{token}{separator}{payout_id}"
            calls = self.payout_calls[payout_id] = PayoutCalls()
            for _ in range(5):
                if (
                    await self._call_payout(client, payout_id, seller, token, calls)
                    or self._stop_event.is_set()
                ):
                    break
                await asyncio.sleep(0.3)

    async def _call_payout(
        self, client: AsyncClient, payout_id: str, seller: str, token: str, calls: PayoutCalls
    ) -> bool:
        """Whether the call for the payout was answered."""
        self.call_count += 2
        destination = {
            "payout_destination_id": f"{payout_id}-bank",
            "seller_account": seller,
            "currency": "EUR",
        }
        try:
            await client.payout.CreatePayoutDestination(
                payout_service_pb2.CreatePayoutDestinationRequest(
                    **destination, bank_account_token=token
                )
            )
            calls.payouts.append(
                await client.create_payout(
                    payout_id,
                    seller,
                    "EUR",
                    "1.25",
                    payout_destination_id=destination["payout_destination_id"],
                )
            )
        except TallystickError as error:
            if not is_outcome_unknown(error) and error.reason not in _EXPECTED_REASONS:
                calls.errors.append(f"{error.reason}: {error}")
            return False
        return True

    async def _call_payment(self, client: PaymentClient, checkout_id: str) -> None:
        calls = self.payment_calls[checkout_id]
        self.call_count += 1
        orders = [
            new_order(
                f"{checkout_id}-{n}",
                f"buyer-{checkout_id}",
                f"seller-{(len(checkout_id) + n) % 7}",
                f"{n + 1}.50",
                "EUR",
            )
            for n in range(calls.order_count)
        ]
        try:
            calls.payments.append(
                await client.create_payment(checkout_id, orders, credit_card_info=calls.token)
            )
        except TallystickError as error:
            if is_outcome_unknown(error):
                calls.unknown_count += 1
            else:
                calls.errors.append(f"{error.reason}: {error}")

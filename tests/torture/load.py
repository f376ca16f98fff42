"""The load: callers that pay, and pay sellers out, by the SDK, and write down what each call told them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from tallystick import AsyncClient, ClientSettings, TallystickError, new_order
from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2

_TOKENS = {
    "tok_visa": 60, "tok_delay:100": 5, "tok_lost_before": 6, "tok_lost_after": 6, "tok_error_before": 3, "tok_error_after": 3, "tok_unreachable": 3,
    "tok_busy": 3, "tok_decline": 4, "tok_refused": 1, "tok_pending:paid": 3, "tok_pending:declined": 1, "tok_other_amount": 1, "tok_error_stored": 0.5,
    "tok_rejected": 0.3,
}  # fmt: skip
_BANKS = {
    "ba_ok": 50, "ba_slow": 8, "ba_returned": 6, "ba_returned_part": 4, "ba_decline:risk": 4, "ba_lost_before": 6, "ba_lost_after": 6, "ba_error_after": 3,
    "ba_unreachable": 3, "ba_busy": 3, "ba_batch_lost": 4, "ba_paid_late": 2, "ba_other_amount": 1, "ba_rejected": 0.3,
}  # fmt: skip
_NOT_YET = frozenset({"INSUFFICIENT_FUNDS", "DESTINATION_UNUSABLE", "AMOUNT_OUT_OF_RANGE", "NOT_FOUND"})
"""What a payout may be refused for: the seller has nothing, or the bank account is not verified yet."""


@dataclass
class PaidOut:
    """What the calls for one payout were told."""

    answers: list[payout_pb2.Payout] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)


@dataclass
class Told:
    """What the calls for one checkout were told: its latest answer, and how many calls ended so."""

    token: str
    orders: int
    answers: list[payment_pb2.Payment] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    unknown: int = 0


class Load:
    """So many callers, each with one call under way at a time; a fifth of the calls are repeats."""

    def __init__(self, address: str, payout_address: str, seed: int, callers: int) -> None:
        self._address = address
        self._payout_address = payout_address
        self._random = random.Random(f"{seed}/load")
        self._callers = callers
        self._stopped = asyncio.Event()
        self.told: dict[str, Told] = {}
        self.paid_out: dict[str, PaidOut] = {}
        self.calls = 0

    async def run(self) -> None:
        settings = ClientSettings(deadlines={"CreatePayment": 8.0, "CreatePayout": 8.0}, attempts=4, jitter=self._random.random)
        async with AsyncClient(self._address, payout=self._payout_address, settings=settings) as client:
            lives = [self._caller(client, number) for number in range(self._callers)]
            await asyncio.gather(*lives, *(self._teller(client, number) for number in range(self._callers // 4)))

    def stop(self) -> None:
        self._stopped.set()

    async def _caller(self, client: AsyncClient, number: int) -> None:
        count = 0
        while not self._stopped.is_set():
            count += 1
            checkout = f"t-{number}-{count}"
            token = self._random.choices([*_TOKENS], [*_TOKENS.values()])[0]
            orders = self._random.randint(1, 3)
            self.told[checkout] = Told(token, orders)
            calls = [self._call(client, checkout) for _ in range(2 if self._random.random() < 0.2 else 1)]
            if self._random.random() < 0.1:
                calls.append(self._leave(client, checkout))
            await asyncio.gather(*calls)
            if self.told[checkout].unknown and not self._stopped.is_set():  # as any caller would: the same id again
                await self._call(client, checkout)

    async def _leave(self, client: AsyncClient, checkout: str) -> None:
        """Calls, and goes away in the middle of it."""
        call = asyncio.ensure_future(self._call(client, checkout))
        await asyncio.wait((call,), timeout=self._random.uniform(0, 0.2))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        self.told[checkout].unknown += 1

    async def _teller(self, client: AsyncClient, number: int) -> None:
        """Pays sellers out, one after the other; an id whose call was not answered comes again."""
        count = 0
        while not self._stopped.is_set():
            count += 1
            payout, seller = f"w-{number}-{count}", f"seller-{self._random.randrange(7)}"
            token = self._random.choices([*_BANKS], [*_BANKS.values()])[0]
            told = self.paid_out[payout] = PaidOut()
            for _ in range(5):
                if await self._pay_out(client, payout, seller, token, told) or self._stopped.is_set():
                    break
                await asyncio.sleep(0.3)

    async def _pay_out(self, client: AsyncClient, payout: str, seller: str, token: str, told: PaidOut) -> bool:
        """Whether the payout was answered for."""
        self.calls += 2
        bank = {"payout_destination_id": f"{payout}-bank", "seller_account": seller, "currency": "EUR"}
        try:
            await client.payout.CreatePayoutDestination(payout_service_pb2.CreatePayoutDestinationRequest(**bank, bank_account_token=token))
            told.answers.append(await client.create_payout(payout, seller, "EUR", "1.25", payout_destination_id=bank["payout_destination_id"]))
        except TallystickError as error:
            if not _is_unknown(error) and error.reason not in _NOT_YET:
                told.refusals.append(f"{error.reason}: {error}")
            return False
        return True

    async def _call(self, client: AsyncClient, checkout: str) -> None:
        told = self.told[checkout]
        self.calls += 1
        orders = [
            new_order(f"{checkout}-{n}", f"buyer-{checkout}", f"seller-{(len(checkout) + n) % 7}", f"{n + 1}.50", "EUR") for n in range(told.orders)
        ]
        try:
            told.answers.append(await client.create_payment(checkout, orders, credit_card_info=told.token))
        except TallystickError as error:
            if _is_unknown(error):
                told.unknown += 1
            else:
                told.refusals.append(f"{error.reason}: {error}")


def _is_unknown(error: TallystickError) -> bool:
    """Whether a call may have done what it was to do, or may come again."""
    return error.retry_after is not None or not error.reason or error.reason in ("INTERNAL", "DEADLINE_EXCEEDED")

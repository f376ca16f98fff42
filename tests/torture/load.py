"""The load: callers that pay by the SDK, and write down what each call told them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from tallystick import AsyncClient, ClientSettings, TallystickError, new_order
from tallystick.payment.v1 import payment_pb2

_TOKENS = {
    "tok_visa": 60, "tok_delay:100": 5, "tok_lost_before": 6, "tok_lost_after": 6, "tok_error_before": 3, "tok_error_after": 3, "tok_unreachable": 3,
    "tok_busy": 3, "tok_decline": 4, "tok_refused": 1, "tok_pending:paid": 3, "tok_pending:declined": 1, "tok_other_amount": 1, "tok_error_stored": 0.5,
    "tok_rejected": 0.3,
}  # fmt: skip


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

    def __init__(self, address: str, seed: int, callers: int) -> None:
        self._address = address
        self._random = random.Random(f"{seed}/load")
        self._callers = callers
        self._stopped = asyncio.Event()
        self.told: dict[str, Told] = {}
        self.calls = 0

    async def run(self) -> None:
        settings = ClientSettings(deadlines={"CreatePayment": 8.0}, attempts=4, jitter=self._random.random)
        async with AsyncClient(self._address, settings=settings) as client:
            await asyncio.gather(*(self._caller(client, number) for number in range(self._callers)))

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
            await asyncio.gather(*(self._call(client, checkout) for _ in range(2 if self._random.random() < 0.2 else 1)))
            if self.told[checkout].unknown and not self._stopped.is_set():  # as any caller would: the same id again
                await self._call(client, checkout)

    async def _call(self, client: AsyncClient, checkout: str) -> None:
        told = self.told[checkout]
        self.calls += 1
        orders = [
            new_order(f"{checkout}-{n}", f"buyer-{checkout}", f"seller-{(len(checkout) + n) % 7}", f"{n + 1}.50", "EUR") for n in range(told.orders)
        ]
        try:
            told.answers.append(await client.create_payment(checkout, orders, credit_card_info=told.token))
        except TallystickError as error:
            if error.retry_after is not None or not error.reason or error.reason in ("INTERNAL", "DEADLINE_EXCEEDED"):
                told.unknown += 1
            else:
                told.refusals.append(f"{error.reason}: {error}")

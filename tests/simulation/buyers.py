"""Buyers who pay on pages of the Stripe look-alike: what each does there, and when they return."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tallystick import AsyncClient
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tests.simulation.call_until_success import call_until_success
from tests.simulation.cluster import Cluster
from tests.simulation.network import ConnectionBroken, Unreachable
from tests.simulation.seeded_random import SeededRandom
from tests.simulation.stripe import PageAct
from tests.simulation.world import World

_SUCCESS, _AUTHENTICATION = BuyerCard.SUCCESS, BuyerCard.THREE_D_SECURE
_STEP_WEIGHTS: dict[tuple[tuple[PageAct, ...], ...], float] = {
    ((_SUCCESS,),): 6.0,
    ((BuyerCard.DECLINED,), (_SUCCESS,)): 2.0,
    ((BuyerCard.INSUFFICIENT_FUNDS,),): 1.0,
    ((_AUTHENTICATION,), (True,)): 2.0,
    ((_AUTHENTICATION,), (False,), (_SUCCESS,)): 1.0,
    ((_AUTHENTICATION,), (False,)): 1.0,
    ((_AUTHENTICATION,),): 1.0,
    ((BuyerCard.DELAYED_SUCCESS,),): 2.0,
    ((BuyerCard.DELAYED_FAILURE,),): 1.5,
    (): 2.0,  # they leave
    ((None,),): 1.0,
    ((_SUCCESS,), (_SUCCESS,)): 1.0,
    # in two tabs at once
    ((_SUCCESS, _SUCCESS),): 1.0,
    ((_SUCCESS, BuyerCard.DELAYED_SUCCESS),): 1.0,
    ((_AUTHENTICATION, _SUCCESS), (True,)): 1.0,
    ((_SUCCESS, None),): 1.0,
}
_MAX_TRIES = 3
"""How many times a buyer sends a page whose answer does not come."""
_TIMEOUT_SECONDS = 5.0
_MAX_POLLS = 60
"""How many times a caller asks for a page that is not registered yet."""


@dataclass(frozen=True)
class Buyer:
    """What a buyer does once they have the page. `steps`: in each, what is sent at the same time;
    `return_seconds`: when they return after the last step, None: never; `cancel_seconds`: when
    the caller cancels, if it does.
    """

    steps: tuple[tuple[PageAct, ...], ...]
    is_late: bool
    """Whether `start_seconds` and `cancel_seconds` count from the expiry of the page."""
    start_seconds: float
    pause_seconds: float
    return_seconds: float | None
    cancel_seconds: float


def draw_buyer(seeded_random: SeededRandom, number: int) -> Buyer:
    """The buyer of a payment. Some act just as the page expires, and some as it is cancelled."""

    def key(name: str) -> str:
        return f"buyer {number} {name}"

    is_late = seeded_random.number(key("late")) < 0.25
    start_seconds = seeded_random.uniform(key("starts"), *((-1, 4) if is_late else (0.2, 8)))
    return Buyer(
        steps=seeded_random.weighted_choice(key("steps"), _STEP_WEIGHTS),
        is_late=is_late,
        start_seconds=start_seconds,
        pause_seconds=seeded_random.uniform(key("pauses"), 0.1, 2),
        return_seconds=seeded_random.choice(key("returns"), (None, 0.0, 0.3, 5.0, 30.0)),
        cancel_seconds=start_seconds + seeded_random.uniform(key("cancels"), -0.7, 0.1),
    )


class BuyerVisit:
    """The visit of a buyer to the page of a payment."""

    def __init__(
        self,
        world: World,
        cluster: Cluster,
        client: AsyncClient,
        checkout_id: str,
        buyer: Buyer,
        violations: list[str],
        record: Callable[[payment_pb2.Payment], None],
    ) -> None:
        """`record` gets each payment that the caller reads until it has the page."""
        self._world = world
        self._cluster = cluster
        self._client = client
        self._checkout_id = checkout_id
        self._buyer = buyer
        self._violations = violations
        self._record = record
        self._payment = payment_pb2.Payment()
        """As the caller has read it last."""
        self.statuses: list[payment_pb2.BuyerStatus] = []
        """What the buyer has seen on their return."""

    async def wait_for_page(self) -> str:
        """The id of the session, once it is registered; "": it never is."""
        for _ in range(_MAX_POLLS):
            payment = await call_until_success(
                lambda: self._client.get_payment(self._checkout_id),
                self._checkout_id,
                self._violations,
            )
            if payment is None:
                return ""
            self._payment = payment
            self._record(payment)
            if payment.hosted_page.url or payment.payment_state != payment_pb2.PAYMENT_STATE_OPEN:
                break
            await asyncio.sleep(1.0)
        return self._payment.hosted_page.url.rpartition("/")[2]

    async def wait_to_cancel(self) -> None:
        """Waits until the caller cancels, which is about when the buyer acts."""
        await asyncio.sleep(self._lateness() + self._buyer.cancel_seconds)

    def _lateness(self) -> float:
        """Seconds until the time from which the buyer's seconds count."""
        payment = self._payment
        if not (self._buyer.is_late and payment.checkout_id):
            return 0.0
        lifetime = payment.expire_time.ToNanoseconds() - payment.create_time.ToNanoseconds()
        return lifetime / 1e9

    async def act(self, session_id: str) -> None:
        """The buyer does all their steps, and returns."""
        await asyncio.sleep(self._lateness() + self._buyer.start_seconds)
        for acts in self._buyer.steps:
            await asyncio.gather(*(self._send(session_id, act) for act in acts))
            await asyncio.sleep(self._buyer.pause_seconds)
        if self._buyer.return_seconds is not None:
            await asyncio.sleep(self._buyer.return_seconds)
            await self._return()

    async def _send(self, session_id: str, act: PageAct) -> None:
        for _ in range(_MAX_TRIES):
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    await self._cluster.act_on_page(session_id, act)
            except (Unreachable, ConnectionBroken, TimeoutError):
                await asyncio.sleep(self._buyer.pause_seconds)
            else:
                return

    async def _return(self) -> None:
        """The status page asks for the payment, and has it looked up."""
        client = self._cluster.client(f"the buyer of {self._checkout_id}", "service")
        token = self._payment.status_url.rpartition("/")[2]
        request = payment_service_pb2.RefreshBuyerStatusRequest(status_token=token, look_up=True)
        response = await call_until_success(
            lambda: client.payment.RefreshBuyerStatus(request), self._checkout_id, self._violations
        )
        if response is not None:
            self.statuses.append(response.buyer_status)

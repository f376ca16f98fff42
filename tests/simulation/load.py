"""What callers do in a run: they pay, repeat themselves, change their mind, and write down what they were told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import AsyncClient, TallystickError, new_order
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.money import format_amount

from .chance import Chance
from .cluster import TEAMS, Cluster, other_team, seller_of
from .database import BEGINNING
from .insist import insist, refused
from .loop import Node
from .world import World

_CURRENCIES = {"EUR": 6.0, "JPY": 1.0, "KWD": 1.0}
_TOKENS = {
    "tok_visa": 40.0, "tok_delay:200": 4.0, "tok_delay:2500": 1.0, "tok_delay:4000": 1.5, "tok_lost_before": 4.0, "tok_lost_after": 4.0, "tok_lost_after:3": 3.0, "tok_lost_after:20": 1.0,
    "tok_error_before": 3.0, "tok_error_before:6": 2.0, "tok_lost_before:8": 1.5, "tok_busy:20": 1.0, "tok_error_after": 3.0, "tok_error_stored": 1.0, "tok_unreachable": 3.0, "tok_unreachable:8": 2.0, "tok_busy:2": 3.0,
    "tok_decline": 4.0, "tok_decline:insufficient_funds": 2.0, "tok_refused": 1.0, "tok_rejected": 1.0, "tok_other_amount": 2.0,
    "tok_pending:paid": 3.0, "tok_pending:declined": 2.0, "tok_pending:action": 2.0, "tok_pending:review-action-review-paid": 1.5, "tok_pending:action-review-declined": 1.0,
}  # fmt: skip


class Then(StrEnum):
    """What a caller does once it knows that its payment is stored."""

    NOTHING = "nothing"
    REPEAT = "repeat"
    OTHER_VALUES = "other_values"
    """The same id with another amount: to be refused."""
    OTHER_CALLER = "other_caller"
    """Another team uses the id: to be refused, and to see nothing."""
    CANCEL = "cancel"
    WATCH = "watch"


_THEN = {Then.NOTHING: 50.0, Then.REPEAT: 15.0, Then.OTHER_VALUES: 8.0, Then.OTHER_CALLER: 5.0, Then.CANCEL: 12.0, Then.WATCH: 10.0}
_BURST = 8


@dataclass(frozen=True)
class Wish:
    """A payment that somebody wants to make. Amounts and fees in minor units by order; a fee of None: as configured."""

    number: int
    team: str
    start: float
    token: str
    currency: str
    together: bool
    all_or_nothing: bool
    sellers: tuple[str, ...]
    amounts: tuple[int, ...]
    fees: tuple[int | None, ...]
    expires_in: float | None
    at_once: int
    """How many calls make it at the same time."""
    patient: bool
    """Waits for the result, not only for acceptance."""
    then: Then
    delivers: int
    """Confirms at its end that so many of its orders were delivered, those that were paid."""

    @property
    def checkout_id(self) -> str:
        return f"p{self.number}"

    def order_id(self, place: int) -> str:
        return f"p{self.number}-{place}"

    def charge_id(self, place: int) -> str:
        return f"c-{self.checkout_id}" if self.together else f"o-{self.order_id(place)}"


def wish(chance: Chance, number: int, span: float) -> Wish:
    """The payment of a number, started within so many seconds. It depends on nothing but seed and number."""

    def key(name: str) -> str:
        return f"wish {number} {name}"

    orders = chance.weighed(key("orders"), {1: 6.0, 2: 3.0, 3: 2.0, 12: 0.3})
    amounts = tuple(int(10 ** chance.between(key(f"amount {place}"), 1, 6)) for place in range(orders))
    team = chance.one_of(key("team"), TEAMS)
    sellers = tuple(chance.weighed(key(f"seller {place}"), {"hot": 5.0, "a": 1.0, "b": 1.0, "c": 1.0, "blocked": 0.15}) for place in range(orders))
    together = chance.number(key("together")) < 0.3
    fees = tuple(amount // 20 if chance.number(key(f"fee {place}")) < 0.3 else None for place, amount in enumerate(amounts))
    return Wish(
        number=number,
        team=team,
        start=_start(chance, number, span),
        token=chance.weighed(key("token"), _TOKENS),
        currency=chance.weighed(key("currency"), _CURRENCIES),
        together=together,
        all_or_nothing=together and chance.number(key("all")) < 0.4,
        sellers=tuple(seller_of(team, seller) for seller in sellers),
        amounts=amounts,
        fees=fees,
        expires_in=chance.between(key("expires"), 1, 12) if chance.number(key("whether it expires")) < 0.15 else None,
        at_once=chance.weighed(key("at once"), {1: 8.0, 2: 1.0, 4: 0.5}),
        patient=chance.number(key("patient")) < 0.7,
        then=chance.weighed(key("then"), _THEN),
        delivers=orders if chance.number(key("delivers")) < 0.5 else 0,
    )


def _start(chance: Chance, number: int, span: float) -> float:
    """Most come in bursts, so that batches form; the others by themselves."""
    burst = chance.number(f"burst {number // _BURST}") * span
    apart = chance.between(f"apart {number}", 0, span)
    return burst + apart / 1000 if chance.number(f"whether apart {number}") < 0.7 else apart


@dataclass
class Told:
    """What the calls for one wish were told, in the order in which answers came."""

    wish: Wish
    answers: list[payment_pb2.Payment] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Answers that must not be."""
    cancelled: bool = False
    """A cancellation was asked for."""
    delivered: set[str] = field(default_factory=set)
    """Orders whose delivery was confirmed, and was told to be."""


class Load:
    """Callers, each with a node of its own; a call that does not get through comes again."""

    def __init__(self, world: World, cluster: Cluster, wishes: list[Wish]) -> None:
        self._world = world
        self._cluster = cluster
        self._open = len(wishes)
        self._tasks: list[asyncio.Task[None]] = []
        self.told = {one.checkout_id: Told(one) for one in wishes}

    def start(self) -> None:
        for told in self.told.values():
            node = Node(f"caller-{told.wish.number}")
            self._world.loop.deliver(node, told.wish.start, self._begin, told)

    @property
    def idle(self) -> bool:
        """Whether every caller has what it wants, or has given up."""
        return self._open == 0

    def _begin(self, told: Told) -> None:
        self._tasks.append(asyncio.ensure_future(self._live(told)))

    async def _live(self, told: Told) -> None:
        wish = told.wish
        client = self._cluster.client(wish.checkout_id, wish.team)
        request = _request(wish, self._world.loop.now)
        await asyncio.gather(*(self._pay(client, request, told) for _ in range(wish.at_once)))
        if told.answers:
            await self._go_on(client, request, told)
            if wish.delivers:
                await self._deliver(client, told)
        self._open -= 1

    async def _pay(self, client: AsyncClient, request: payment_service_pb2.CreatePaymentRequest, told: Told) -> None:
        answer = await self._insist(lambda: client.payment.CreatePayment(request), told)
        if answer is not None:
            told.answers.append(answer.payment)

    async def _insist(self, call: Any, told: Told, allowed: frozenset[str] = frozenset()) -> Any:
        return await insist(call, told.wish.checkout_id, told.wrong, allowed)

    async def _refused(self, call: Any, told: Told, reason: str) -> None:
        await refused(call, told.wish.checkout_id, told.wrong, reason)

    async def _go_on(self, client: AsyncClient, request: payment_service_pb2.CreatePaymentRequest, told: Told) -> None:
        wish = told.wish
        match wish.then:
            case Then.REPEAT:
                await self._pay(client, request, told)
            case Then.OTHER_VALUES:
                other = payment_service_pb2.CreatePaymentRequest.FromString(request.SerializeToString())
                other.payment_orders[0].amount = format_amount(wish.amounts[0] + 1, wish.currency)
                await self._refused(lambda: client.payment.CreatePayment(other), told, "KEY_REUSED")
            case Then.OTHER_CALLER:
                thief = self._cluster.client(f"the thief of {wish.checkout_id}", other_team(wish.team))
                await self._refused(lambda: thief.payment.CreatePayment(request), told, "ID_TAKEN")
                await self._refused(lambda: thief.get_payment(wish.checkout_id), told, "NOT_FOUND")
                await self._refused(lambda: thief.payment.CreatePayment(_stolen(request)), told, "ID_TAKEN")
            case Then.CANCEL:
                told.cancelled = True
                cancel = payment_service_pb2.CancelPaymentRequest(checkout_id=wish.checkout_id, reason="changed my mind")
                answer = await self._insist(lambda: client.payment.CancelPayment(cancel), told, frozenset({"STATE_FORBIDS"}))
                if answer is not None:
                    told.answers.append(answer.payment)
            case Then.WATCH:
                await self._watch(client, told)
            case Then.NOTHING:
                pass

    async def _deliver(self, client: AsyncClient, told: Told) -> None:
        for place in range(told.wish.delivers):
            confirm = payment_service_pb2.ConfirmDeliveryRequest(payment_order_id=told.wish.order_id(place))
            answer = await self._insist(lambda confirm=confirm: client.payment.ConfirmDelivery(confirm), told, frozenset({"STATE_FORBIDS"}))
            if answer is not None:
                told.delivered.add(answer.payment_order.payment_order_id)
                if not answer.payment_order.HasField("delivery_confirmed_time"):
                    told.wrong.append(f"order {told.wish.order_id(place)} was told to be delivered, and when was not")

    async def _watch(self, client: AsyncClient, told: Told) -> None:
        last = 0
        try:
            async with asyncio.timeout(30):
                async for payment in client.watch_payment(told.wish.checkout_id):
                    if payment.version <= last:
                        told.wrong.append(f"{told.wish.checkout_id}: version {payment.version} was sent after {last}")
                    last = payment.version
                    told.answers.append(payment)
            if told.answers[-1].payment_state == payment_pb2.PAYMENT_STATE_OPEN:
                told.wrong.append(f"{told.wish.checkout_id}: watching it ended while it is open")
        except TimeoutError:
            pass
        except TallystickError as error:
            if not error.may_retry:
                told.wrong.append(f"{told.wish.checkout_id}: watching it failed with {error}")


def _request(wish: Wish, now: float) -> payment_service_pb2.CreatePaymentRequest:
    request = payment_service_pb2.CreatePaymentRequest(
        checkout_id=wish.checkout_id,
        credit_card_info=wish.token,
        wait_for=payment_service_pb2.WAIT_FOR_RESULT if wish.patient else payment_service_pb2.WAIT_FOR_ACCEPTANCE,
        charging=payment_pb2.CHARGING_TOGETHER if wish.together else payment_pb2.CHARGING_PER_ORDER,
        on_partial=payment_pb2.ON_PARTIAL_ALL_OR_NOTHING if wish.all_or_nothing else payment_pb2.ON_PARTIAL_KEEP,
        payment_orders=[
            new_order(
                wish.order_id(place),
                f"buyer-{wish.number % 11}",
                seller,
                format_amount(amount, wish.currency),
                wish.currency,
                platform_fee="" if fee is None else format_amount(fee, wish.currency),
            )
            for place, (seller, amount, fee) in enumerate(zip(wish.sellers, wish.amounts, wish.fees, strict=True))
        ],
    )
    if wish.expires_in is not None:
        expiry = Timestamp()
        expiry.FromDatetime(BEGINNING + timedelta(seconds=round(now + wish.expires_in, 3)))
        request.expire_time.CopyFrom(expiry)
    return request


def _stolen(request: payment_service_pb2.CreatePaymentRequest) -> payment_service_pb2.CreatePaymentRequest:
    """The same orders under ids of the thief's own, which name another owner's sellers."""
    other = payment_service_pb2.CreatePaymentRequest.FromString(request.SerializeToString())
    other.checkout_id += "-stolen"
    for order in other.payment_orders:
        order.payment_order_id += "-stolen"
    return other

"""What callers do in a run about payouts: they register banks, pay sellers out, repeat themselves, change their mind; and a schedule has its cut-off."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tallystick import AsyncClient
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick_core.money import format_amount

from .chance import Chance
from .cluster import OPERATOR, TEAMS, Cluster, other_team, seller_of
from .insist import insist, refused
from .loop import Node
from .world import World

FEES = {"EUR": 10}
"""Of each payout once the schedule is set, in minor units."""
_TOKENS = {
    "ba_ok": 30.0, "ba_slow": 6.0, "ba_slow:10": 3.0, "ba_returned": 5.0, "ba_returned:8": 2.0, "ba_returned_part": 3.0, "ba_returned_closed": 3.0,
    "ba_decline:no_account": 3.0, "ba_decline:risk": 3.0, "ba_refused": 1.0, "ba_rejected": 1.0, "ba_lost_before": 3.0, "ba_lost_after": 4.0, "ba_lost_after:3": 2.0,
    "ba_error_before": 2.0, "ba_error_after": 2.0, "ba_error_stored": 1.0, "ba_unreachable": 2.0, "ba_unreachable:8": 1.0, "ba_busy:2": 2.0, "ba_other_amount": 5.0,
    "ba_paid_late": 5.0, "ba_twice": 5.0, "ba_batch_lost": 2.0, "ba_delay:2500": 1.0, "ba_review": 2.0, "ba_unverified": 1.0,
}  # fmt: skip
_SELLERS = {"hot": 6.0, "a": 2.0, "b": 1.0, "c": 1.0}
_TRIES = 6
"""How often a caller asks for a payout that the seller's money does not allow yet."""
_LOOKS = 60


class Then(StrEnum):
    """What a caller does once it knows that its payout is stored."""

    NOTHING = "nothing"
    REPEAT = "repeat"
    OTHER_VALUES = "other_values"
    OTHER_CALLER = "other_caller"
    CANCEL = "cancel"
    WATCH = "watch"
    DISABLE = "disable"
    """It ends the use of the destination."""


_THEN = {
    Then.NOTHING: 45.0,
    Then.REPEAT: 15.0,
    Then.OTHER_VALUES: 8.0,
    Then.OTHER_CALLER: 5.0,
    Then.CANCEL: 12.0,
    Then.WATCH: 10.0,
    Then.DISABLE: 5.0,
}


@dataclass(frozen=True)
class Withdrawal:
    """A payout that somebody wants. `amount` in minor units, None: whatever can be paid; `approves`: what the second person says, if one is asked."""

    number: int
    team: str
    start: float
    token: str
    currency: str
    seller: str
    amount: int | None
    at_once: int
    approves: bool
    then: Then
    robbed: bool = False
    """Another owner tries to get at the seller's money."""

    @property
    def payout_id(self) -> str:
        return f"w{self.number}"

    @property
    def destination_id(self) -> str:
        return f"w{self.number}-bank"


def withdrawal(chance: Chance, number: int, span: float) -> Withdrawal:
    """The payout of a number, begun within so many seconds. It depends on nothing but seed and number."""

    def key(name: str) -> str:
        return f"withdrawal {number} {name}"

    team = chance.one_of(key("team"), TEAMS)
    return Withdrawal(
        number=number,
        team=team,
        start=chance.between(key("start"), span / 4, span + 3),
        token=chance.weighed(key("token"), _TOKENS),
        currency=chance.weighed(key("currency"), {"EUR": 6.0, "JPY": 1.0, "KWD": 1.0}),
        seller=seller_of(team, chance.weighed(key("seller"), _SELLERS)),
        amount=int(10 ** chance.between(key("amount"), 1, 5.5)) if chance.number(key("whether all")) < 0.6 else None,
        at_once=chance.weighed(key("at once"), {1: 8.0, 2: 1.0, 4: 0.5}),
        approves=chance.number(key("approves")) < 0.7,
        then=chance.weighed(key("then"), _THEN),
        robbed=chance.number(key("robbed")) < 0.3,
    )


@dataclass
class PaidOut:
    """What the calls for one payout were told, in the order in which answers came."""

    wish: Withdrawal
    answers: list[payout_pb2.Payout] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    cancelled: bool = False
    disabled: bool = False
    registered: bool = False


class PayoutLoad:
    """Callers, each with a node of its own, and the operator who sets the schedule and decides."""

    def __init__(self, world: World, cluster: Cluster, wishes: list[Withdrawal]) -> None:
        self._world = world
        self._cluster = cluster
        self._open = len(wishes)
        self._tasks: list[asyncio.Task[None]] = []
        self.wrong: list[str] = []
        self.told = {one.payout_id: PaidOut(one) for one in wishes}

    def start(self, *, schedule: bool) -> None:
        """Begins all of it; `schedule`: with a cut-off some seconds from now."""
        if schedule:
            self._open += 1
            self._world.loop.deliver(Node("caller-schedule"), 0.3, self._begin, self._schedule())
        for told in self.told.values():
            self._world.loop.deliver(Node(f"caller-w{told.wish.number}"), told.wish.start, self._begin, self._live(told))

    @property
    def idle(self) -> bool:
        return self._open == 0

    def _begin(self, life: Any) -> None:
        self._tasks.append(asyncio.ensure_future(life))

    async def _schedule(self) -> None:
        operator = self._cluster.client("the schedule's operator", OPERATOR)
        request = payout_service_pb2.SetPayoutScheduleRequest(
            currency="EUR",
            interval=payout_pb2.PAYOUT_INTERVAL_DAILY,
            cut_off="00:01",
            time_zone="UTC",
            minimum_amount="0.20",
            fee=format_amount(FEES["EUR"], "EUR"),
        )
        await insist(lambda: operator.payout.SetPayoutSchedule(request), "the schedule", self.wrong)
        self._open -= 1

    async def _live(self, told: PaidOut) -> None:
        wish = told.wish
        client = self._cluster.client(wish.payout_id, wish.team)
        if await self._registered(client, told):
            request = _request(wish)
            if wish.robbed:
                await self._rob(told)
            await asyncio.gather(*(self._pay(client, request, told) for _ in range(wish.at_once)))
            if told.answers:
                await self._decide(client, told)
                await self._go_on(client, request, told)
        self._open -= 1

    async def _registered(self, client: AsyncClient, told: PaidOut) -> bool:
        """Whether the destination can be paid to, as its provider says."""
        wish = told.wish
        new = payout_service_pb2.CreatePayoutDestinationRequest(
            payout_destination_id=wish.destination_id, seller_account=wish.seller, currency=wish.currency, bank_account_token=wish.token
        )
        if await insist(lambda: client.payout.CreatePayoutDestination(new), wish.destination_id, told.wrong) is None:
            return False
        told.registered = True
        get = payout_service_pb2.GetPayoutDestinationRequest(payout_destination_id=wish.destination_id)
        for _ in range(_LOOKS):
            answer = await insist(lambda: client.payout.GetPayoutDestination(get), wish.destination_id, told.wrong)
            if answer is None or answer.payout_destination.state != payout_pb2.PAYOUT_DESTINATION_STATE_PENDING_VERIFICATION:
                return answer is not None and bool(answer.payout_destination.state == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED)
            await asyncio.sleep(0.5)
        return False

    async def _rob(self, told: PaidOut) -> None:
        """Another owner's calls about a seller that is not its own: each has to be refused."""
        wish, name = told.wish, f"{told.wish.payout_id} robbed"
        thief = self._cluster.client(f"the robber of {wish.payout_id}", other_team(wish.team))
        bank = payout_service_pb2.CreatePayoutDestinationRequest(
            payout_destination_id=f"{wish.payout_id}-robber", seller_account=wish.seller, currency=wish.currency, bank_account_token="ba_ok"
        )
        pay = payout_service_pb2.CreatePayoutRequest(payout_id=f"{wish.payout_id}-robbed", seller_account=wish.seller, currency=wish.currency)
        preview = payout_service_pb2.PreviewPayoutRequest(seller_account=wish.seller, currency=wish.currency)
        schedule = payout_service_pb2.SetPayoutScheduleRequest(
            seller_account=wish.seller, currency=wish.currency, interval=payout_pb2.PAYOUT_INTERVAL_MANUAL
        )
        await refused(lambda: thief.payout.CreatePayoutDestination(bank), name, told.wrong, "ID_TAKEN")
        await refused(lambda: thief.payout.PreviewPayout(preview), name, told.wrong, "NOT_FOUND")
        await refused(lambda: thief.payout.SetPayoutSchedule(schedule), name, told.wrong, "NOT_FOUND")
        await refused(lambda: thief.payout.CreatePayout(pay), name, told.wrong, "NOT_FOUND")

    async def _pay(self, client: AsyncClient, request: payout_service_pb2.CreatePayoutRequest, told: PaidOut) -> None:
        allowed = frozenset({"INSUFFICIENT_FUNDS", "DESTINATION_UNUSABLE", "AMOUNT_OUT_OF_RANGE"})
        for _ in range(_TRIES):
            answer = await insist(lambda: client.payout.CreatePayout(request), told.wish.payout_id, told.wrong, allowed)
            if answer is not None:
                told.answers.append(answer.payout)
                return
            await asyncio.sleep(1.5)

    async def _decide(self, client: AsyncClient, told: PaidOut) -> None:
        """The second person's word, where the payout waits for it."""
        wish = told.wish
        payout = told.answers[-1]
        for _ in range(_LOOKS):
            if payout.payout_state != payout_pb2.PAYOUT_STATE_CREATED:
                break
            await asyncio.sleep(0.5)
            payout = await insist(lambda: client.get_payout(wish.payout_id), wish.payout_id, told.wrong)
            if payout is None:
                return
        if payout.payout_state != payout_pb2.PAYOUT_STATE_AWAITING_APPROVAL or wish.then is Then.CANCEL:
            return
        boss = self._cluster.client(f"the boss of {wish.payout_id}", OPERATOR)
        values = {"payout_id": wish.payout_id, "reason": "as I see it"}
        if wish.approves:
            approve = payout_service_pb2.ApprovePayoutRequest(**values)
            answer = await insist(lambda: boss.payout.ApprovePayout(approve), wish.payout_id, told.wrong, frozenset({"STATE_FORBIDS"}))
        else:
            reject = payout_service_pb2.RejectPayoutRequest(**values)
            answer = await insist(lambda: boss.payout.RejectPayout(reject), wish.payout_id, told.wrong, frozenset({"STATE_FORBIDS"}))
        if answer is not None:
            told.answers.append(answer.payout)

    async def _go_on(self, client: AsyncClient, request: payout_service_pb2.CreatePayoutRequest, told: PaidOut) -> None:
        wish, name = told.wish, told.wish.payout_id
        match wish.then:
            case Then.REPEAT:
                answer = await insist(lambda: client.payout.CreatePayout(request), name, told.wrong)
                if answer is not None:
                    told.answers.append(answer.payout)
            case Then.OTHER_VALUES:
                other = payout_service_pb2.CreatePayoutRequest.FromString(request.SerializeToString())
                other.amount = format_amount((wish.amount or 0) + 1, wish.currency)
                await refused(lambda: client.payout.CreatePayout(other), name, told.wrong, "KEY_REUSED")
            case Then.OTHER_CALLER:
                thief = self._cluster.client(f"the thief of {name}", other_team(wish.team))
                await refused(lambda: thief.payout.CreatePayout(request), name, told.wrong, "ID_TAKEN")
                await refused(lambda: thief.get_payout(name), name, told.wrong, "NOT_FOUND")
            case Then.CANCEL:
                told.cancelled = True
                cancel = payout_service_pb2.CancelPayoutRequest(payout_id=name, reason="changed my mind")
                answer = await insist(lambda: client.payout.CancelPayout(cancel), name, told.wrong, frozenset({"STATE_FORBIDS"}))
                if answer is not None:
                    told.answers.append(answer.payout)
            case Then.DISABLE:
                told.disabled = True
                end = payout_service_pb2.DisablePayoutDestinationRequest(payout_destination_id=wish.destination_id, reason="closed it")
                await insist(lambda: client.payout.DisablePayoutDestination(end), name, told.wrong, frozenset({"STATE_FORBIDS"}))
            case Then.WATCH:
                await self._watch(client, told)
            case Then.NOTHING:
                pass

    async def _watch(self, client: AsyncClient, told: PaidOut) -> None:
        last = 0
        try:
            async with asyncio.timeout(20):
                async for payout in client.watch_payout(told.wish.payout_id):
                    if payout.version <= last:
                        told.wrong.append(f"{told.wish.payout_id}: version {payout.version} was sent after {last}")
                    last = payout.version
                    told.answers.append(payout)
        except TimeoutError:
            pass
        except Exception as error:  # noqa: BLE001 - a stream may break, as any call
            if not getattr(error, "may_retry", False):
                told.wrong.append(f"{told.wish.payout_id}: watching it failed with {error}")


def _request(wish: Withdrawal) -> payout_service_pb2.CreatePayoutRequest:
    return payout_service_pb2.CreatePayoutRequest(
        payout_id=wish.payout_id,
        seller_account=wish.seller,
        amount="" if wish.amount is None else format_amount(wish.amount, wish.currency),
        currency=wish.currency,
        payout_destination_id=wish.destination_id,
    )

"""The callers of payouts: they create destinations and payouts, repeat and cancel calls; a schedule
has its cut-off.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from tallystick import AsyncClient
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick_core.money import format_amount
from tests.simulation.call_until_success import call_until_success, expect_rejection
from tests.simulation.cluster import OPERATOR, TEAMS, Cluster, other_team, seller_of
from tests.simulation.loop import Node
from tests.simulation.seeded_random import SeededRandom
from tests.simulation.world import World

FEES = {"EUR": 10}
"""The fee of each payout once the schedule is set, in minor units."""
_TOKEN_WEIGHTS = {
    "ba_ok": 30.0,
    "ba_slow": 6.0,
    "ba_slow:10": 3.0,
    "ba_returned": 5.0,
    "ba_returned:8": 2.0,
    "ba_returned_part": 3.0,
    "ba_returned_closed": 3.0,
    "ba_decline:no_account": 3.0,
    "ba_decline:risk": 3.0,
    "ba_amount_too_small": 1.0,
    "ba_rejected": 1.0,
    "ba_lost_before": 3.0,
    "ba_lost_after": 4.0,
    "ba_lost_after:3": 2.0,
    "ba_error_before": 2.0,
    "ba_error_after": 2.0,
    "ba_error_stored": 1.0,
    "ba_unreachable": 2.0,
    "ba_unreachable:8": 1.0,
    "ba_busy:2": 2.0,
    "ba_other_amount": 5.0,
    "ba_paid_late": 5.0,
    "ba_paid_twice": 5.0,
    "ba_batch_lost": 2.0,
    "ba_delay:2500": 1.0,
    "ba_review": 2.0,
    "ba_unverified": 1.0,
}
_STRIPE_FAULTS = {
    "decline:risk": "decline:balance_insufficient",
    "error_stored": "ok",  # its key is honored for a day
    "other_amount": "ok",
    "paid_late": "failed",
    "paid_twice": "failed",
}
"""What replaces a fault that Stripe has not."""
_SELLER_WEIGHTS = {"hot": 6.0, "a": 2.0, "b": 1.0, "c": 1.0}
_MAX_TRIES = 6
"""How many times a caller requests a payout that the seller's balance does not allow yet."""
_MAX_POLLS = 60


class PayoutFollowUp(StrEnum):
    """What a caller does after its payout is stored."""

    NOTHING = "nothing"
    REPEAT = "repeat"
    OTHER_VALUES = "other_values"
    OTHER_CALLER = "other_caller"
    CANCEL = "cancel"
    WATCH = "watch"
    DISABLE = "disable"
    """Disables the destination."""


_FOLLOW_UP_WEIGHTS = {
    PayoutFollowUp.NOTHING: 45.0,
    PayoutFollowUp.REPEAT: 15.0,
    PayoutFollowUp.OTHER_VALUES: 8.0,
    PayoutFollowUp.OTHER_CALLER: 5.0,
    PayoutFollowUp.CANCEL: 12.0,
    PayoutFollowUp.WATCH: 10.0,
    PayoutFollowUp.DISABLE: 5.0,
}


@dataclass(frozen=True)
class WithdrawalRequest:
    """A payout that a caller wants. `amount` is in minor units, None: everything that can be paid;
    `is_approved`: the decision of the second approver, if one is required.
    """

    number: int
    team: str
    start_seconds: float
    token: str
    currency: str
    seller: str
    amount: int | None
    concurrent_calls: int
    is_approved: bool
    follow_up: PayoutFollowUp
    has_robber: bool = False
    """Another owner tries to access the seller's money."""

    @property
    def payout_id(self) -> str:
        return f"w{self.number}"

    @property
    def destination_id(self) -> str:
        return f"w{self.number}-bank"


def draw_withdrawal(
    seeded_random: SeededRandom, number: int, span_seconds: float
) -> WithdrawalRequest:
    """The payout with the given number, started within the given seconds. It depends only on seed
    and number.
    """

    def key(name: str) -> str:
        return f"withdrawal {number} {name}"

    team = seeded_random.choice(key("team"), TEAMS)
    return WithdrawalRequest(
        number=number,
        team=team,
        start_seconds=seeded_random.uniform(key("start"), span_seconds / 4, span_seconds + 3),
        token=seeded_random.weighted_choice(key("token"), _TOKEN_WEIGHTS),
        currency=seeded_random.weighted_choice(
            key("currency"), {"EUR": 6.0, "JPY": 1.0, "KWD": 1.0}
        ),
        seller=seller_of(team, seeded_random.weighted_choice(key("seller"), _SELLER_WEIGHTS)),
        amount=int(10 ** seeded_random.uniform(key("amount"), 1, 5.5))
        if seeded_random.number(key("whether all")) < 0.6
        else None,
        concurrent_calls=seeded_random.weighted_choice(key("at once"), {1: 8.0, 2: 1.0, 4: 0.5}),
        is_approved=seeded_random.number(key("approves")) < 0.7,
        follow_up=seeded_random.weighted_choice(key("then"), _FOLLOW_UP_WEIGHTS),
        has_robber=seeded_random.number(key("robbed")) < 0.3,
    )


def to_stripe_withdrawal(withdrawal: WithdrawalRequest) -> WithdrawalRequest:
    """A payout that Stripe would accept: to a connected account with the same fault, and in a
    currency of which it takes every amount.
    """
    fault = withdrawal.token.removeprefix("ba_")
    return replace(
        withdrawal,
        token=f"acct_{_STRIPE_FAULTS.get(fault, fault)}",
        currency="EUR" if withdrawal.currency == "KWD" else withdrawal.currency,
    )


@dataclass
class WithdrawalResponses:
    """The answers to the calls for one payout, in the order in which they arrived."""

    withdrawal: WithdrawalRequest
    payouts: list[payout_pb2.Payout] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    cancelled: bool = False
    disabled: bool = False


class PayoutLoad:
    """Callers, each with its own node, and the operator who sets the schedule and decides
    approvals.
    """

    def __init__(
        self, world: World, cluster: Cluster, withdrawals: list[WithdrawalRequest]
    ) -> None:
        self._world = world
        self._cluster = cluster
        self._open_count = len(withdrawals)
        self._tasks: list[asyncio.Task[None]] = []
        self.violations: list[str] = []
        self.responses = {
            withdrawal.payout_id: WithdrawalResponses(withdrawal) for withdrawal in withdrawals
        }

    def start(self, *, with_schedule: bool) -> None:
        """Starts all callers; `with_schedule`: also a schedule with a cut-off some seconds from
        now.
        """
        if with_schedule:
            self._open_count += 1
            self._world.loop.deliver(
                Node("caller-schedule"), 0.3, self._start_caller, self._set_schedule()
            )
        for responses in self.responses.values():
            self._world.loop.deliver(
                Node(f"caller-w{responses.withdrawal.number}"),
                responses.withdrawal.start_seconds,
                self._start_caller,
                self._run_caller(responses),
            )

    @property
    def is_idle(self) -> bool:
        return self._open_count == 0

    def _start_caller(self, caller: Any) -> None:
        self._tasks.append(asyncio.ensure_future(caller))

    async def _set_schedule(self) -> None:
        operator = self._cluster.client("the schedule's operator", OPERATOR)
        request = payout_service_pb2.SetPayoutScheduleRequest(
            currency="EUR",
            interval=payout_pb2.PAYOUT_INTERVAL_DAILY,
            cut_off="00:01",
            time_zone="UTC",
            minimum_amount="0.20",
            fee=format_amount(FEES["EUR"], "EUR"),
        )
        await call_until_success(
            lambda: operator.payout.SetPayoutSchedule(request), "the schedule", self.violations
        )
        self._open_count -= 1

    async def _run_caller(self, responses: WithdrawalResponses) -> None:
        withdrawal = responses.withdrawal
        client = self._cluster.client(withdrawal.payout_id, withdrawal.team)
        if await self._register_destination(client, responses):
            request = _build_request(withdrawal)
            if withdrawal.has_robber:
                await self._attempt_robbery(responses)
            await asyncio.gather(
                *(self._pay(client, request, responses) for _ in range(withdrawal.concurrent_calls))
            )
            if responses.payouts:
                await self._approve_or_reject(client, responses)
                await self._follow_up(client, request, responses)
        self._open_count -= 1

    async def _register_destination(
        self, client: AsyncClient, responses: WithdrawalResponses
    ) -> bool:
        """Whether the provider reports that it can pay to the destination."""
        withdrawal = responses.withdrawal
        create_request = payout_service_pb2.CreatePayoutDestinationRequest(
            payout_destination_id=withdrawal.destination_id,
            seller_account=withdrawal.seller,
            currency=withdrawal.currency,
            bank_account_token=withdrawal.token,
        )
        if (
            await call_until_success(
                lambda: client.payout.CreatePayoutDestination(create_request),
                withdrawal.destination_id,
                responses.violations,
            )
            is None
        ):
            return False
        get_request = payout_service_pb2.GetPayoutDestinationRequest(
            payout_destination_id=withdrawal.destination_id
        )
        for _ in range(_MAX_POLLS):
            response = await call_until_success(
                lambda: client.payout.GetPayoutDestination(get_request),
                withdrawal.destination_id,
                responses.violations,
            )
            if (
                response is None
                or response.payout_destination.state
                != payout_pb2.PAYOUT_DESTINATION_STATE_PENDING_VERIFICATION
            ):
                return response is not None and bool(
                    response.payout_destination.state
                    == payout_pb2.PAYOUT_DESTINATION_STATE_VERIFIED
                )
            await asyncio.sleep(0.5)
        return False

    async def _attempt_robbery(self, responses: WithdrawalResponses) -> None:
        """Another owner's calls about the seller, each of which must be rejected."""
        withdrawal, name = responses.withdrawal, f"{responses.withdrawal.payout_id} robbed"
        robber = self._cluster.client(
            f"the robber of {withdrawal.payout_id}", other_team(withdrawal.team)
        )
        destination_request = payout_service_pb2.CreatePayoutDestinationRequest(
            payout_destination_id=f"{withdrawal.payout_id}-robber",
            seller_account=withdrawal.seller,
            currency=withdrawal.currency,
            bank_account_token="ba_ok",
        )
        payout_request = payout_service_pb2.CreatePayoutRequest(
            payout_id=f"{withdrawal.payout_id}-robbed",
            seller_account=withdrawal.seller,
            currency=withdrawal.currency,
        )
        preview_request = payout_service_pb2.PreviewPayoutRequest(
            seller_account=withdrawal.seller, currency=withdrawal.currency
        )
        schedule_request = payout_service_pb2.SetPayoutScheduleRequest(
            seller_account=withdrawal.seller,
            currency=withdrawal.currency,
            interval=payout_pb2.PAYOUT_INTERVAL_MANUAL,
        )
        await expect_rejection(
            lambda: robber.payout.CreatePayoutDestination(destination_request),
            name,
            responses.violations,
            "ALREADY_EXISTS",
        )
        await expect_rejection(
            lambda: robber.payout.PreviewPayout(preview_request),
            name,
            responses.violations,
            "NOT_FOUND",
        )
        await expect_rejection(
            lambda: robber.payout.SetPayoutSchedule(schedule_request),
            name,
            responses.violations,
            "NOT_FOUND",
        )
        await expect_rejection(
            lambda: robber.payout.CreatePayout(payout_request),
            name,
            responses.violations,
            "NOT_FOUND",
        )

    async def _pay(
        self,
        client: AsyncClient,
        request: payout_service_pb2.CreatePayoutRequest,
        responses: WithdrawalResponses,
    ) -> None:
        allowed_reasons = frozenset(
            {"INSUFFICIENT_FUNDS", "DESTINATION_UNUSABLE", "AMOUNT_OUT_OF_RANGE"}
        )
        for _ in range(_MAX_TRIES):
            response = await call_until_success(
                lambda: client.payout.CreatePayout(request),
                responses.withdrawal.payout_id,
                responses.violations,
                allowed_reasons,
            )
            if response is not None:
                responses.payouts.append(response.payout)
                return
            await asyncio.sleep(1.5)

    async def _approve_or_reject(self, client: AsyncClient, responses: WithdrawalResponses) -> None:
        """Sends the second approver's decision if the payout waits for it."""
        withdrawal = responses.withdrawal
        payout = responses.payouts[-1]
        for _ in range(_MAX_POLLS):
            if payout.payout_state != payout_pb2.PAYOUT_STATE_CREATED:
                break
            await asyncio.sleep(0.5)
            payout = await call_until_success(
                lambda: client.get_payout(withdrawal.payout_id),
                withdrawal.payout_id,
                responses.violations,
            )
            if payout is None:
                return
        if (
            payout.payout_state != payout_pb2.PAYOUT_STATE_AWAITING_APPROVAL
            or withdrawal.follow_up is PayoutFollowUp.CANCEL
        ):
            return
        approver = self._cluster.client(f"the boss of {withdrawal.payout_id}", OPERATOR)
        values = {"payout_id": withdrawal.payout_id, "reason": "as I see it"}
        if withdrawal.is_approved:
            approve_request = payout_service_pb2.ApprovePayoutRequest(**values)
            response = await call_until_success(
                lambda: approver.payout.ApprovePayout(approve_request),
                withdrawal.payout_id,
                responses.violations,
                frozenset({"INVALID_STATE"}),
            )
        else:
            reject_request = payout_service_pb2.RejectPayoutRequest(**values)
            response = await call_until_success(
                lambda: approver.payout.RejectPayout(reject_request),
                withdrawal.payout_id,
                responses.violations,
                frozenset({"INVALID_STATE"}),
            )
        if response is not None:
            responses.payouts.append(response.payout)

    async def _follow_up(
        self,
        client: AsyncClient,
        request: payout_service_pb2.CreatePayoutRequest,
        responses: WithdrawalResponses,
    ) -> None:
        withdrawal, name = responses.withdrawal, responses.withdrawal.payout_id
        match withdrawal.follow_up:
            case PayoutFollowUp.REPEAT:
                response = await call_until_success(
                    lambda: client.payout.CreatePayout(request), name, responses.violations
                )
                if response is not None:
                    responses.payouts.append(response.payout)
            case PayoutFollowUp.OTHER_VALUES:
                changed_request = payout_service_pb2.CreatePayoutRequest.FromString(
                    request.SerializeToString()
                )
                changed_request.amount = format_amount(
                    (withdrawal.amount or 0) + 1, withdrawal.currency
                )
                await expect_rejection(
                    lambda: client.payout.CreatePayout(changed_request),
                    name,
                    responses.violations,
                    "IDEMPOTENCY_KEY_REUSED",
                )
            case PayoutFollowUp.OTHER_CALLER:
                other_client = self._cluster.client(
                    f"the thief of {name}", other_team(withdrawal.team)
                )
                await expect_rejection(
                    lambda: other_client.payout.CreatePayout(request),
                    name,
                    responses.violations,
                    "ALREADY_EXISTS",
                )
                await expect_rejection(
                    lambda: other_client.get_payout(name), name, responses.violations, "NOT_FOUND"
                )
            case PayoutFollowUp.CANCEL:
                responses.cancelled = True
                cancel_request = payout_service_pb2.CancelPayoutRequest(
                    payout_id=name, reason="changed my mind"
                )
                response = await call_until_success(
                    lambda: client.payout.CancelPayout(cancel_request),
                    name,
                    responses.violations,
                    frozenset({"INVALID_STATE"}),
                )
                if response is not None:
                    responses.payouts.append(response.payout)
            case PayoutFollowUp.DISABLE:
                responses.disabled = True
                disable_request = payout_service_pb2.DisablePayoutDestinationRequest(
                    payout_destination_id=withdrawal.destination_id, reason="closed it"
                )
                await call_until_success(
                    lambda: client.payout.DisablePayoutDestination(disable_request),
                    name,
                    responses.violations,
                    frozenset({"INVALID_STATE"}),
                )
            case PayoutFollowUp.WATCH:
                await self._watch(client, responses)
            case PayoutFollowUp.NOTHING:
                pass

    async def _watch(self, client: AsyncClient, responses: WithdrawalResponses) -> None:
        last_version = 0
        try:
            async with asyncio.timeout(20):
                async for payout in client.watch_payout(responses.withdrawal.payout_id):
                    if payout.version <= last_version:
                        responses.violations.append(
                            f"{responses.withdrawal.payout_id}: version {payout.version} was sent "
                            f"after {last_version}"
                        )
                    last_version = payout.version
                    responses.payouts.append(payout)
        except TimeoutError:
            pass
        except Exception as error:  # noqa: BLE001 - a stream may break, as any call
            if not getattr(error, "may_retry", False):
                responses.violations.append(
                    f"{responses.withdrawal.payout_id}: watching it failed with {error}"
                )


def _build_request(withdrawal: WithdrawalRequest) -> payout_service_pb2.CreatePayoutRequest:
    return payout_service_pb2.CreatePayoutRequest(
        payout_id=withdrawal.payout_id,
        seller_account=withdrawal.seller,
        amount=""
        if withdrawal.amount is None
        else format_amount(withdrawal.amount, withdrawal.currency),
        currency=withdrawal.currency,
        payout_destination_id=withdrawal.destination_id,
    )

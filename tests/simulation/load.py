"""The callers of a run: they create payments, repeat and cancel calls, and record the answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, timedelta
from enum import StrEnum
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import AsyncClient, TallystickError, new_order
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.money import format_amount
from tests.simulation.buyers import Buyer, BuyerVisit, draw_buyer
from tests.simulation.call_until_success import call_until_success, expect_rejection
from tests.simulation.cluster import SHOP, TEAMS, Cluster, other_team, seller_of
from tests.simulation.database import START_TIME
from tests.simulation.loop import Node
from tests.simulation.seeded_random import SeededRandom
from tests.simulation.world import World

_CURRENCY_WEIGHTS = {"EUR": 6.0, "JPY": 1.0, "KWD": 1.0}
_TOKEN_WEIGHTS = {
    "tok_visa": 40.0,
    "tok_delay:200": 4.0,
    "tok_delay:2500": 1.0,
    "tok_delay:4000": 1.5,
    "tok_lost_before": 4.0,
    "tok_lost_after": 4.0,
    "tok_lost_after:3": 3.0,
    "tok_lost_after:20": 1.0,
    "tok_error_before": 3.0,
    "tok_error_before:6": 2.0,
    "tok_lost_before:8": 1.5,
    "tok_busy:20": 1.0,
    "tok_error_after": 3.0,
    "tok_error_stored": 1.0,
    "tok_unreachable": 3.0,
    "tok_unreachable:8": 2.0,
    "tok_busy:2": 3.0,
    "tok_decline": 4.0,
    "tok_decline:insufficient_funds": 2.0,
    "tok_amount_too_small": 1.0,
    "tok_rejected": 1.0,
    "tok_other_amount": 2.0,
    "tok_pending:paid": 3.0,
    "tok_pending:declined": 2.0,
    "tok_pending:action": 2.0,
    "tok_pending:review-action-review-paid": 1.5,
    "tok_pending:action-review-declined": 1.0,
}


class PaymentFollowUp(StrEnum):
    """What a caller does after its payment is stored."""

    NOTHING = "nothing"
    REPEAT = "repeat"
    OTHER_VALUES = "other_values"
    """Sends the same id with another amount, which must be rejected."""
    OTHER_CALLER = "other_caller"
    """Another team uses the id; it must be rejected and see nothing."""
    CANCEL = "cancel"
    WATCH = "watch"


_FOLLOW_UP_WEIGHTS = {
    PaymentFollowUp.NOTHING: 50.0,
    PaymentFollowUp.REPEAT: 15.0,
    PaymentFollowUp.OTHER_VALUES: 8.0,
    PaymentFollowUp.OTHER_CALLER: 5.0,
    PaymentFollowUp.CANCEL: 12.0,
    PaymentFollowUp.WATCH: 10.0,
}
_BURST_SIZE = 8
_HOSTED_SHARE = 1 / 3


@dataclass(frozen=True)
class PaymentRequest:
    """A payment that a caller wants to make. Amounts and fees are in minor units, by order; a fee
    of None means the configured fee.
    """

    number: int
    team: str
    start_seconds: float
    token: str
    currency: str
    is_combined: bool
    all_or_nothing: bool
    sellers: tuple[str, ...]
    amounts: tuple[int, ...]
    fees: tuple[int | None, ...]
    expires_in_seconds: float | None
    concurrent_calls: int
    """How many calls create it concurrently."""
    waits_for_result: bool
    """Whether the caller waits for the result, not only for acceptance."""
    follow_up: PaymentFollowUp
    delivery_count: int
    """How many of its paid orders the caller finally confirms as delivered."""
    buyer: Buyer | None = None
    """Who pays on a hosted page. None: the payment is by token."""

    @property
    def checkout_id(self) -> str:
        return f"p{self.number}"

    def order_id(self, index: int) -> str:
        return f"p{self.number}-{index}"

    def charge_id(self, index: int) -> str:
        return f"c-{self.checkout_id}" if self.is_combined else f"o-{self.order_id(index)}"


def draw_payment_request(
    seeded_random: SeededRandom, number: int, span_seconds: float
) -> PaymentRequest:
    """The payment with the given number, started within the given seconds. It depends only on seed
    and number.
    """

    def key(name: str) -> str:
        return f"wish {number} {name}"

    order_count = seeded_random.weighted_choice(key("orders"), {1: 6.0, 2: 3.0, 3: 2.0, 12: 0.3})
    amounts = tuple(
        int(10 ** seeded_random.uniform(key(f"amount {index}"), 1, 6))
        for index in range(order_count)
    )
    team = seeded_random.choice(key("team"), TEAMS)
    sellers = tuple(
        seeded_random.weighted_choice(
            key(f"seller {index}"), {"hot": 5.0, "a": 1.0, "b": 1.0, "c": 1.0, "blocked": 0.15}
        )
        for index in range(order_count)
    )
    is_combined = seeded_random.number(key("together")) < 0.3
    fees = tuple(
        amount // 20 if seeded_random.number(key(f"fee {index}")) < 0.3 else None
        for index, amount in enumerate(amounts)
    )
    return PaymentRequest(
        number=number,
        team=team,
        start_seconds=_start_time(seeded_random, number, span_seconds),
        token=seeded_random.weighted_choice(key("token"), _TOKEN_WEIGHTS),
        currency=seeded_random.weighted_choice(key("currency"), _CURRENCY_WEIGHTS),
        is_combined=is_combined,
        all_or_nothing=is_combined and seeded_random.number(key("all")) < 0.4,
        sellers=tuple(seller_of(team, seller) for seller in sellers),
        amounts=amounts,
        fees=fees,
        expires_in_seconds=seeded_random.uniform(key("expires"), 1, 12)
        if seeded_random.number(key("whether it expires")) < 0.15
        else None,
        concurrent_calls=seeded_random.weighted_choice(key("at once"), {1: 8.0, 2: 1.0, 4: 0.5}),
        waits_for_result=seeded_random.number(key("patient")) < 0.7,
        follow_up=seeded_random.weighted_choice(key("then"), _FOLLOW_UP_WEIGHTS),
        delivery_count=order_count if seeded_random.number(key("delivers")) < 0.5 else 0,
    )


def to_stripe_request(request: PaymentRequest) -> PaymentRequest:
    """A payment that Stripe would accept: above its minimums, and in a currency of which it takes
    every amount.
    """
    return replace(
        request,
        currency="EUR" if request.currency == "KWD" else request.currency,
        amounts=tuple(amount * 10 for amount in request.amounts),
        fees=tuple(fee and fee * 10 for fee in request.fees),
    )


def to_hosted_request(seeded_random: SeededRandom, request: PaymentRequest) -> PaymentRequest:
    """Some payments are by hosted page, as one charge; the others stay as they are."""
    if seeded_random.number(f"whether {request.number} has a page") >= _HOSTED_SHARE:
        return request
    return replace(
        request,
        token="",
        is_combined=True,
        expires_in_seconds=None,
        buyer=draw_buyer(seeded_random, request.number),
    )


def _start_time(seeded_random: SeededRandom, number: int, span_seconds: float) -> float:
    """Most payments arrive in bursts, so that batches form; the others arrive alone."""
    burst = seeded_random.number(f"burst {number // _BURST_SIZE}") * span_seconds
    spread = seeded_random.uniform(f"apart {number}", 0, span_seconds)
    return (
        burst + spread / 1000 if seeded_random.number(f"whether apart {number}") < 0.7 else spread
    )


@dataclass
class PaymentResponses:
    """The answers to the calls for one requested payment, in the order in which they arrived."""

    request: PaymentRequest
    payments: list[payment_pb2.Payment] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    """Answers that violate a rule."""
    cancelled: bool = False
    """Whether cancellation was requested."""
    delivered_order_ids: set[str] = field(default_factory=set)
    """Orders whose delivery was confirmed, with an answer."""
    buyer_statuses: list[payment_pb2.BuyerStatus] = field(default_factory=list)
    """What the buyer saw on their return from a hosted page."""

    def add(self, payment: payment_pb2.Payment, database_time: float) -> None:
        """Records a payment that an answer reported. While the buyer must act on a hosted page, its
        URL is reported; once it has expired or was cancelled, it need not be.
        """
        self.payments.append(payment)
        if not payment.HasField("hosted_page"):
            return
        page_urls = {
            order.next_action_url
            for order in payment.payment_orders
            if order.pending_reason == payment_pb2.PENDING_REASON_BUYER_ACTION
        }
        expire_time = payment.expire_time.ToDatetime(UTC)
        is_ending = self.cancelled or START_TIME + timedelta(seconds=database_time) >= expire_time
        allowed_urls = page_urls | {""} if is_ending else page_urls
        if page_urls and payment.hosted_page.url not in allowed_urls:
            self.violations.append(f"{payment.checkout_id} was reported without its page")


class PaymentLoad:
    """Callers, each with its own node; a call that fails is retried."""

    def __init__(
        self, world: World, cluster: Cluster, payment_requests: list[PaymentRequest]
    ) -> None:
        self._world = world
        self._cluster = cluster
        self._open_count = len(payment_requests)
        self._tasks: list[asyncio.Task[None]] = []
        self.responses = {
            payment_request.checkout_id: PaymentResponses(payment_request)
            for payment_request in payment_requests
        }

    def start(self) -> None:
        for responses in self.responses.values():
            node = Node(f"caller-{responses.request.number}")
            self._world.loop.deliver(
                node, responses.request.start_seconds, self._start_caller, responses
            )

    @property
    def is_idle(self) -> bool:
        """Whether every caller has its result or has given up."""
        return self._open_count == 0

    def _start_caller(self, responses: PaymentResponses) -> None:
        self._tasks.append(asyncio.ensure_future(self._run_caller(responses)))

    async def _run_caller(self, responses: PaymentResponses) -> None:
        payment_request = responses.request
        client = self._cluster.client(payment_request.checkout_id, payment_request.team)
        request = _build_request(payment_request, self._world.loop.now)
        await asyncio.gather(
            *(
                self._pay(client, request, responses)
                for _ in range(payment_request.concurrent_calls)
            )
        )
        if responses.payments:
            if payment_request.buyer is None:
                await self._follow_up(client, request, responses)
            else:
                await self._visit_page(client, request, responses, payment_request.buyer)
            if payment_request.delivery_count:
                await self._confirm_deliveries(client, responses)
        self._open_count -= 1

    async def _pay(
        self,
        client: AsyncClient,
        request: payment_service_pb2.CreatePaymentRequest,
        responses: PaymentResponses,
    ) -> None:
        response = await self._call_until_success(
            lambda: client.payment.CreatePayment(request), responses
        )
        if response is not None:
            responses.add(response.payment, self._world.database_time("payment"))

    async def _call_until_success(
        self, call: Any, responses: PaymentResponses, allowed_reasons: frozenset[str] = frozenset()
    ) -> Any:
        return await call_until_success(
            call, responses.request.checkout_id, responses.violations, allowed_reasons
        )

    async def _expect_rejection(self, call: Any, responses: PaymentResponses, reason: str) -> None:
        await expect_rejection(call, responses.request.checkout_id, responses.violations, reason)

    async def _follow_up(
        self,
        client: AsyncClient,
        request: payment_service_pb2.CreatePaymentRequest,
        responses: PaymentResponses,
    ) -> None:
        payment_request = responses.request
        match payment_request.follow_up:
            case PaymentFollowUp.REPEAT:
                await self._pay(client, request, responses)
            case PaymentFollowUp.OTHER_VALUES:
                changed_request = payment_service_pb2.CreatePaymentRequest.FromString(
                    request.SerializeToString()
                )
                changed_request.payment_orders[0].amount = format_amount(
                    payment_request.amounts[0] + 1, payment_request.currency
                )
                await self._expect_rejection(
                    lambda: client.payment.CreatePayment(changed_request),
                    responses,
                    "IDEMPOTENCY_KEY_REUSED",
                )
            case PaymentFollowUp.OTHER_CALLER:
                other_client = self._cluster.client(
                    f"the thief of {payment_request.checkout_id}", other_team(payment_request.team)
                )
                await self._expect_rejection(
                    lambda: other_client.payment.CreatePayment(request), responses, "ALREADY_EXISTS"
                )
                await self._expect_rejection(
                    lambda: other_client.get_payment(payment_request.checkout_id),
                    responses,
                    "NOT_FOUND",
                )
                await self._expect_rejection(
                    lambda: other_client.payment.CreatePayment(_under_other_ids(request)),
                    responses,
                    "ALREADY_EXISTS",
                )
            case PaymentFollowUp.CANCEL:
                responses.cancelled = True
                cancel_request = payment_service_pb2.CancelPaymentRequest(
                    checkout_id=payment_request.checkout_id, reason="changed my mind"
                )
                response = await self._call_until_success(
                    lambda: client.payment.CancelPayment(cancel_request),
                    responses,
                    frozenset({"INVALID_STATE"}),
                )
                if response is not None:
                    responses.add(response.payment, self._world.database_time("payment"))
            case PaymentFollowUp.WATCH:
                await self._watch(client, responses)
            case PaymentFollowUp.NOTHING:
                pass

    async def _visit_page(
        self,
        client: AsyncClient,
        request: payment_service_pb2.CreatePaymentRequest,
        responses: PaymentResponses,
        buyer: Buyer,
    ) -> None:
        """The buyer pays on the page, while the caller does what follows."""
        visit = BuyerVisit(
            self._world,
            self._cluster,
            client,
            responses.request.checkout_id,
            buyer,
            responses.violations,
            lambda payment: responses.add(payment, self._world.database_time("payment")),
        )
        session_id = await visit.wait_for_page()

        async def follow_up() -> None:
            if responses.request.follow_up is PaymentFollowUp.CANCEL:
                await visit.wait_to_cancel()
            await self._follow_up(client, request, responses)

        await asyncio.gather(follow_up(), *([visit.act(session_id)] if session_id else ()))
        responses.buyer_statuses += visit.statuses

    async def _confirm_deliveries(self, client: AsyncClient, responses: PaymentResponses) -> None:
        for index in range(responses.request.delivery_count):
            confirm_request = payment_service_pb2.ConfirmDeliveryRequest(
                payment_order_id=responses.request.order_id(index)
            )
            response = await self._call_until_success(
                lambda confirm_request=confirm_request: client.payment.ConfirmDelivery(
                    confirm_request
                ),
                responses,
                frozenset({"INVALID_STATE"}),
            )
            if response is not None:
                responses.delivered_order_ids.add(response.payment_order.payment_order_id)
                if not response.payment_order.HasField("delivery_confirmed_time"):
                    responses.violations.append(
                        f"order {responses.request.order_id(index)} was reported as delivered, and "
                        "when was not"
                    )

    async def _watch(self, client: AsyncClient, responses: PaymentResponses) -> None:
        last_version = 0
        try:
            async with asyncio.timeout(30):
                async for payment in client.watch_payment(responses.request.checkout_id):
                    if payment.version <= last_version:
                        responses.violations.append(
                            f"{responses.request.checkout_id}: version {payment.version} was sent "
                            f"after {last_version}"
                        )
                    last_version = payment.version
                    responses.add(payment, self._world.database_time("payment"))
            if responses.payments[-1].payment_state == payment_pb2.PAYMENT_STATE_OPEN:
                responses.violations.append(
                    f"{responses.request.checkout_id}: watching it ended while it is open"
                )
        except TimeoutError:
            pass
        except TallystickError as error:
            if not error.may_retry:
                responses.violations.append(
                    f"{responses.request.checkout_id}: watching it failed with {error}"
                )


def _build_request(
    payment_request: PaymentRequest, now: float
) -> payment_service_pb2.CreatePaymentRequest:
    request = payment_service_pb2.CreatePaymentRequest(
        checkout_id=payment_request.checkout_id,
        credit_card_info=payment_request.token,
        wait_for=payment_service_pb2.WAIT_FOR_RESULT
        if payment_request.waits_for_result
        else payment_service_pb2.WAIT_FOR_ACCEPTANCE,
        charge_mode=payment_pb2.CHARGE_MODE_COMBINED
        if payment_request.is_combined
        else payment_pb2.CHARGE_MODE_PER_ORDER,
        partial_failure_policy=payment_pb2.PARTIAL_FAILURE_POLICY_ALL_OR_NOTHING
        if payment_request.all_or_nothing
        else payment_pb2.PARTIAL_FAILURE_POLICY_KEEP_SUCCEEDED,
        payment_orders=[
            new_order(
                payment_request.order_id(index),
                f"buyer-{payment_request.number % 11}",
                seller,
                format_amount(amount, payment_request.currency),
                payment_request.currency,
                platform_fee="" if fee is None else format_amount(fee, payment_request.currency),
            )
            for index, (seller, amount, fee) in enumerate(
                zip(
                    payment_request.sellers,
                    payment_request.amounts,
                    payment_request.fees,
                    strict=True,
                )
            )
        ],
    )
    if payment_request.buyer is not None:
        page = payment_pb2.NewHostedPage(success_url=f"{SHOP}/thanks", cancel_url=f"{SHOP}/basket")
        request.hosted_page.CopyFrom(page)
    if payment_request.expires_in_seconds is not None:
        expiry = Timestamp()
        expiry.FromDatetime(
            START_TIME + timedelta(seconds=round(now + payment_request.expires_in_seconds, 3))
        )
        request.expire_time.CopyFrom(expiry)
    return request


def _under_other_ids(
    request: payment_service_pb2.CreatePaymentRequest,
) -> payment_service_pb2.CreatePaymentRequest:
    """The same orders under ids of the attacker, which name another owner's sellers."""
    copied_request = payment_service_pb2.CreatePaymentRequest.FromString(
        request.SerializeToString()
    )
    copied_request.checkout_id += "-stolen"
    for order in copied_request.payment_orders:
        order.payment_order_id += "-stolen"
    return copied_request

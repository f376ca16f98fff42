"""Webhook events about charges: stored once, looked up at the provider, and applied."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import psycopg
import pytest

from tallystick import Client, TallystickError
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.wallet.v1.wallet_service_pb2 import ListWalletsRequest
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    NotSent,
    Pending,
    PendingReason,
    ProviderFee,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import ScriptedPaymentProvider
from tests.support.charges import (
    TWO_TRIES,
    close_dead_letter,
    dead_letter_state,
    event_versions,
    get_order,
    is_paid,
    retry_dead_letter,
    retry_reason,
)
from tests.support.errors import expect_error_reason
from tests.support.payments import create_payment
from tests.support.platform import (
    ServedPlatform,
    eventually,
    payment_worker_of,
    serve_platform,
)
from tests.support.webhooks import (
    find_event,
    new_event,
    open_dead_letter,
    receive,
    state_of,
    wait_for_event,
)

NO_POLLS = Settings().replace(
    retry={
        ("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 3600, 3600, None),
        ("", RetryReason.OUTCOME_UNKNOWN): TWO_TRIES,
    },
    worker__scan_interval=0.1,
)
"""A pending charge is looked up only because of a webhook."""
REVIEW = Pending(PendingReason.PROVIDER_REVIEW, "pi_1")


class ReviewingProvider(ScriptedPaymentProvider):
    """A provider whose charges are in review until `outcome_of` is set. It keeps the references of
    the lookups, and holds them while `lookup_gate` is clear.
    """

    def __init__(self) -> None:
        self.outcome_of: Callable[[ChargeRequest], ChargeLookupOutcome] = lambda _: REVIEW
        self.lookup_references: list[str] = []
        self.lookup_gate = asyncio.Event()
        self.lookup_gate.set()
        self.fee: ProviderFee | None = None
        super().__init__(self._answer)

    def _answer(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return self.outcome_of(request)

    def pay(self) -> None:
        """Every charge is paid from now on."""
        self.outcome_of = lambda request: Succeeded(
            "pi_1", request.amount, request.currency, request.charge_id, self.fee
        )

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        self.lookup_references.append(request.reference)
        await self.lookup_gate.wait()
        return await super().look_up(request)


@pytest.fixture
def provider() -> ReviewingProvider:
    return ReviewingProvider()


@pytest.fixture
def platform(
    scratch_database: DatabaseUrls, provider: ReviewingProvider
) -> Iterator[ServedPlatform]:
    with serve_platform(
        scratch_database, NO_POLLS, dependencies=Dependencies(providers={"sandbox": provider})
    ) as served:
        yield served
    report = verify(scratch_database)
    assert report.passed, report.as_text()


@pytest.fixture
def client(platform: ServedPlatform) -> Iterator[Client]:
    with platform.client() as sdk_client:
        yield sdk_client


def always(outcome: ChargeLookupOutcome) -> Callable[[ChargeRequest], ChargeLookupOutcome]:
    return lambda _: outcome


def pending_payment(client: Client) -> payment_pb2.Payment:
    """A payment whose charge is in review at the provider."""
    payment = create_payment(client, "5.00")
    assert payment.payment_orders[0].payment_order_status == (
        payment_pb2.PAYMENT_ORDER_STATUS_PENDING
    )
    return payment


def test_an_event_is_a_hint_to_look_the_charge_up(
    client: Client, provider: ReviewingProvider
) -> None:
    """H1: the event itself changes nothing; the provider's answer, read after it, is applied."""
    payment = pending_payment(client)
    charge_id = payment.payment_orders[0].charge_id
    early, late = new_event(reference="pi_1", event_type="charge.paid"), new_event(reference="pi_1")
    assert receive(client.payment, early) == [True]
    assert wait_for_event(client.payment, early, "APPLIED").resource_name == f"charges/{charge_id}"
    assert get_order(client, payment).payment_order_status == (
        payment_pb2.PAYMENT_ORDER_STATUS_PENDING
    )
    provider.pay()
    assert receive(client.payment, late) == [True]
    assert is_paid(client, payment)
    assert provider.lookup_references == ["pi_1", "pi_1"]


def test_an_event_names_its_charge_by_the_id_that_the_provider_echoes(
    client: Client, provider: ReviewingProvider
) -> None:
    """A charge whose answer was lost has no reference: the echoed charge id finds it, and it is
    looked up under the reference of the event.
    """
    payment = pending_payment(client)
    charge_id = payment.payment_orders[0].charge_id
    provider.pay()
    receive(client.payment, new_event(reference="pi_of_the_event", client_reference=charge_id))
    assert is_paid(client, payment)
    assert provider.lookup_references == ["pi_of_the_event"]


def test_the_end_does_not_depend_on_the_order_of_events(
    scratch_database: DatabaseUrls, thorough: bool
) -> None:
    """H1: five answers of the provider, read in every order and with polls between, end in one
    state with one booking. Thorough: all 120 orders.
    """
    provider = ReviewingProvider()
    settings = NO_POLLS.replace(
        retry={("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, None)}
    )
    dependencies = Dependencies(providers={"sandbox": provider})
    with (
        serve_platform(scratch_database, settings, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        for number, order in enumerate([*permutations(range(5))][:: 1 if thorough else 17]):
            reference = f"pi_{number}"
            paid = Succeeded(reference, 500, "EUR")
            answers: list[ChargeLookupOutcome] = [
                Pending(PendingReason.PROVIDER_REVIEW, reference),
                Pending(PendingReason.BUYER_ACTION, reference, "https://provider.invalid/act"),
                Pending(PendingReason.PROVIDER_REVIEW, reference),
                paid,
                paid,
            ]
            provider.outcome_of = always(Pending(PendingReason.PROVIDER_REVIEW, reference))
            payment = create_payment(client, "5.00")
            for index in order:
                provider.outcome_of = always(answers[index])
                event = new_event(reference=reference)
                receive(client.payment, event)
                wait_for_event(client.payment, event, "APPLIED")
            assert is_paid(client, payment)
        wallets = client.wallet.ListWallets(ListWalletsRequest(page_size=200)).wallets
        assert {wallet.balance for wallet in wallets} == {"5.00"}
    report = verify(scratch_database)
    assert report.passed, report.as_text()


def test_a_hundred_deliveries_are_one_event(client: Client, provider: ReviewingProvider) -> None:
    """H1: an event that is delivered again, at the same time or later, is stored and applied
    once.
    """
    payment = pending_payment(client)
    provider.pay()
    event = new_event(reference="pi_1")
    assert receive(client.payment, *[event] * 100) == [True] + [False] * 99
    assert is_paid(client, payment)
    wait_for_event(client.payment, event, "APPLIED")
    assert receive(client.payment, event) == [False]
    assert len(provider.lookup_references) == 1


def test_a_hundred_events_about_one_charge_share_lookups(
    client: Client, provider: ReviewingProvider
) -> None:
    """Events that come together are applied by one lookup that begins after all of them."""
    payment = pending_payment(client)
    provider.pay()
    events = [new_event(reference="pi_1") for _ in range(100)]
    assert receive(client.payment, *events) == [True] * 100
    assert is_paid(client, payment)
    for event in events:
        wait_for_event(client.payment, event, "APPLIED")
    assert 1 <= len(provider.lookup_references) <= 3


def test_a_fee_that_is_reported_later_is_stored(
    client: Client, provider: ReviewingProvider
) -> None:
    """A provider knows its fee a moment after the success, and reports the charge once more: the
    attempt gets the fee, and keeps the first one that it gets.
    """
    payment = pending_payment(client)
    provider.pay()
    first, second = new_event(reference="pi_1"), new_event(reference="pi_1")
    receive(client.payment, first)
    assert is_paid(client, payment)
    wait_for_event(client.payment, first, "APPLIED")
    assert fee_of(client, payment) == ""
    provider.fee = ProviderFee(42, "EUR")
    receive(client.payment, second)
    wait_for_event(client.payment, second, "APPLIED")
    assert fee_of(client, payment) == "0.42"


def fee_of(client: Client, payment: payment_pb2.Payment) -> str:
    """The provider's fee for the attempt of a payment's order; "": not known."""
    request = payment_service_pb2.GetPaymentOrderRequest(
        payment_order_id=payment.payment_orders[0].payment_order_id
    )
    (attempt,) = client.payment.GetPaymentOrder(request).attempts
    return attempt.provider_fee


def test_an_event_about_a_known_success_needs_no_lookup(
    client: Client, provider: ReviewingProvider
) -> None:
    """A provider sends several events about one change. Those that come after the success is
    applied are applied without asking again; one with another reference is looked up, because it
    may be about other money.
    """
    payment = pending_payment(client)
    provider.fee = ProviderFee(42, "EUR")
    provider.pay()
    receive(client.payment, new_event(reference="pi_1"))
    assert is_paid(client, payment)
    late, other = (
        new_event(reference="pi_1"),
        new_event(reference="pi_2", client_reference=payment.payment_orders[0].charge_id),
    )
    receive(client.payment, late)
    wait_for_event(client.payment, late, "APPLIED")
    assert provider.lookup_references == ["pi_1"]
    receive(client.payment, other)
    wait_for_event(client.payment, other, "APPLIED")
    assert provider.lookup_references == ["pi_1", "pi_2"]


def test_events_that_the_platform_does_not_handle_are_kept(
    client: Client, provider: ReviewingProvider
) -> None:
    """An event about something else is stored, and nothing is looked up for it."""
    event = new_event(subject=operator_pb2.WEBHOOK_SUBJECT_OTHER, event_type="customer.created")
    assert receive(client.payment, event) == [True]
    stored = wait_for_event(client.payment, event, "IGNORED")
    request = operator_pb2.ReplayWebhookEventRequest(
        webhook_event_id=stored.webhook_event_id, reason="r"
    )
    assert expect_error_reason(client.payment.ReplayWebhookEvent, request) == "INVALID_STATE"
    assert provider.lookup_references == []


def test_an_event_about_an_unknown_charge_becomes_a_dead_letter(
    client: Client, provider: ReviewingProvider
) -> None:
    """After the tries of OUTCOME_UNKNOWN an operator decides: a retry fails again, and closing it
    ends the event.
    """
    event = new_event(reference="pi_of_nobody")
    receive(client.payment, event)
    stored = wait_for_event(client.payment, event, "RECEIVED")
    dead_letter = open_dead_letter(client.payment, stored.webhook_event_id)
    assert dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_OUTCOME_UNKNOWN
    assert "no operation with the reference pi_of_nobody" in dead_letter.detail
    assert provider.lookup_references == []
    retry_dead_letter(client, dead_letter)
    second = open_dead_letter(client.payment, stored.webhook_event_id)
    close_dead_letter(client, second)
    assert state_of(client.payment, event) == "CLOSED"
    # the dead letter's events are published: it was opened, and ended
    aggregate = f"deadLetters/{dead_letter.dead_letter_id}"
    assert eventually(lambda: event_versions(client, aggregate) == [1, 2])


def test_an_event_about_an_unknown_charge_does_not_touch_the_circuit(
    scratch_database: DatabaseUrls,
) -> None:
    """Nothing is asked of the provider: the event neither waits for an open circuit nor closes it,
    and becomes a dead letter.
    """
    provider = ReviewingProvider()
    settings = NO_POLLS.replace(
        breaker__failure_threshold=1,
        breaker__reset_timeout=3600,
        breaker__max_reset_timeout=3600,
    )
    dependencies = Dependencies(providers={"sandbox": provider})

    def waits_for_circuit(client: Client, event: operator_pb2.ReceivedWebhookEvent) -> bool:
        stored = wait_for_event(client.payment, event, "RECEIVED")
        return retry_reason(scratch_database, stored.webhook_event_id) == "CIRCUIT_OPEN"

    with (
        serve_platform(scratch_database, settings, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        pending_payment(client)
        provider.outcome_of = always(NotSent("no connection"))
        failing, unknown, later = (
            new_event(reference=reference) for reference in ("pi_1", "pi_of_nobody", "pi_1")
        )
        receive(client.payment, failing)
        assert eventually(lambda: waits_for_circuit(client, failing))
        receive(client.payment, unknown)
        stored = wait_for_event(client.payment, unknown, "RECEIVED")
        open_dead_letter(client.payment, stored.webhook_event_id)
        receive(client.payment, later)
        assert eventually(lambda: waits_for_circuit(client, later))
        assert len(provider.lookup_references) == 1


def test_a_retried_event_is_applied_once_its_charge_is_known(
    client: Client, provider: ReviewingProvider
) -> None:
    """An event that came before its charge was known is applied when its dead letter is retried."""
    event = new_event(reference="pi_1")
    receive(client.payment, event)
    stored = wait_for_event(client.payment, event, "RECEIVED")
    dead_letter = open_dead_letter(client.payment, stored.webhook_event_id)
    payment = pending_payment(client)
    provider.pay()
    retry_dead_letter(client, dead_letter)
    assert is_paid(client, payment)
    wait_for_event(client.payment, event, "APPLIED")


def test_events_leave_half_of_the_operations_in_flight_for_payments(
    scratch_database: DatabaseUrls,
) -> None:
    """While lookups hang, events above half of `max_in_flight` are stored and wait to be claimed,
    and a payment is accepted.
    """
    provider = ReviewingProvider()

    async def hold_lookups(is_holding: bool) -> None:
        (provider.lookup_gate.clear if is_holding else provider.lookup_gate.set)()

    with (
        serve_platform(
            scratch_database,
            NO_POLLS.replace(worker__max_in_flight=10),
            dependencies=Dependencies(providers={"sandbox": provider}),
        ) as platform,
        platform.client(tries=1) as client,
    ):
        pending_payment(client)
        platform.run_in_loop(hold_lookups, True)
        events = [new_event(reference="pi_1") for _ in range(10)]
        for event in events:
            assert receive(client.payment, event) == [True]
        assert eventually(lambda: payment_worker_of(platform).in_flight_count == 5)
        pending_payment(client)
        platform.run_in_loop(hold_lookups, False)
        for event in events:
            wait_for_event(client.payment, event, "APPLIED")


def test_an_event_waits_for_an_unreachable_provider(
    client: Client, provider: ReviewingProvider
) -> None:
    """A lookup without an answer is repeated, and the event stays RECEIVED until there is one."""
    payment = pending_payment(client)
    answers: list[ChargeLookupOutcome] = [NotSent("no connection")]

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        paid = Succeeded("pi_1", request.amount, request.currency, request.charge_id)
        return answers.pop() if answers else paid

    provider.outcome_of = outcome_of
    event = new_event(reference="pi_1")
    receive(client.payment, event)
    assert is_paid(client, payment)
    wait_for_event(client.payment, event, "APPLIED")
    assert len(provider.lookup_references) == 2


def test_an_answer_about_another_charge_is_not_applied(
    client: Client, provider: ReviewingProvider
) -> None:
    """The object that the event names echoes another charge: a dead letter at once, and no money
    moves.
    """
    payment = pending_payment(client)
    provider.outcome_of = lambda request: Succeeded(
        "pi_1", request.amount, request.currency, "o-of-another-payment"
    )
    event = new_event(reference="pi_1")
    receive(client.payment, event)
    stored = wait_for_event(client.payment, event, "RECEIVED")
    dead_letter = open_dead_letter(client.payment, stored.webhook_event_id)
    assert dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_MISMATCHED_OPERATION
    assert get_order(client, payment).payment_order_status == (
        payment_pb2.PAYMENT_ORDER_STATUS_PENDING
    )
    provider.pay()
    close_dead_letter(client, dead_letter)
    assert dead_letter_state(client, dead_letter) == "RESOLVED"
    assert is_paid(client, payment)


def test_closing_the_dead_letter_of_an_event_looks_a_known_success_up(
    client: Client, provider: ReviewingProvider
) -> None:
    """An event became a dead letter before its charge was known, and the charge succeeded later:
    closing applies the provider's answer.
    """
    event = new_event(reference="pi_1")
    receive(client.payment, event)
    stored = wait_for_event(client.payment, event, "RECEIVED")
    dead_letter = open_dead_letter(client.payment, stored.webhook_event_id)
    payment = pending_payment(client)
    provider.fee = ProviderFee(42, "EUR")
    provider.pay()
    receive(client.payment, new_event(reference="pi_1"))
    assert is_paid(client, payment)
    close_dead_letter(client, dead_letter)
    assert dead_letter_state(client, dead_letter) == "RESOLVED"
    assert state_of(client.payment, event) == "APPLIED"


def test_a_reference_of_another_charge_is_named_by_the_dead_letter(
    client: Client, provider: ReviewingProvider
) -> None:
    """The lookup reports the money of another charge: the dead letter names its reference."""
    provider.pay()
    create_payment(client, "5.00")
    provider.outcome_of = always(REVIEW)
    payment = pending_payment(client)
    provider.pay()
    event = new_event(reference="pi_2", client_reference=payment.payment_orders[0].charge_id)
    receive(client.payment, event)
    stored = wait_for_event(client.payment, event, "RECEIVED")
    dead_letter = open_dead_letter(client.payment, stored.webhook_event_id)
    assert dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_MISMATCHED_OPERATION
    assert "reference pi_1 belongs to another operation" in dead_letter.detail


def test_a_replayed_event_is_looked_up_again(client: Client, provider: ReviewingProvider) -> None:
    """An operator replays an event that was applied before the provider changed its answer."""
    payment = pending_payment(client)
    event = new_event(reference="pi_1")
    receive(client.payment, event)
    stored = wait_for_event(client.payment, event, "APPLIED")
    provider.pay()
    request = operator_pb2.ReplayWebhookEventRequest(
        webhook_event_id=stored.webhook_event_id, reason="paid meanwhile"
    )
    replayed = client.payment.ReplayWebhookEvent(request).webhook_event
    assert replayed.state == operator_pb2.WEBHOOK_EVENT_STATE_RECEIVED
    assert is_paid(client, payment)
    wait_for_event(client.payment, event, "APPLIED")


def test_a_replay_retries_the_dead_letter_of_its_event(
    client: Client, provider: ReviewingProvider
) -> None:
    """The open dead letter of a replayed event is RETRIED, with the operator's reason."""
    event = new_event(reference="pi_1")
    receive(client.payment, event)
    stored = wait_for_event(client.payment, event, "RECEIVED")
    dead_letter = open_dead_letter(client.payment, stored.webhook_event_id)
    payment = pending_payment(client)
    provider.pay()
    request = operator_pb2.ReplayWebhookEventRequest(
        webhook_event_id=stored.webhook_event_id, reason="the charge is known now"
    )
    client.payment.ReplayWebhookEvent(request)
    assert is_paid(client, payment)
    assert dead_letter_state(client, dead_letter) == "RETRIED"


def test_an_event_of_a_dead_process_is_applied_by_another(
    client: Client, provider: ReviewingProvider, platform: ServedPlatform
) -> None:
    """A process that died after it stored an event leaves a lease: after it, any process applies
    the event.
    """
    payment = pending_payment(client)
    provider.outcome_of = lambda _: Unknown("lost")
    event = new_event(reference="pi_1")
    receive(client.payment, event)
    assert eventually(lambda: provider.lookup_references)
    provider.pay()
    with psycopg.connect(platform.databases.service("payment").replace("+psycopg", "")) as other:
        other.execute(
            "update payment.operation set lease_token = lease_token + 1, next_try_time = clock(), "
            "is_leased = true, lease_until = clock() where kind = 'webhook_event'"
        )
    assert is_paid(client, payment)
    wait_for_event(client.payment, event, "APPLIED")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"provider": ""}, "events[0].provider"),
        ({"event_id": ""}, "events[0].event_id"),
        ({"event_id": "x" * 256}, "events[0].event_id"),
        ({"event_type": "two words"}, "events[0].event_type"),
        ({"subject": 0}, "events[0].subject"),
        ({"subject": 99}, "events[0].subject"),
        ({"reference": "caf\u00e9"}, "events[0].reference"),
        ({"client_reference": "4242424242424242"}, "events[0].client_reference"),
        ({"provider_time": None}, "events[0].provider_time"),
    ],
)
def test_a_malformed_event_is_rejected_and_nothing_is_stored(
    client: Client, values: dict[str, Any], field: str
) -> None:
    """The error names the field of the event."""
    good, bad = new_event(reference="pi_1"), new_event(**{"reference": "pi_1"} | values)
    with pytest.raises(TallystickError) as error:
        receive(client.payment, bad, good)
    assert [violation.field for violation in error.value.field_violations] == [field]
    assert find_event(client.payment, good) is None

"""Webhook events about payouts: looked up at the provider, and applied in any order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import pytest

from tallystick import Client
from tallystick.operator.v1 import operator_pb2
from tallystick_core.provider.outcome import (
    InTransit,
    PayoutOutcome,
    RetryReason,
    Returned,
    Submitted,
    Succeeded,
)
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    wait_for_state,
    wait_until_booked,
)
from tests.support.platform import serve_platform, unique_id
from tests.support.webhooks import new_event, open_dead_letter, receive, wait_for_event

NO_POLLS = Settings().replace(
    retry={
        ("", reason): RetryPolicy(RetryStrategy.FIXED, 3600, 3600, None)
        for reason in (RetryReason.PENDING, RetryReason.POST_COMPLETION_POLL)
    }
    | {("", RetryReason.OUTCOME_UNKNOWN): RetryPolicy(RetryStrategy.CANCEL)},
    worker__scan_interval=0.1,
)
"""A payout is looked up only because of a webhook."""


@pytest.fixture
def provider() -> ScriptedPayoutProvider:
    return ScriptedPayoutProvider()


@pytest.fixture
def client(scratch_database: DatabaseUrls, provider: ScriptedPayoutProvider) -> Iterator[Client]:
    dependencies = Dependencies(payout_providers={"sandbox": provider})
    with (
        serve_platform(scratch_database, NO_POLLS, dependencies=dependencies) as platform,
        platform.client() as sdk_client,
    ):
        yield sdk_client
    report = verify(scratch_database)
    assert report.passed, report.as_text()


def submitted_payout(client: Client, provider: ScriptedPayoutProvider, reference: str) -> str:
    """The id of a payout of 10.00 EUR that the provider has accepted."""
    seller = create_sale(client, "10.00")
    bank_account = create_destination(client, seller)
    provider.script[bank_account].append(Submitted(reference))
    payout_id = create_payout(client, seller).payout_id
    wait_for_state(client, payout_id, "SUBMITTED")
    return payout_id


def answer_lookups(provider: ScriptedPayoutProvider, outcome: PayoutOutcome) -> None:
    """Every lookup of the last payout is answered so from now on."""
    provider.outcomes_by_key[provider.submitted_requests[-1].key] = outcome


def payout_event(reference: str) -> operator_pb2.ReceivedWebhookEvent:
    return new_event(
        reference=reference,
        subject=operator_pb2.WEBHOOK_SUBJECT_PAYOUT,
        event_type="payout.changed",
    )


def test_events_bring_a_payout_to_its_end(client: Client, provider: ScriptedPayoutProvider) -> None:
    """Without polls, each event has the payout looked up, and moves it as the provider answers."""
    reference = unique_id("po")
    payout_id = submitted_payout(client, provider, reference)
    answers: list[tuple[PayoutOutcome, str]] = [
        (InTransit(reference), "IN_TRANSIT"),
        (Succeeded(reference, 1000, "EUR"), "PAID"),
        (Returned(reference, 1000, "EUR"), "RETURNED"),
    ]
    for outcome, state in answers:
        answer_lookups(provider, outcome)
        event = payout_event(reference)
        assert receive(client.payout, event) == [True]
        wait_for_state(client, payout_id, state)
        applied = wait_for_event(client.payout, event, "APPLIED")
        assert applied.resource_name == f"payouts/{payout_id}"
    wait_until_booked(client, payout_id, "10.00", "10.00")


def test_the_end_does_not_depend_on_the_order_of_events(
    client: Client, provider: ScriptedPayoutProvider, thorough: bool
) -> None:
    """H1: five answers of the provider, read in every order, end in one state with one booking.
    Thorough: all 120 orders.
    """
    for order in [*permutations(range(5))][:: 1 if thorough else 17]:
        reference = unique_id("po")
        payout_id = submitted_payout(client, provider, reference)
        outcomes: list[PayoutOutcome] = [
            Submitted(reference),
            InTransit(reference),
            Succeeded(reference, 1000, "EUR"),
            Succeeded(reference, 1000, "EUR"),
            Returned(reference, 1000, "EUR"),
        ]
        for index in order:
            answer_lookups(provider, outcomes[index])
            event = payout_event(reference)
            receive(client.payout, event)
            wait_for_event(client.payout, event, "APPLIED")
        wait_for_state(client, payout_id, "RETURNED")
        wait_until_booked(client, payout_id, "10.00", "10.00")


def test_an_event_about_an_unknown_payout_becomes_a_dead_letter(
    client: Client, provider: ScriptedPayoutProvider
) -> None:
    """The dead letter names the event, and shows it."""
    event = payout_event("po_of_nobody")
    receive(client.payout, event)
    stored = wait_for_event(client.payout, event, "RECEIVED")
    dead_letter = open_dead_letter(client.payout, stored.webhook_event_id)
    response = client.payout.GetDeadLetter(
        operator_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter.dead_letter_id)
    )
    assert response.webhook_event == stored
    assert not response.HasField("payout_destination")
    assert provider.lookup_requests == []

"""ExplainPayout: the story of a payout from its request to its next step, in one call."""

from __future__ import annotations

import time

import pytest

from tallystick import Client, InvalidArgumentError, NotFoundError
from tallystick.history.v1 import explanation_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    PayoutFailure,
    PayoutLookupOutcome,
    RetryReason,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
)
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import (
    DEFAULT_POLICIES,
    RetryPolicy,
    RetryStrategy,
)
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.explanations import actions, actors, explain_payout, sources, story
from tests.support.payout_operations import approve_payout, reject_payout
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    state_name,
    wait_for_state,
)
from tests.support.platform import (
    ServedPlatform,
    eventually,
    free_address,
    run_command,
    serve_platform,
    unique_id,
)
from tests.support.webhooks import new_event, receive

_ALWAYS_SLOW = Settings().replace(
    retry={
        ("", reason): RetryPolicy(RetryStrategy.FIXED, 600, 600, None)
        for reason in DEFAULT_POLICIES
    }
    | {("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL)},
    worker__scan_interval=0.1,
    worker__monitor_interval=0.2,
)
"""Whatever fails waits for ten minutes."""


def _create(
    client: Client, provider: ScriptedPayoutProvider, *outcomes: PayoutLookupOutcome
) -> str:
    """A payout of 10 EUR whose provider gives these answers; its id."""
    seller, payout_id = create_sale(client, "20.00"), unique_id("p")
    create_destination(client, seller)
    provider.script[payout_id].extend(outcomes)
    return create_payout(client, seller, "10.00", payout_id=payout_id).payout_id


def test_the_story_of_a_paid_payout_goes_from_the_request_to_the_ledger(
    payout_client: Client,
) -> None:
    """It has the request with its trace, the hold, the attempt with its key, the transfer, the
    booking, the entries of wallet, ledger and events, and the next poll.
    """
    seller = create_sale(payout_client, "20.00")
    destination_id = create_destination(payout_client, seller)
    payout = create_payout(payout_client, seller, "10.00")
    paid = wait_for_state(payout_client, payout.payout_id, "PAID").payout
    assert eventually(lambda: "EVENT" in sources(explain_payout(payout_client, payout.payout_id)))
    for id_ in (payout.payout_id, paid.provider_reference):
        explanation = explain_payout(payout_client, id_)
        assert (explanation.resource_name, explanation.state) == (
            f"payouts/{payout.payout_id}",
            "PAID",
        )
        request = pb.ExplainPayoutRequest(id=id_, name_only=True)
        found = payout_client.payout.ExplainPayout(request).explanation
        assert found == explanation_pb2.Explanation(resource_name=explanation.resource_name)
    assert not explanation.omissions
    text = story(explanation)
    for part in (
        f"dev created the payout of 10.00 EUR to the seller {seller}.",
        f"to the destination {destination_id}.",
        "WalletService held the money; the payout became READY.",
        f"idempotency key dev-p-{payout.payout_id}-1.",
        "Attempt 1 at sandbox ended: SUCCEEDED.",
        "sandbox reported a transfer of 10.00 EUR: EXACT.",
        "The payout became PAID, as the provider reported.",
        f"The wallet of {seller} has the entry HOLD_PLACED of 10.00 EUR.",
        f"The wallet of {seller} has the entry HOLD_CAPTURED of 10.00 EUR.",
        f"debit sellers/{seller} 10.00 EUR",
        "The payout was booked",
    ):
        assert part in text, part
    assert text.index("ended: SUCCEEDED") < text.index("became PAID")
    assert len(explanation.entries[0].trace_id) == 32
    assert actors(explanation) == ["PLATFORM"]
    assert "whether the seller's bank returned money" in actions(explanation)


@pytest.mark.parametrize(
    ("outcome", "state", "actor"),
    [(Submitted("tr_1"), "SUBMITTED", "PROVIDER"), (InTransit("tr_1"), "IN_TRANSIT", "BANK")],
)
def test_a_payout_in_progress_names_who_it_waits_for(
    scratch_database: DatabaseUrls, outcome: PayoutLookupOutcome, state: str, actor: str
) -> None:
    """And when the provider is polled next. The provider's id finds it before any transfer."""
    provider = ScriptedPayoutProvider()
    dependencies = Dependencies(payout_providers={"sandbox": provider})
    with (
        serve_platform(scratch_database, _ALWAYS_SLOW, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        payout_id = _create(client, provider, outcome)
        wait_for_state(client, payout_id, state)
        assert eventually(lambda: "last answer" in actions(explain_payout(client, payout_id)))
        explanation = explain_payout(client, "tr_1")
        assert explanation.resource_name == f"payouts/{payout_id}"
        assert actors(explanation) == [actor, "PLATFORM"]
        assert 500 < explanation.next_steps[1].time.seconds - time.time() < 601


def test_a_retry_names_its_reason_the_last_answer_and_its_time(
    scratch_database: DatabaseUrls,
) -> None:
    """A lost answer: the same idempotency key is sent again."""
    provider = ScriptedPayoutProvider()
    dependencies = Dependencies(payout_providers={"sandbox": provider})
    with (
        serve_platform(scratch_database, _ALWAYS_SLOW, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        lost = Unknown("connection reset", request_id="req_1")
        payout_id = _create(client, provider, lost)
        assert eventually(lambda: "last answer" in actions(explain_payout(client, payout_id)))
        explanation = explain_payout(client, payout_id)
        entry = explanation.entries[-1]
        assert f"The try to send the payout {payout_id} to sandbox failed" in entry.title
        assert "The provider's id of the request is req_1." in entry.detail
        (step,) = explanation.next_steps
        assert "again, under the same idempotency key" in step.action
        assert '"connection reset"' in step.action
        assert 500 < step.time.seconds - time.time() < 601


def test_a_dead_letter_waits_for_an_operator(scratch_database: DatabaseUrls) -> None:
    """The operator's step names it, and its alert is an entry."""
    provider = ScriptedPayoutProvider()
    dependencies = Dependencies(payout_providers={"sandbox": provider})
    with (
        serve_platform(scratch_database, _ALWAYS_SLOW, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        payout_id = _create(client, provider, Unknown("status 400", RetryReason.REJECTED))
        assert eventually(lambda: "ALERT" in sources(explain_payout(client, payout_id)))
        explanation = explain_payout(client, payout_id)
        assert actors(explanation) == ["OPERATOR"]
        assert f"retry or close the dead letter payouts-{payout_id}-1" in actions(explanation)
        assert "It is a dead letter and waits for an operator." in explanation.summary


def test_an_approval_names_who_must_act_and_who_acted(
    approver_client: Client, operator_client: Client
) -> None:
    """Above the threshold a second person must act; the decision, its person and its reason are
    part of the story.
    """
    seller = create_sale(approver_client, "300.00")
    create_destination(approver_client, seller)
    payout = create_payout(approver_client, seller, "100.01")
    assert state_name(payout) == "AWAITING_APPROVAL"
    explanation = explain_payout(operator_client, payout.payout_id)
    assert actors(explanation) == ["OPERATOR"]
    assert "An operator other than approver must approve or reject" in actions(explanation)
    approve_payout(operator_client, payout.payout_id)
    wait_for_state(approver_client, payout.payout_id, "PAID")
    text = story(explain_payout(operator_client, payout.payout_id))
    assert 'operator approved the payout. Reason: "checked".' in text
    second = create_payout(approver_client, seller, "100.01")
    reject_payout(operator_client, second.payout_id)
    wait_for_state(approver_client, second.payout_id, "REJECTED")
    explanation = explain_payout(operator_client, second.payout_id)
    assert "operator rejected the payout." in story(explanation)
    assert actors(explanation) == ["NOBODY"]


def test_a_cancelled_payout_is_available_again(
    approver_client: Client, operator_client: Client
) -> None:
    """The caller who cancelled and the released hold are part of the story."""
    seller = create_sale(approver_client, "300.00")
    create_destination(approver_client, seller)
    payout = create_payout(approver_client, seller, "100.01")
    approver_client.payout.CancelPayout(
        pb.CancelPayoutRequest(payout_id=payout.payout_id, reason="wrong amount")
    )
    wait_for_state(approver_client, payout.payout_id, "CANCELLED")
    explanation = explain_payout(operator_client, payout.payout_id)
    assert 'approver cancelled the payout. Reason: "wrong amount".' in story(explanation)
    assert "the entry HOLD_RELEASED of 100.01 EUR" in story(explanation)
    assert actors(explanation) == ["NOBODY"]


def test_a_failed_payout_names_its_reason_and_what_to_change(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """A rejected account needs another destination; the provider is still polled."""
    declined = Declined(PayoutFailure.DESTINATION_REJECTED, "account_closed", "tr_closed")
    payout_id = _create(payout_client, payout_provider, declined)
    wait_for_state(payout_client, payout_id, "FAILED")
    explanation = explain_payout(payout_client, payout_id)
    assert "the destination is UNUSABLE." in explanation.summary
    assert 'The provider\'s code is "account_closed".' in explanation.summary
    assert "whether it was paid after all" in actions(explanation)


def test_a_return_and_an_unmatched_transfer_are_part_of_the_story(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """The return with its postings; a transfer of another amount waits for an operator."""
    returned = Returned("tr_returned", 1000, "EUR", "account_closed")
    payout_id = _create(payout_client, payout_provider, returned)
    wait_for_state(payout_client, payout_id, "RETURNED")
    text = story(explain_payout(payout_client, "tr_returned"))
    assert "the seller's bank returned 10.00 EUR." in text
    assert "PAYOUT_RETURN" in text
    mismatched = _create(payout_client, payout_provider, Succeeded("tr_other", 900, "EUR"))
    wait_for_state(payout_client, mismatched, "FAILED")
    explanation = explain_payout(payout_client, mismatched)
    assert actors(explanation)[0] == "OPERATOR"
    assert "clarify the transfer tr_other of 9.00 EUR with sandbox" in actions(explanation)
    assert "of the kind PAYOUT" in story(explanation)
    assert "the entry DEBIT of 9.00 EUR" in story(explanation)


def test_a_webhook_event_is_part_of_the_story(payout_client: Client) -> None:
    """With the provider's id of the event."""
    seller = create_sale(payout_client, "20.00")
    create_destination(payout_client, seller)
    payout_id = create_payout(payout_client, seller, "10.00").payout_id
    paid = wait_for_state(payout_client, payout_id, "PAID").payout
    event = new_event(
        reference=paid.provider_reference,
        event_type="payout.paid",
        subject=2,
    )
    receive(payout_client.payout, event)
    entries = explain_payout(payout_client, payout_id).entries
    assert event.event_id in [entry.reference for entry in entries]


def test_a_webhook_event_that_names_only_the_payout_is_part_of_the_story(
    payout_client: Client,
) -> None:
    """A provider may echo the platform's id alone."""
    seller = create_sale(payout_client, "20.00")
    create_destination(payout_client, seller)
    payout_id = create_payout(payout_client, seller, "10.00").payout_id
    wait_for_state(payout_client, payout_id, "PAID")
    event = new_event(reference="", client_reference=payout_id, event_type="payout.paid", subject=2)
    receive(payout_client.payout, event)
    entries = explain_payout(payout_client, payout_id).entries
    assert event.event_id in [entry.reference for entry in entries]


def test_another_owners_payout_is_not_found_by_any_id(
    approver_client: Client, other_client: Client
) -> None:
    """The owner reads the story without what only operators read."""
    seller = create_sale(approver_client, "20.00")
    create_destination(approver_client, seller)
    payout_id = create_payout(approver_client, seller, "10.00").payout_id
    paid = wait_for_state(approver_client, payout_id, "PAID").payout
    explanation = explain_payout(approver_client, paid.provider_reference)
    assert explanation.resource_name == f"payouts/{payout_id}"
    for id_ in (payout_id, paid.provider_reference, "missing"):
        with pytest.raises(NotFoundError):
            explain_payout(other_client, id_)


def test_a_service_that_does_not_answer_is_named(scratch_database: DatabaseUrls) -> None:
    """The call is answered all the same, within seconds: without the entries of that service."""
    with serve_platform(scratch_database) as platform, platform.client() as client:
        seller = create_sale(client, "20.00")
        create_destination(client, seller)
        payout_id = create_payout(client, seller, "10.00").payout_id
        wait_for_state(client, payout_id, "PAID")
    addresses = {"wallet": free_address(), "ledger": free_address(), "event": free_address()}
    settings = Settings().replace(service_addresses=addresses)
    with (
        serve_platform(scratch_database, settings, names=("payout",)) as platform,
        platform.client() as client,
    ):
        start = time.monotonic()
        explanation = explain_payout(client, payout_id)
        assert time.monotonic() - start < 5
        assert "The provider's id of the request is req_" in story(explanation)
        assert explanation.omissions == [
            f"{name} did not answer; its entries are missing."
            for name in ("WalletService", "LedgerService", "EventService")
        ]


def test_the_command_finds_a_payout(payout_platform: ServedPlatform, payout_client: Client) -> None:
    """By its id, after no payment has it."""
    seller = create_sale(payout_client, "20.00")
    create_destination(payout_client, seller)
    payout_id = create_payout(payout_client, seller, "10.00").payout_id
    wait_for_state(payout_client, payout_id, "PAID")
    completed = run_command("explain", payout_id, "--address", payout_platform.address)
    assert completed.stdout.splitlines()[0] == f"payouts/{payout_id}: PAID"


def test_an_invalid_id_names_the_field(payout_client: Client) -> None:
    """A clear error, not an empty story."""
    with pytest.raises(InvalidArgumentError) as error:
        explain_payout(payout_client, "")
    assert error.value.message == "id is required: an id of the platform, or a provider's id."

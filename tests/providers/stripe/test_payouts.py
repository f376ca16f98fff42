"""Payouts of Stripe: two movements, and the reversal of the first when the second fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    NotSent,
    PayoutFailure,
    PayoutLookupOutcome,
    ProviderOutcome,
    RetryReason,
    Submitted,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.providers.stripe.errors import NoAnswer, NotConnected
from tallystick_server.providers.stripe.payouts import StripePayouts
from tests.providers.stripe.scripted_stripe import (
    TERMS,
    Answer,
    ScriptedTransport,
    api_of,
    error,
)

REQUEST = PayoutRequest("dev-p-p1-1", "p1", 900, "EUR", "acct_1")
WITH_REFERENCE = replace(REQUEST, reference="tr_1")
TRANSFER, READ_TRANSFER = "POST /v1/transfers", "GET /v1/transfers/tr_1"
LIST_TRANSFERS, REVERSE = "GET /v1/transfers", "POST /v1/transfers/tr_1/reversals"
PAYOUT, READ_PAYOUT, LIST_PAYOUTS = (
    "POST /v1/payouts",
    "GET /v1/payouts/po_1",
    "GET /v1/payouts",
)
EVENTS = "GET /v1/events"
METADATA = {"payout_id": "p1", "key": "dev-p-p1-1"}
CREATED = 1_780_000_000
"""Seconds since 1970: 28 May 2026, 20:26:40 UTC."""
REVERSAL = {"id": "trr_1", "object": "transfer_reversal"}


def transfer(**changes: Any) -> dict[str, Any]:
    return {
        "id": "tr_1",
        "object": "transfer",
        "amount": 900,
        "currency": "eur",
        "created": CREATED,
        "metadata": METADATA,
        "reversed": False,
        "reversals": page(),
        **changes,
    }


def payout(status: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": "po_1",
        "object": "payout",
        "status": status,
        "amount": 900,
        "currency": "eur",
        "created": CREATED + 5,
        "failure_code": None,
        "metadata": METADATA | {"transfer": "tr_1"},
        **changes,
    }


def page(*objects: dict[str, Any], has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": list(objects), "has_more": has_more}


def paid_event(payout_id: str) -> dict[str, Any]:
    return {"id": f"evt_{payout_id}", "data": {"object": {"id": payout_id}}}


def reversed_transfer(outcome: str, code: str, **changes: Any) -> dict[str, Any]:
    """A transfer that the platform has reversed, and why."""
    metadata = {"outcome": outcome, "code": code, **changes}
    return transfer(reversed=True, reversals=page(REVERSAL | {"metadata": metadata}))


def new_transport() -> ScriptedTransport:
    """A Stripe that makes transfers."""
    transport = ScriptedTransport()
    transport.script(TRANSFER, transfer())
    return transport


def submit(transport: ScriptedTransport, request: PayoutRequest = REQUEST) -> ProviderOutcome:
    async def work() -> Sequence[ProviderOutcome]:
        return await StripePayouts(TERMS, api_of(transport)).submit([request])

    (outcome,) = asyncio.run(work())
    return outcome


def look_up(
    transport: ScriptedTransport, request: PayoutRequest = WITH_REFERENCE
) -> PayoutLookupOutcome:
    return asyncio.run(StripePayouts(TERMS, api_of(transport)).look_up(request))


def test_a_payout_is_two_movements_with_two_keys() -> None:
    """The transfer goes to the connected account, the payout from there to its bank; both keys come
    from that of the attempt, and both carry the ids of the platform.
    """
    transport = new_transport()
    transport.script(PAYOUT, payout("pending"))
    assert submit(transport) == Submitted("tr_1")
    first, second = transport.requests
    assert (first.key, second.key) == ("dev-p-p1-1-transfer", "dev-p-p1-1-payout")
    assert first.values == {
        "amount": "900",
        "currency": "eur",
        "destination": "acct_1",
        "transfer_group": "p1",
        "metadata[payout_id]": "p1",
        "metadata[key]": "dev-p-p1-1",
    }
    assert "Stripe-Account" not in first.headers
    assert second.headers["Stripe-Account"] == "acct_1"
    assert second.values == {
        "amount": "900",
        "currency": "eur",
        "metadata[payout_id]": "p1",
        "metadata[key]": "dev-p-p1-1",
        "metadata[transfer]": "tr_1",
    }


def test_a_rejected_transfer_moves_nothing() -> None:
    """A definite rejection of the first movement is the end; what is not definite is unknown."""
    for code, reason in (
        ("balance_insufficient", PayoutFailure.PROVIDER_DECLINED),
        ("insufficient_capabilities_for_transfer", PayoutFailure.DESTINATION_REJECTED),
        ("amount_too_large", PayoutFailure.PROVIDER_REJECTED),
    ):
        transport = ScriptedTransport()
        transport.script(TRANSFER, error(400, "invalid_request_error", code))
        assert submit(transport) == Declined(reason, code)
    transport.script(
        TRANSFER,
        error(400, "invalid_request_error", "resource_missing", param="destination"),
    )
    outcome = submit(transport)
    assert isinstance(outcome, Declined)
    assert outcome.reason is PayoutFailure.DESTINATION_REJECTED
    transport.script(TRANSFER, error(400, "invalid_request_error", "parameter_unknown"))
    assert isinstance(submit(transport), Unknown)
    transport.script(TRANSFER, NotConnected("no server"))
    assert isinstance(submit(transport), NotSent)


def test_a_rejected_payout_takes_its_transfer_back_first() -> None:
    """Only the confirmed reversal is a decline; Stripe keeps the reason with it."""
    transport = new_transport()
    transport.script(PAYOUT, error(400, "invalid_request_error", "payouts_not_allowed"))
    transport.script(LIST_PAYOUTS, page())
    transport.script(REVERSE, REVERSAL)
    expected = Declined(PayoutFailure.DESTINATION_REJECTED, "payouts_not_allowed", "tr_1")
    assert submit(transport) == expected
    (reversal,) = transport.sent(REVERSE)
    assert reversal.values == {
        "amount": "900",
        "metadata[outcome]": "DESTINATION_REJECTED",
        "metadata[code]": "payouts_not_allowed",
    }
    transport.script(
        READ_TRANSFER, reversed_transfer("DESTINATION_REJECTED", "payouts_not_allowed")
    )
    assert look_up(transport) == expected


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (NoAnswer("reset"), RetryReason.NO_ANSWER),
        (NotConnected("no server"), RetryReason.NO_ANSWER),
        (error(500, "api_error"), RetryReason.SERVER_ERROR),
        (
            error(400, "invalid_request_error", "balance_insufficient"),
            RetryReason.REJECTED,
        ),
        (error(429, "api_error", "rate_limit"), RetryReason.THROTTLED),
    ],
)
def test_a_reversal_without_an_answer_is_unknown(failure: Any, reason: RetryReason) -> None:
    """The hold must not be released while the money may be with the seller's account. If the
    reversal was made nevertheless, the transfer says so.
    """
    transport = new_transport()
    transport.script(PAYOUT, error(400, "invalid_request_error", "payouts_not_allowed"))
    transport.script(LIST_PAYOUTS, page())
    transport.script(REVERSE, failure)
    transport.script(READ_TRANSFER, transfer())
    outcome = submit(transport)
    assert isinstance(outcome, Unknown)
    assert (outcome.reference, outcome.retry_reason) == ("tr_1", reason)
    transport.script(READ_TRANSFER, reversed_transfer("PROVIDER_DECLINED", "failed"))
    assert submit(transport) == Declined(PayoutFailure.PROVIDER_DECLINED, "failed", "tr_1")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (NoAnswer("reset"), RetryReason.NO_ANSWER),
        (NotConnected("no server"), RetryReason.NO_ANSWER),
        (error(500, "api_error"), RetryReason.SERVER_ERROR),
        (error(409, "idempotency_error", "idempotency_key_in_use"), RetryReason.THROTTLED),
        (error(400, "invalid_request_error", "parameter_missing"), RetryReason.REJECTED),
        (error(403, "invalid_request_error", "account_invalid"), RetryReason.REJECTED),
        (error(403, "invalid_request_error", "payouts_not_allowed"), RetryReason.UNAUTHORIZED),
    ],
)
def test_a_payout_without_an_answer_is_unknown_and_keeps_its_transfer(
    failure: Any, reason: RetryReason
) -> None:
    """Nothing is reversed while the payout may exist, even if it was certainly not sent this time:
    the transfer was.
    """
    transport = new_transport()
    transport.script(PAYOUT, failure)
    outcome = submit(transport)
    assert isinstance(outcome, Unknown)
    assert (outcome.reference, outcome.retry_reason) == ("tr_1", reason)
    assert not transport.sent(REVERSE)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("pending", Submitted("tr_1")),
        ("in_transit", InTransit("tr_1")),
        ("paid", Succeeded("tr_1", 900, "EUR")),
    ],
)
def test_a_rejected_repeat_does_not_take_back_what_is_being_paid(
    status: str, expected: ProviderOutcome
) -> None:
    """An earlier request under the same key may have created the payout, so it is looked for before
    the transfer is reversed.
    """
    transport = new_transport()
    transport.script(PAYOUT, error(400, "invalid_request_error", "payouts_not_allowed"))
    transport.script(LIST_PAYOUTS, page(payout(status)))
    assert submit(transport) == expected
    assert not transport.sent(REVERSE)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (NotConnected("no server"), RetryReason.NO_ANSWER),
        (error(403, "invalid_request_error", "account_invalid"), RetryReason.REJECTED),
        (error(403, "invalid_request_error"), RetryReason.UNAUTHORIZED),
        (error(500, "api_error"), RetryReason.SERVER_ERROR),
    ],
)
def test_a_rejected_payout_that_cannot_be_looked_for_is_unknown(
    failure: Any, reason: RetryReason
) -> None:
    """Its transfer is not reversed: the payout may exist."""
    transport = new_transport()
    transport.script(PAYOUT, error(400, "invalid_request_error", "account_closed"))
    transport.script(LIST_PAYOUTS, failure)
    outcome = submit(transport)
    assert isinstance(outcome, Unknown)
    assert (outcome.reference, outcome.retry_reason) == ("tr_1", reason)
    assert not transport.sent(REVERSE)


def test_a_replayed_payout_is_read_again() -> None:
    """Stripe replays the first answer of a key, which says nothing about now."""
    transport = new_transport()
    replayed = {"Idempotent-Replayed": "true"}
    transport.script(PAYOUT, Answer(body=payout("pending"), headers=replayed))
    transport.script(READ_PAYOUT, payout("paid"))
    assert submit(transport) == Succeeded("tr_1", 900, "EUR")
    (request,) = transport.sent(READ_PAYOUT)
    assert request.headers["Stripe-Account"] == "acct_1"


def test_a_reversed_transfer_is_never_paid_out() -> None:
    """A repeat whose transfer was reversed meanwhile has its recorded outcome: a payout would take
    other money of the account.
    """
    transport = ScriptedTransport()
    transport.script(TRANSFER, Answer(body=transfer(), headers={"Idempotent-Replayed": "true"}))
    transport.script(READ_TRANSFER, reversed_transfer("PROVIDER_DECLINED", "could_not_process"))
    expected = Declined(PayoutFailure.PROVIDER_DECLINED, "could_not_process", "tr_1")
    assert submit(transport) == expected
    transport.script(READ_TRANSFER, transfer(reversed=True))
    transport.script(LIST_PAYOUTS, page())
    assert submit(transport) == Declined(
        PayoutFailure.PROVIDER_DECLINED, "transfer_reversed", "tr_1"
    )
    assert not transport.sent(PAYOUT)


def test_another_payout_is_never_reversed() -> None:
    """An answer about another payout is not this one's, and no money is taken back by mistake."""
    foreign = {"payout_id": "p2", "key": "dev-p-p2-1"}
    transport = ScriptedTransport()
    transport.script(TRANSFER, transfer(metadata=foreign))
    transport.script(READ_TRANSFER, transfer(metadata=foreign))
    outcomes = [submit(transport), look_up(transport)]
    transport = new_transport()
    transport.script(PAYOUT, payout("failed", metadata=foreign))
    outcomes.append(submit(transport))
    for outcome in outcomes:
        assert isinstance(outcome, Unknown)
        assert outcome.retry_reason is RetryReason.MISMATCHED_OPERATION


def test_an_account_that_is_none_is_rejected_without_a_request() -> None:
    """A token of another provider, or an account number, never leaves the platform."""
    for token in ("ba_1", "DE89370400440532013000", "acct_", "acct_ 1", ""):
        transport = ScriptedTransport()
        request = replace(REQUEST, bank_account_token=token)
        for outcome in (submit(transport, request), look_up(transport, request)):
            assert isinstance(outcome, Declined)
            assert outcome.reason is PayoutFailure.DESTINATION_REJECTED
        assert not transport.requests


def test_a_payout_that_stripe_cannot_write_is_looked_up() -> None:
    """An earlier release may have sent it. It is never sent, nor declined without a proof."""
    request = replace(REQUEST, currency="HUF", amount=150)
    transport = ScriptedTransport()
    transport.script(LIST_TRANSFERS, page(), page(transfer(currency="huf")))
    transport.script(LIST_PAYOUTS, page(payout("paid", currency="huf")))
    outcome = submit(transport, request)
    assert isinstance(outcome, Unknown)
    assert outcome.retry_reason is RetryReason.REJECTED
    assert submit(transport, request) == Succeeded("tr_1", 900, "HUF")
    assert not transport.sent(TRANSFER)


def test_an_amount_is_rejected_by_its_rule() -> None:
    """As `PayoutProvider.reject_amount` says before a payout is stored."""
    payouts = StripePayouts(TERMS, api_of(ScriptedTransport()))
    assert payouts.reject_amount(150, "HUF") == "must be whole units of HUF in payouts by Stripe"
    assert payouts.reject_amount(200, "HUF") is None

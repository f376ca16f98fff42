"""Lookups of Stripe's payouts: what is found, and when nothing can arrive any more."""

from __future__ import annotations

import pytest

from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    PayoutFailure,
    ProviderOutcome,
    Submitted,
    Succeeded,
    Unknown,
)
from tests.providers.stripe.scripted_stripe import Answer, ScriptedTransport, error
from tests.providers.stripe.test_payouts import (
    CREATED,
    LIST_PAYOUTS,
    LIST_TRANSFERS,
    METADATA,
    READ_TRANSFER,
    REQUEST,
    REVERSAL,
    REVERSE,
    WITH_REFERENCE,
    look_up,
    page,
    payout,
    transfer,
)

SAME_DAY = {"Date": "Thu, 28 May 2026 21:00:00 GMT"}
TWO_DAYS_LATER = {"Date": "Sat, 30 May 2026 21:00:00 GMT"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("pending", Submitted("tr_1")),
        ("in_transit", InTransit("tr_1")),
        ("paid", Succeeded("tr_1", 900, "EUR")),
    ],
)
def test_a_payout_is_followed_by_its_transfer(status: str, expected: ProviderOutcome) -> None:
    """A lookup finds the transfer by its reference, or among those of the payout; the payout among
    those of the account since then; and reports both under the transfer's id.
    """
    for request in (WITH_REFERENCE, REQUEST):
        transport = ScriptedTransport()
        transport.script(READ_TRANSFER, transfer())
        other = transfer(id="tr_2", metadata=METADATA | {"key": "prod-p-p1-1"})
        transport.script(LIST_TRANSFERS, page(other, transfer()))
        unrelated = payout("failed", id="po_2", metadata={})
        transport.script(LIST_PAYOUTS, page(unrelated, has_more=True), page(payout(status)))
        assert look_up(transport, request) == expected
        first_page, second_page = transport.sent(LIST_PAYOUTS)
        assert int(first_page.values["created[gte]"]) == CREATED - 300
        assert second_page.values["starting_after"] == "po_2"


def test_a_transfer_without_a_payout_is_reversed_only_once_nothing_can_arrive() -> None:
    """While the key is honored, the payout may be in flight: unknown, with the transfer that holds
    its money. Afterwards it never comes; the age is by Stripe's own clock.
    """
    transport = ScriptedTransport()
    transport.script(LIST_PAYOUTS, page())
    transport.script(REVERSE, REVERSAL)
    for headers in ({}, SAME_DAY):
        transport.script(READ_TRANSFER, Answer(body=transfer(), headers=headers))
        outcome = look_up(transport)
        assert isinstance(outcome, Unknown)
        assert outcome.reference == "tr_1"
    assert not transport.sent(REVERSE)
    transport.script(READ_TRANSFER, Answer(body=transfer(), headers=TWO_DAYS_LATER))
    expected = Declined(PayoutFailure.PROVIDER_DECLINED, "payout_not_created", "tr_1")
    assert look_up(transport) == expected


def test_a_payout_without_its_key_is_never_taken_back() -> None:
    """The owner of a connected account can change the metadata of its payouts, so a payout of the
    same amount without a key may be the one that is looked for.
    """
    transport = ScriptedTransport()
    transport.script(READ_TRANSFER, Answer(body=transfer(), headers=TWO_DAYS_LATER))
    transport.script(REVERSE, REVERSAL)
    transport.script(LIST_PAYOUTS, page(payout("paid", metadata={})))
    outcome = look_up(transport)
    assert isinstance(outcome, Unknown)
    assert outcome.reference == "tr_1"
    assert not transport.sent(REVERSE)
    other_amount = payout("paid", metadata={}, amount=901)
    another = payout("paid", metadata={"key": "dev-p-p2-1"})
    transport.script(LIST_PAYOUTS, page(other_amount, another))
    assert isinstance(look_up(transport), Declined)


def test_a_known_transfer_is_never_not_found() -> None:
    """Stripe deletes no transfer; and one may be among more pages of a list."""
    transport = ScriptedTransport()
    missing = error(404, "invalid_request_error", "resource_missing", param="transfer")
    transport.script(READ_TRANSFER, missing)
    assert isinstance(look_up(transport), Unknown)
    other = transfer(id="tr_2", metadata=METADATA | {"key": "prod-p-p1-1"})
    transport.script(LIST_TRANSFERS, page(other, has_more=True))
    assert isinstance(look_up(transport, REQUEST), Unknown)

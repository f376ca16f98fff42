"""Whether Stripe can pay out from a connected account."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tallystick_core.provider.outcome import (
    Declined,
    NotSent,
    PayoutFailure,
    Pending,
    Unknown,
    VerificationOutcome,
    Verified,
)
from tallystick_server.providers.stripe.errors import NotConnected
from tallystick_server.providers.stripe.payouts import StripePayouts
from tests.providers.stripe.scripted_stripe import TERMS, ScriptedTransport, api_of, error

ACCOUNT = "GET /v1/accounts/acct_1"


def verify(answer: Any, account: str = "acct_1", currency: str = "EUR") -> VerificationOutcome:
    transport = ScriptedTransport()
    transport.script(ACCOUNT, answer)
    return asyncio.run(StripePayouts(TERMS, api_of(transport)).verify(account, currency))


def account(**changes: Any) -> dict[str, Any]:
    return {"id": "acct_1", "object": "account", "payouts_enabled": True, **changes}


def bank(currency: str | None, **changes: Any) -> dict[str, Any]:
    return {"id": "ba_1", "object": "bank_account", "currency": currency, **changes}


def accounts(*external_accounts: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": list(external_accounts), "has_more": False}


def banks(*currencies: str) -> dict[str, Any]:
    return accounts(*map(bank, currencies))


def only(**changes: Any) -> dict[str, Any]:
    """A connected account with one external account: in euros, if not changed."""
    return account(external_accounts=accounts(bank("eur") | changes))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (account(), Verified),
        (account(external_accounts=banks("usd", "eur")), Verified),
        (account(external_accounts=banks("usd")), Declined),
        (account(external_accounts=banks()), Declined),
        (only(status="new"), Verified),
        (only(status="verified"), Verified),
        (only(status="errored"), Declined),
        (only(status="verification_failed"), Declined),
        (only(object="card"), Declined),
        (only(currency=None), Declined),
        (account(external_accounts=accounts(bank(None), bank("eur"))), Verified),
        (account(external_accounts=accounts({"object": "card"}, bank("eur"))), Verified),
        (account(external_accounts=banks("usd") | {"has_more": True}), Unknown),
        (account(external_accounts=banks("eur") | {"has_more": True}), Verified),
        (account(capabilities={"transfers": "active"}), Verified),
        (account(capabilities={"transfers": "inactive", "card_payments": "active"}), Pending),
        (account(capabilities={"transfers": "pending"}), Pending),
        (account(capabilities={"card_payments": "active"}), Pending),
        (account(capabilities={"legacy_payments": "active"}), Verified),
        (account(payouts_enabled=False), Pending),
        (
            account(payouts_enabled=False, requirements={"disabled_reason": "under_review"}),
            Pending,
        ),
        (
            account(payouts_enabled=False, requirements={"disabled_reason": "rejected.fraud"}),
            Declined,
        ),
        (error(403, "invalid_request_error", "account_invalid"), Declined),
        (error(404, "invalid_request_error", "resource_missing"), Declined),
        (error(401, "invalid_request_error"), Unknown),
        (error(500, "api_error"), Unknown),
        (account(payouts_enabled="yes"), Unknown),
        (NotConnected("no server"), NotSent),
    ],
)
def test_an_account_is_verified_for_a_currency(answer: Any, kind: type) -> None:
    """Stripe must transfer to it and pay out from it, and it must have a bank account in the
    currency that has not failed, as far as the platform may see them. A card is none.
    """
    outcome = verify(answer)
    assert isinstance(outcome, kind)
    if isinstance(outcome, Declined):
        assert outcome.reason is PayoutFailure.DESTINATION_REJECTED


def test_another_token_is_no_account() -> None:
    """It is rejected without a request."""
    for token in ("ba_1", "DE89370400440532013000", ""):
        assert isinstance(verify({}, token), Declined)

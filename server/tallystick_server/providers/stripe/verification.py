"""Whether a connected account can be paid from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallystick_core.provider.outcome import (
    Declined,
    PayoutFailure,
    Pending,
    PendingReason,
    VerificationOutcome,
    Verified,
)
from tallystick_server.providers.stripe.json_fields import (
    read_flag,
    read_objects,
    read_optional_table,
    read_optional_text,
    require_kind,
    require_last_page,
)

_FAILED_STATUSES = ("errored", "verification_failed")
"""The statuses of a bank account to which a payout, or its verification, has failed."""
_TRANSFER_CAPABILITIES = ("transfers", "legacy_payments")
"""Stripe transfers to an account of which one of them is active."""


def to_verification(account: Mapping[str, Any], currency: str) -> VerificationOutcome:
    """Whether Stripe can pay out from a connected account in a currency. Raises ValueError."""
    require_kind(account, "account")
    requirements = read_optional_table(account, "requirements")
    disabled_reason = read_optional_text(requirements, "disabled_reason")
    if not (read_flag(account, "payouts_enabled") and _can_receive(account)):
        if disabled_reason.startswith("rejected."):
            return Declined(PayoutFailure.DESTINATION_REJECTED, disabled_reason)
        return Pending(PendingReason.PROVIDER_REVIEW)
    bank_accounts = read_optional_table(account, "external_accounts")
    if not bank_accounts:  # the platform may not see them
        return Verified()
    currencies = {
        read_optional_text(external_account, "currency").upper()
        for external_account in read_objects(bank_accounts)
        if external_account.get("object") == "bank_account"
        and external_account.get("status") not in _FAILED_STATUSES
    }
    if currency in currencies:
        return Verified()
    require_last_page(bank_accounts)
    return Declined(PayoutFailure.DESTINATION_REJECTED, "no_bank_account_in_currency")


def _can_receive(account: Mapping[str, Any]) -> bool:
    """Whether Stripe transfers to the account, as far as the platform may see it."""
    capabilities = read_optional_table(account, "capabilities")
    return not capabilities or any(
        capabilities.get(name) == "active" for name in _TRANSFER_CAPABILITIES
    )

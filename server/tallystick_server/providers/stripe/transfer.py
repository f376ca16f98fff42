"""The two movements of a payout: a Transfer to a connected account, and a Payout from there to the
seller's bank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    PayoutFailure,
    PayoutOutcome,
    Returned,
    Submitted,
    Succeeded,
)
from tallystick_server.providers.stripe.client import Answer
from tallystick_server.providers.stripe.json_fields import (
    read_flag,
    read_number,
    read_objects,
    read_optional_table,
    read_optional_text,
    read_text,
    require_kind,
)
from tallystick_server.providers.stripe.money import from_stripe_amount

PAYOUT_STATUSES = frozenset({"pending", "in_transit", "paid", "failed", "canceled"})
REJECTED_ACCOUNT_CODES = frozenset(
    {
        "account_closed",
        "account_frozen",
        "bank_account_restricted",
        "bank_ownership_changed",
        "debit_not_authorized",
        "incorrect_account_holder_address",
        "incorrect_account_holder_name",
        "incorrect_account_holder_tax_id",
        "invalid_account_number",
        "invalid_account_number_length",
        "invalid_currency",
        "no_account",
        "unsupported_card",
    }
)
"""The codes of failed payouts whose bank account cannot be paid to. They are not the codes of
rejected requests.
"""
_RETURNED = "RETURNED"


@dataclass(frozen=True, slots=True)
class Transfer:
    """What the platform uses of a Transfer."""

    id: str
    amount: int
    """As Stripe writes it."""
    create_time: int
    """Seconds since 1970."""
    age_seconds: float
    """By Stripe's clock; 0: the answer does not say."""
    key: str
    """The idempotency key of the payout that it belongs to."""
    payout_id: str
    is_reversed: bool
    recorded_outcome: Declined | Returned | None
    """The outcome with which the platform has reversed it; None: it has not."""


@dataclass(frozen=True, slots=True)
class BankPayout:
    """What the platform uses of a Payout of a connected account."""

    id: str
    status: str
    amount: int
    """As Stripe writes it."""
    currency: str
    create_time: int
    """Seconds since 1970."""
    failure_code: str
    key: str
    """As in Transfer."""
    payout_id: str


def parse_transfer(answer: Answer) -> Transfer:
    """Reads a Transfer. Raises ValueError if it is none."""
    fields = answer.body
    require_kind(fields, "transfer")
    metadata = read_optional_table(fields, "metadata")
    create_time, is_reversed = read_number(fields, "created"), read_flag(fields, "reversed")
    return Transfer(
        id=read_text(fields, "id"),
        amount=read_number(fields, "amount"),
        create_time=create_time,
        age_seconds=_seconds_between(create_time, answer.date),
        key=read_optional_text(metadata, "key"),
        payout_id=read_optional_text(metadata, "payout_id"),
        is_reversed=is_reversed,
        recorded_outcome=_read_recorded_outcome(fields) if is_reversed else None,
    )


def parse_payout(fields: Mapping[str, Any]) -> BankPayout:
    """Reads a Payout. Raises ValueError if it is none."""
    require_kind(fields, "payout")
    metadata = read_optional_table(fields, "metadata")
    status = read_text(fields, "status")
    if status not in PAYOUT_STATUSES:
        raise ValueError("an unknown status")
    return BankPayout(
        id=read_text(fields, "id"),
        status=status,
        amount=read_number(fields, "amount"),
        currency=read_text(fields, "currency").upper(),
        create_time=read_number(fields, "created"),
        failure_code=read_optional_text(fields, "failure_code"),
        key=read_optional_text(metadata, "key"),
        payout_id=read_optional_text(metadata, "payout_id"),
    )


def to_outcome(payout: BankPayout, transfer: Transfer) -> PayoutOutcome | None:
    """The outcome of a payout. None: it has failed, and whether it was paid before is not known.
    A canceled one is declined only once its transfer is reversed.
    """
    match payout.status:
        case "pending":
            return Submitted(transfer.id, payout.payout_id)
        case "in_transit":
            return InTransit(transfer.id, payout.payout_id)
        case "paid":
            amount = from_stripe_amount(payout.amount, payout.currency)
            return Succeeded(transfer.id, amount, payout.currency, payout.payout_id)
        case "canceled":
            return to_unpaid_outcome(transfer, "canceled")
        case _:
            return None


def to_failed_outcome(
    payout: BankPayout, transfer: Transfer, *, was_paid: bool
) -> Declined | Returned:
    """The outcome of a failed payout, once its transfer is reversed."""
    code = payout.failure_code or "failed"
    is_account_rejected = code in REJECTED_ACCOUNT_CODES
    if was_paid:
        return Returned(
            transfer.id,
            from_stripe_amount(payout.amount, payout.currency),
            payout.currency,
            code,
            is_account_rejected,
            payout.payout_id,
        )
    reason = (
        PayoutFailure.DESTINATION_REJECTED
        if is_account_rejected
        else PayoutFailure.PROVIDER_DECLINED
    )
    return Declined(reason, code, transfer.id, payout.payout_id)


def to_unpaid_outcome(transfer: Transfer, code: str) -> Declined:
    """The outcome of a transfer from which nothing is paid out."""
    return Declined(PayoutFailure.PROVIDER_DECLINED, code, transfer.id, transfer.payout_id)


def to_metadata(outcome: Declined | Returned) -> dict[str, str]:
    """What Stripe keeps with the reversal, so that each later answer has the same outcome."""
    if isinstance(outcome, Declined):
        return {"outcome": outcome.reason, "code": outcome.code}
    account_rejected = "true" if outcome.account_rejected else "false"
    return {"outcome": _RETURNED, "code": outcome.code, "account_rejected": account_rejected}


def _read_recorded_outcome(transfer: Mapping[str, Any]) -> Declined | Returned | None:
    """The outcome that `to_metadata` wrote. Raises ValueError."""
    reversals = read_optional_table(transfer, "reversals")
    for reversal in read_objects(reversals) if reversals else ():
        metadata = read_optional_table(reversal, "metadata")
        outcome, code = (read_optional_text(metadata, name) for name in ("outcome", "code"))
        reference = read_text(transfer, "id")
        payout_id = read_optional_text(read_optional_table(transfer, "metadata"), "payout_id")
        if outcome == _RETURNED:
            currency = read_text(transfer, "currency").upper()
            amount = from_stripe_amount(read_number(transfer, "amount"), currency)
            is_rejected = metadata.get("account_rejected") == "true"
            return Returned(reference, amount, currency, code, is_rejected, payout_id)
        if outcome:
            return Declined(PayoutFailure(outcome), code, reference, payout_id)
    return None


def _seconds_between(create_time: int, date: str) -> float:
    try:
        return max(parsedate_to_datetime(date).timestamp() - create_time, 0.0)
    except (ValueError, TypeError):
        return 0.0

"""The ledger accounts that statements are about."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.posting_rules import BANKS_TRANSIT, PostingKind
from tallystick_core.reconciliation.statement import LineType
from tallystick_core.validation import reject_card_id

_PROVIDER_ACCOUNT = re.compile(r"\Apsp/([A-Za-z0-9][A-Za-z0-9_-]{0,63})/clearing\Z", re.ASCII)
_BANK_ACCOUNT = re.compile(r"\Abanks/(?!transit\Z)[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z", re.ASCII)
_TRACKED = re.compile(r"\A(?:psp/[^/]+/clearing|payouts/[^/]+/clearing|banks/[^/]+)\Z", re.ASCII)
_BANK_LINE_TYPES = frozenset({LineType.BANK_ENTRY})
_PROVIDER_LINE_TYPES = frozenset(LineType) - _BANK_LINE_TYPES
_LINE_TYPES = {
    PostingKind.PAY_IN: LineType.CHARGE,
    PostingKind.REFUND: LineType.REFUND,
    PostingKind.CHARGEBACK: LineType.DISPUTE,
    PostingKind.PAYOUT: LineType.PAYOUT,
    PostingKind.PAYOUT_RETURN: LineType.PAYOUT_RETURN,
}


def parse_statement_account(text: str, field: str) -> str:
    """Parses the account that a file is about. Raises FIELD_REQUIRED, FIELD_INVALID,
    CARD_NUMBER_REJECTED.
    """
    if not text:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED,
            f'{field} is required: "psp/{{provider}}/clearing" or "banks/{{bank}}".',
            field=field,
        )
    if not is_statement_account(text):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f'{field} must be "psp/{{provider}}/clearing" or "banks/{{bank}}", such as '
            '"psp/stripe/clearing".',
            field=field,
        )
    for part in text.split("/"):
        reject_card_id(part, field)
    return text


def is_statement_account(account: str) -> bool:
    """Whether a file can be about the account."""
    return bool(_PROVIDER_ACCOUNT.match(account) or _BANK_ACCOUNT.match(account))


def is_bank(account: str) -> bool:
    """Whether the account is one at a bank."""
    return account.startswith("banks/")


def line_types_of_account(account: str) -> frozenset[LineType]:
    """The types that the lines of its statements may have: a bank has bookings, and no provider
    has.
    """
    return _BANK_LINE_TYPES if is_bank(account) else _PROVIDER_LINE_TYPES


def matched_accounts(account: str) -> Sequence[str]:
    """The accounts whose entries the lines of a statement can match, besides those of all payouts,
    for a bank.
    """
    if is_bank(account):
        return (account, BANKS_TRANSIT)
    return (account, f"payouts/{account.split('/')[1]}/clearing")


def is_tracked(account: str) -> bool:
    """Whether statements are about the entries of an account."""
    return _TRACKED.match(account) is not None


def line_type_of(account: str, kind: str) -> LineType:
    """The type of the lines that match entries of this kind on an account."""
    if account.startswith("banks/"):
        return LineType.BANK_ENTRY
    if kind == PostingKind.UNAPPLIED:
        return LineType.PAYOUT if account.startswith("payouts/") else LineType.CHARGE
    return _LINE_TYPES.get(PostingKind(kind), LineType.ADJUSTMENT)

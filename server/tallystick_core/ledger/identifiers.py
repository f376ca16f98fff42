"""Account names and transaction ids."""

from __future__ import annotations

import re
from functools import lru_cache

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.validation import reject_card_id

BOOK = "main"
"""The only book at present. A book has one writer at a time, so higher throughput needs more books,
not more writers.
"""

_ACCOUNT = re.compile(
    r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}(?:/[A-Za-z0-9][A-Za-z0-9_-]{0,63}){0,3}\Z", re.ASCII
)
_TRANSACTION_ID = re.compile(rf"\A{BOOK}-([1-9][0-9]{{0,17}})\Z", re.ASCII)


@lru_cache(maxsize=10_000)  # a few accounts are used very often
def parse_account(text: str) -> str:
    """Parses an account path of one to four ids. Raises FIELD_REQUIRED, FIELD_INVALID,
    CARD_NUMBER_REJECTED.
    """
    if not text:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED,
            "account is required: a path such as sellers/s-1.",
            field="account",
        )
    if _ACCOUNT.match(text) is None:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "account must be one to four ids joined by /, such as sellers/s-1.",
            field="account",
        )
    for part in text.split("/"):
        reject_card_id(part, "account")
    return text


def format_transaction_id(sequence: int) -> str:
    return f"{BOOK}-{sequence}"


def parse_transaction_id(text: str) -> int:
    """Parses the sequence of a transaction of the book. Raises FIELD_REQUIRED, FIELD_INVALID."""
    match = _TRANSACTION_ID.match(text)
    if match is None:
        reason = ErrorReason.FIELD_INVALID if text else ErrorReason.FIELD_REQUIRED
        raise ApiError(
            reason,
            "transaction_id must be the id of a ledger transaction, such as main-1.",
            field="transaction_id",
        )
    return int(match[1])

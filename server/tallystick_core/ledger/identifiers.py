"""Account names and transaction ids."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.validation import reject_card_id

BOOK = "main"
"""The book of a request that names none, and the only one at present. A book has one writer at a
time, so higher throughput needs more books, not more writers.
"""

_ACCOUNT = re.compile(
    r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}(?:/[A-Za-z0-9][A-Za-z0-9_-]{0,63}){0,3}\Z", re.ASCII
)
_BOOK = re.compile(r"\A[a-z][a-z0-9_]{0,15}\Z", re.ASCII)
_TRANSACTION_ID = re.compile(r"\A([a-z][a-z0-9_]{0,15})-([1-9][0-9]{0,17})\Z", re.ASCII)


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


def parse_book(text: str) -> str:
    """Parses the name of a book; "" is the default one. Raises FIELD_INVALID."""
    if text and _BOOK.match(text) is None:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "book must be 1 to 16 of a-z 0-9 _, beginning with a letter; empty: main.",
            field="book",
        )
    return text or BOOK


class TransactionId(NamedTuple):
    """A transaction, by its book and its sequence in it."""

    book: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.book}-{self.sequence}"


def parse_transaction_id(text: str) -> TransactionId:
    """Parses the id of a transaction. Raises FIELD_REQUIRED, FIELD_INVALID."""
    match = _TRANSACTION_ID.match(text)
    if match is None:
        reason = ErrorReason.FIELD_INVALID if text else ErrorReason.FIELD_REQUIRED
        raise ApiError(
            reason,
            "transaction_id must be the id of a ledger transaction, such as main-1.",
            field="transaction_id",
        )
    return TransactionId(match[1], int(match[2]))

"""Builds what reconciliation posts to the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_core.money import MAX_AMOUNT, format_amount
from tallystick_storage.reconciliation import postings


def new_posting(
    kind: PostingKind,
    source_id: str,
    account: str,
    lines: Sequence[JournalLine],
    reason: str,
    caller: str,
    effective_time: datetime,
    *,
    file_number: int | None = None,
    break_id: str | None = None,
) -> postings.NewPosting:
    """A posting in one currency. `account`: that of the statement. Raises AMOUNT_OUT_OF_RANGE."""
    if any(abs(line.amount) > MAX_AMOUNT for line in lines):
        raise ApiError(
            ErrorReason.AMOUNT_OUT_OF_RANGE,
            f"The sum to post to the ledger must be at most "
            f"{format_amount(MAX_AMOUNT, lines[0].currency)} {lines[0].currency}.",
        )
    return postings.NewPosting(
        kind,
        source_id,
        account,
        lines[0].currency,
        -sum(line.amount for line in lines if line.account == account),
        [{"account": line.account, "amount": line.amount} for line in lines],
        "",
        effective_time,
        reason,
        caller,
        file_number,
        break_id,
    )

"""Postings: balanced lines, and their reversal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256

from tallystick_core.errors import ApiError, ErrorReason, state_error
from tallystick_core.fingerprint import encode_canonical, to_microseconds
from tallystick_core.ledger.identifiers import BOOK, TransactionId
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind

MAX_ENTRIES = 20


@dataclass(frozen=True)
class Posting:
    """One transaction to post. `effective_time` None: the time of posting. `external_reference`:
    the provider's or bank's name of the money movement; "": there is none.
    """

    kind: PostingKind
    source_id: str
    caller: str
    lines: tuple[JournalLine, ...]
    description: str = ""
    effective_time: datetime | None = None
    external_reference: str = ""
    buyer_account: str = ""
    """The buyer whose money it is; "": no buyer's."""
    reverses: int | None = None
    """The sequence, in the same book, of the transaction that this one reverses."""
    book: str = BOOK

    @cached_property
    def canonical_lines(self) -> bytes:
        """The lines as canonical bytes."""
        return encode_canonical(
            *[value for line in self.lines for value in (line.account, line.currency, line.amount)]
        )

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values."""
        head = encode_canonical(
            self.kind,
            self.source_id,
            self.description,
            self.external_reference,
            self.buyer_account,
            to_microseconds(self.effective_time),
            self.reverses or 0,
        )
        return sha256(head + self.canonical_lines).digest()


def first_difference(sent: Posting, stored: Posting) -> str:
    """The API name of the first field in which two postings with the same source id differ, in the
    order of the request.
    """
    if len(sent.lines) != len(stored.lines):
        return "entries"
    for index, (sent_line, stored_line) in enumerate(zip(sent.lines, stored.lines, strict=True)):
        for name in ("account", "currency", "amount"):
            if getattr(sent_line, name) != getattr(stored_line, name):
                is_flipped = name == "amount" and sent_line.amount == -stored_line.amount
                return f"entries[{index}].{'direction' if is_flipped else name}"
    for name in ("description", "external_reference", "buyer_account"):
        if getattr(sent, name) != getattr(stored, name):
            return name
    return "effective_time"


def build_reversal(original: Posting, sequence: int, reason: str, caller: str) -> Posting:
    """Builds the reversal of a posted transaction: the same lines with opposite signs."""
    lines = tuple(line._replace(amount=-line.amount) for line in original.lines)
    return Posting(
        PostingKind.REVERSAL,
        str(TransactionId(original.book, sequence)),
        caller,
        lines,
        description=reason,
        external_reference=original.external_reference,
        buyer_account=original.buyer_account,
        reverses=sequence,
        book=original.book,
    )


def reject_irreversible(posting: Posting) -> None:
    """Raises INVALID_STATE for a transaction that is itself a reversal, or touches a seller's
    account: that equals the wallet's balance, which a reversal would not change.
    """
    if any(line.account.startswith("sellers/") for line in posting.lines):
        message = (
            "The transaction touches a seller's account and cannot be reversed: the wallet would "
            "keep the old balance."
        )
        raise state_error(message, "TOUCHES_SELLER", "REVERSE")
    if posting.kind is PostingKind.REVERSAL:
        message = "The transaction is a REVERSAL and cannot be reversed."
        raise state_error(message, "REVERSAL", "REVERSE")


def check_balanced(lines: Sequence[JournalLine]) -> None:
    """Raises ENTRIES_UNBALANCED unless the lines sum to zero in each currency."""
    sums: Counter[str] = Counter()
    for line in lines:
        sums[line.currency] += line.amount
    for currency, total in sums.items():
        if total:
            raise ApiError(
                ErrorReason.ENTRIES_UNBALANCED,
                f"The entries in {currency} must sum to zero.",
                field="entries",
            )

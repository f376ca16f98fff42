"""Double entry: postings, the accounts of each fact, and the hash chain."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from hashlib import sha256

from tallystick_core.booking import JournalLine, PostingKind
from tallystick_core.canonical import encode_canonical, to_microseconds
from tallystick_core.identifier import reject_card_id
from tallystick_core.refusal import ApiError, ErrorReason

BOOK = "main"
"""The one book there is now. Its writers take turns, so more books, not more writers, are the way to more postings."""
GENESIS = bytes(32)
"""The hash before the first transaction."""
MAX_ENTRIES = 20

_ACCOUNT = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}(?:/[A-Za-z0-9][A-Za-z0-9_-]{0,63}){0,3}\Z", re.ASCII)
_TRANSACTION_ID = re.compile(r"\A([a-z]+)-([1-9][0-9]{0,17})\Z", re.ASCII)


@dataclass(frozen=True)
class Posting:
    """One transaction to post. `effective_time` None: when it is posted."""

    kind: PostingKind
    cause_id: str
    caller: str
    lines: tuple[JournalLine, ...]
    description: str = ""
    effective_time: datetime | None = None
    reverses: int | None = None
    """The sequence of the transaction it reverses."""

    @cached_property
    def canonical_lines(self) -> bytes:
        """The lines as canonical bytes."""
        return encode_canonical(*[value for line in self.lines for value in (line.account, line.currency, line.amount)])

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values."""
        head = encode_canonical(self.kind, self.cause_id, self.description, to_microseconds(self.effective_time), self.reverses or 0)
        return sha256(head + self.canonical_lines).digest()


def first_difference(sent: Posting, stored: Posting) -> str:
    """The contract's name of the first field in which two postings of one cause differ, in the order of the request."""
    if len(sent.lines) != len(stored.lines):
        return "entries"
    for index, (sent_line, stored_line) in enumerate(zip(sent.lines, stored.lines, strict=True)):
        for name in ("account", "currency", "amount"):
            if getattr(sent_line, name) != getattr(stored_line, name):
                is_flipped = name == "amount" and sent_line.amount == -stored_line.amount
                return f"entries[{index}].{'direction' if is_flipped else name}"
    return "description" if sent.description != stored.description else "effective_time"


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a book."""

    sequence: int
    hash: bytes
    post_time: datetime


@dataclass(frozen=True, slots=True)
class ChainedTransaction:
    """A posting with its place in the book, and every account's balance after each of its lines."""

    posting: Posting
    sequence: int
    previous_hash: bytes
    hash: bytes
    effective_time: datetime
    post_time: datetime
    balances_after: tuple[int, ...]


def build_reversal(original: Posting, sequence: int, reason: str, caller: str) -> Posting:
    """The mirror image of a posted transaction."""
    lines = tuple(line._replace(amount=-line.amount) for line in original.lines)
    return Posting(PostingKind.REVERSAL, format_transaction_id(sequence), caller, lines, description=reason, reverses=sequence)


def reject_irreversible(posting: Posting) -> None:
    """Raises STATE_FORBIDS for what is corrected through the wallet, or is a reversal itself."""
    if any(line.account.startswith("sellers/") for line in posting.lines):
        raise ApiError(
            ErrorReason.STATE_FORBIDS,
            "The transaction touches a seller's account and cannot be reversed; correct it through the wallet.",
            metadata={"state": "TOUCHES_SELLER", "verb": "REVERSE"},
        )
    if posting.kind is PostingKind.REVERSAL:
        raise ApiError(
            ErrorReason.STATE_FORBIDS, "The transaction is a REVERSAL and cannot be reversed.", metadata={"state": "REVERSAL", "verb": "REVERSE"}
        )


def check_balanced(lines: Sequence[JournalLine]) -> None:
    """Raises ENTRIES_UNBALANCED unless the lines sum to zero in each currency."""
    sums: Counter[str] = Counter()
    for line in lines:
        sums[line.currency] += line.amount
    for currency, total in sums.items():
        if total:
            raise ApiError(ErrorReason.ENTRIES_UNBALANCED, f"The entries in {currency} must sum to zero.", field="entries")


@lru_cache(maxsize=10_000)  # the same few accounts come again and again
def parse_account(text: str, field: str) -> str:
    """A path of one to four ids. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REFUSED."""
    if not text:
        raise ApiError(ErrorReason.FIELD_REQUIRED, f"{field} is required: a path such as sellers/s-1.", field=field)
    if _ACCOUNT.match(text) is None:
        raise ApiError(ErrorReason.FIELD_INVALID, f"{field} must be one to four ids joined by /, such as sellers/s-1.", field=field)
    for part in text.split("/"):
        reject_card_id(part, field)
    return text


def format_transaction_id(sequence: int, book: str = BOOK) -> str:
    return f"{book}-{sequence}"


def parse_transaction_id(text: str, field: str = "transaction_id") -> int:
    """The sequence of a transaction of the book. Raises FIELD_REQUIRED, FIELD_INVALID."""
    match = _TRANSACTION_ID.match(text)
    if match is None or match[1] != BOOK:
        reason = ErrorReason.FIELD_INVALID if text else ErrorReason.FIELD_REQUIRED
        raise ApiError(reason, f"{field} must be an id that the ledger gave, such as main-1.", field=field)
    return int(match[2])


def append_posting(head: Head, posting: Posting, post_time: datetime, balances: dict[tuple[str, str], int]) -> ChainedTransaction:
    """Puts a posting behind the head, and moves `balances` (account and currency to balance) on by it."""
    balances_after = []
    for line in posting.lines:
        key = (line.account, line.currency)
        balances[key] += line.amount
        balances_after.append(balances[key])
    sequence = head.sequence + 1
    effective_time = posting.effective_time or post_time
    digest = compute_chain_hash(head.hash, posting, sequence, effective_time, post_time)
    return ChainedTransaction(posting, sequence, head.hash, digest, effective_time, post_time, tuple(balances_after))


def compute_chain_hash(previous_hash: bytes, posting: Posting, sequence: int, effective_time: datetime, post_time: datetime) -> bytes:
    """SHA-256(previous hash ‖ canonical bytes of the transaction)."""
    head = (BOOK, sequence, posting.kind, posting.cause_id, posting.caller, posting.description, posting.reverses or 0)
    times = (to_microseconds(effective_time), to_microseconds(post_time))
    return sha256(previous_hash + encode_canonical(*head, *times) + posting.canonical_lines).digest()

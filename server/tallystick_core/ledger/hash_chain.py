"""The hash chain of ledger transactions (docs/reference/ledger-hash-chain.md)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from tallystick_core.fingerprint import encode_canonical, to_microseconds
from tallystick_core.ledger.posting import Posting

GENESIS = bytes(32)
"""The hash before the first transaction."""


@dataclass(frozen=True, slots=True)
class Head:
    """The last transaction of a book."""

    sequence: int
    hash: bytes
    post_time: datetime


@dataclass(frozen=True, slots=True)
class ChainedTransaction:
    """A posting with its position in the book, and every account's balance after each of its
    lines.
    """

    posting: Posting
    sequence: int
    previous_hash: bytes
    hash: bytes
    effective_time: datetime
    post_time: datetime
    balances_after: tuple[int, ...]


def append_posting(
    head: Head, posting: Posting, post_time: datetime, balances: dict[tuple[str, str], int]
) -> ChainedTransaction:
    """Chains a posting to the head, and applies it to `balances` (account and currency to
    balance).
    """
    balances_after = []
    for line in posting.lines:
        key = (line.account, line.currency)
        balances[key] += line.amount
        balances_after.append(balances[key])
    sequence = head.sequence + 1
    effective_time = posting.effective_time or post_time
    digest = compute_chain_hash(head.hash, posting, sequence, effective_time, post_time)
    return ChainedTransaction(
        posting, sequence, head.hash, digest, effective_time, post_time, tuple(balances_after)
    )


def compute_chain_hash(
    previous_hash: bytes,
    posting: Posting,
    sequence: int,
    effective_time: datetime,
    post_time: datetime,
) -> bytes:
    """SHA-256(previous hash ‖ canonical bytes of the transaction)."""
    head = (
        posting.book,
        sequence,
        posting.kind,
        posting.source_id,
        posting.caller,
        posting.description,
        posting.external_reference,
        posting.buyer_account,
        posting.reverses or 0,
    )
    times = (to_microseconds(effective_time), to_microseconds(post_time))
    return sha256(
        previous_hash + encode_canonical(*head, *times) + posting.canonical_lines
    ).digest()

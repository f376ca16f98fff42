"""The queries of `tallystick verify`: they read whole tables as sorted streams. Each schema has its
own file; `shared` holds what several schemas use.
"""

from tallystick_storage.verify import ledger, payment, payout, wallet
from tallystick_storage.verify.reader import QUERIES, Reader, statement
from tallystick_storage.verify.shared import broken_seals

INCONSISTENCY_QUERIES = (
    *payment.INCONSISTENCY_QUERIES,
    *payout.INCONSISTENCY_QUERIES,
    *ledger.INCONSISTENCY_QUERIES,
    *wallet.INCONSISTENCY_QUERIES,
)
"""The names of the queries that find rows inconsistent with other rows of their schema."""

__all__ = [
    "INCONSISTENCY_QUERIES",
    "QUERIES",
    "Reader",
    "broken_seals",
    "statement",
]

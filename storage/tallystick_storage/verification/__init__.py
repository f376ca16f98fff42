"""What `tallystick verify` reads: whole tables as sorted streams. Each schema's queries are in the file of its name; `shared` has what several use."""

from tallystick_storage.verification import ledger, payment, payout, wallet
from tallystick_storage.verification.reader import QUERIES, Reader, statement
from tallystick_storage.verification.shared import SEALED_SCHEMAS, broken_seals

WRONG = (*payment.WRONG, *payout.WRONG, *ledger.WRONG, *wallet.WRONG)
"""The names of the queries that find rows that are not what follows from others of their schema."""

__all__ = ["QUERIES", "SEALED_SCHEMAS", "WRONG", "Reader", "broken_seals", "statement"]

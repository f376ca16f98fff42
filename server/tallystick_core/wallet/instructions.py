"""Instructions to a wallet, and whether a repeated one is the same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from tallystick_core.fingerprint import fingerprint
from tallystick_core.wallet.holds import Hold
from tallystick_core.wallet.state import EntryKind


@dataclass(frozen=True, slots=True)
class Credit:
    """A stored credit that a release refers to by its source id. `is_pending`: the credit did not
    become available immediately.
    """

    seller_account: str
    currency: str
    amount: int
    is_pending: bool


@dataclass(frozen=True)
class Instruction:
    """One wallet change to make. `kind` and `source_id` are its key: "PAY_IN/po-1", or the hold's
    id. A release has the source id of its credit, and no amount.
    """

    kind: EntryKind
    source_id: str
    caller: str = ""
    seller_account: str = ""
    currency: str = ""
    amount: int = 0
    is_pending: bool = False
    allow_owed: bool = False
    purpose: str = ""
    expire_time: datetime | None = None
    minimum_remaining: int = 0
    """The amount that must remain available after the hold is placed."""

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values."""
        expire = self.expire_time.isoformat() if self.expire_time else ""
        identity = (self.kind, self.source_id, self.seller_account, self.currency, self.amount)
        # keeps the stored fingerprints of holds without a minimum valid
        minimum = (self.minimum_remaining,) if self.minimum_remaining else ()
        return fingerprint(
            *identity, int(self.is_pending), int(self.allow_owed), self.purpose, expire, *minimum
        )


_LAST_FIELD = {
    EntryKind.CREDIT: "pending",
    EntryKind.DEBIT: "allow_owed",
    EntryKind.HOLD_PLACED: "minimum_remaining",
}
"""The field that differs if no other does, for the kinds whose entries have a seller and an
amount.
"""


@dataclass(frozen=True, slots=True)
class StoredInstruction:
    """A change that was made before, as stored in its entry."""

    fingerprint: bytes
    seller_account: str
    currency: str
    amount: int


def first_difference(sent: Instruction, stored: StoredInstruction, hold: Hold | None) -> str:
    """The API name of the first field in which an instruction differs from the stored one with the
    same key. `hold`: the hold that the stored instruction placed.
    """
    if sent.kind is EntryKind.HOLD_CAPTURED:
        return "amount"
    names = ("seller_account", "amount", "currency") if sent.kind in _LAST_FIELD else ()
    differences = [name for name in names if getattr(sent, name) != getattr(stored, name)]
    if hold is not None and not differences:
        differences = [
            name
            for name in ("purpose", "expire_time")
            if getattr(sent, name) != getattr(hold, name)
        ]
    return differences[0] if differences else _LAST_FIELD.get(sent.kind, "hold_id")

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
    """A credit that was made before, as a release finds it by its source id. `pending`: it did not
    become available at once.
    """

    seller_account: str
    currency: str
    amount: int
    pending: bool


@dataclass(frozen=True)
class Instruction:
    """One change to make. `source_id` with `kind` is its key: "PAY_IN/po-1", or the hold's id. A
    release has the source id of its credit, and no amount.
    """

    kind: EntryKind
    source_id: str
    caller: str = ""
    seller_account: str = ""
    currency: str = ""
    amount: int = 0
    pending: bool = False
    allow_owed: bool = False
    purpose: str = ""
    expire_time: datetime | None = None
    minimum_remaining: int = 0
    """What has to stay available beside a hold that is placed."""

    @cached_property
    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values."""
        expire = self.expire_time.isoformat() if self.expire_time else ""
        identity = (self.kind, self.source_id, self.seller_account, self.currency, self.amount)
        # holds that keep nothing have the fingerprint they always had
        minimum = (self.minimum_remaining,) if self.minimum_remaining else ()
        return fingerprint(
            *identity, int(self.pending), int(self.allow_owed), self.purpose, expire, *minimum
        )


_LAST_FIELD = {
    EntryKind.CREDIT: "pending",
    EntryKind.DEBIT: "allow_owed",
    EntryKind.HOLD_PLACED: "minimum_remaining",
}
"""What differs when nothing else does, of the kinds whose entries name a seller and an amount."""


@dataclass(frozen=True, slots=True)
class StoredInstruction:
    """A change that was made before, as its entry has it."""

    fingerprint: bytes
    seller_account: str
    currency: str
    amount: int


def first_difference(sent: Instruction, stored: StoredInstruction, hold: Hold | None) -> str:
    """The contract's name of the first field in which an instruction differs from the one of its
    key that was made; `hold`: the one it placed.
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

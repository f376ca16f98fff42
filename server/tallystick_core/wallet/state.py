"""The states of a hold, and the kinds of wallet entries that change them."""

from __future__ import annotations

from enum import StrEnum


class EntryKind(StrEnum):
    """The kind of a wallet change."""

    CREDIT = "CREDIT"
    RELEASE = "RELEASE"
    DEBIT = "DEBIT"
    HOLD_PLACED = "HOLD_PLACED"
    HOLD_CAPTURED = "HOLD_CAPTURED"
    HOLD_RELEASED = "HOLD_RELEASED"
    HOLD_EXPIRED = "HOLD_EXPIRED"


class HoldState(StrEnum):
    """The state of a hold. Only OPEN has transitions: by capture, by release, or at its
    expire_time.
    """

    OPEN = "OPEN"
    CAPTURED = "CAPTURED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"


HOLD_TRANSITIONS: dict[tuple[HoldState, EntryKind], HoldState] = {
    (HoldState.OPEN, EntryKind.HOLD_CAPTURED): HoldState.CAPTURED,
    (HoldState.OPEN, EntryKind.HOLD_RELEASED): HoldState.RELEASED,
    (HoldState.OPEN, EntryKind.HOLD_EXPIRED): HoldState.EXPIRED,
}

"""Holds: their ids, who may use them, and how they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.state_machine import Verb
from tallystick_core.validation import is_id, parse_id
from tallystick_core.wallet.state import EntryKind, HoldState

_PAYOUT_PREFIX = "payouts/"
"""The namespace of payout holds. Callers' ids contain no slash, so no other hold can take the id of
a payout hold.
"""


def is_hold_id(text: str) -> bool:
    """Whether `text` has the form of a hold id."""
    return is_id(text.removeprefix(_PAYOUT_PREFIX))


def parse_hold_id(text: str) -> str:
    """Parses a hold id: payouts/{payout_id} for a payout, an id for every other purpose. Raises
    FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REJECTED.
    """
    parse_id(text.removeprefix(_PAYOUT_PREFIX), "hold_id")
    return text


def require_hold_namespace(hold_id: str, purpose: str) -> None:
    """Raises FIELD_INVALID if the hold id is outside the namespace of its purpose."""
    if purpose == "PAYOUT" and not hold_id.startswith(_PAYOUT_PREFIX):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"hold_id must be {_PAYOUT_PREFIX}{{payout_id}} for the purpose PAYOUT.",
            field="hold_id",
        )
    if purpose != "PAYOUT" and hold_id.startswith(_PAYOUT_PREFIX):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"hold_id must not begin with {_PAYOUT_PREFIX}: such ids are for the purpose PAYOUT.",
            field="hold_id",
        )


def require_payout_service(
    hold_ids: Sequence[str], caller: str, payout_service: str, field_template: str
) -> None:
    """Raises PERMISSION_DENIED if a caller other than PayoutService names a payout hold.
    `field_template` formats the field name of a hold id from its index.
    """
    if caller == payout_service:
        return
    for index, hold_id in enumerate(hold_ids):
        if hold_id.startswith(_PAYOUT_PREFIX):
            field = field_template.format(index)
            message = (
                f"{field} must not begin with {_PAYOUT_PREFIX}: such holds are for PayoutService "
                f"alone, which calls as {payout_service}."
            )
            raise ApiError(ErrorReason.PERMISSION_DENIED, message, field=field)


@dataclass(frozen=True, slots=True)
class Hold:
    """Money reserved in a wallet."""

    hold_id: str
    seller_account: str
    currency: str
    amount: int
    purpose: str
    caller: str
    captured_amount: int = 0
    state: HoldState = HoldState.OPEN
    expire_time: datetime | None = None


_HOLD_VERBS = {
    EntryKind.HOLD_PLACED: Verb("PLACE", "placed again"),
    EntryKind.HOLD_CAPTURED: Verb("CAPTURE", "captured"),
    EntryKind.HOLD_RELEASED: Verb("RELEASE", "released"),
    EntryKind.HOLD_EXPIRED: Verb("EXPIRE", "expired"),
}


def hold_ended_error(state: HoldState, kind: EntryKind) -> ApiError:
    """The error for an action on a hold that has ended."""
    verb = _HOLD_VERBS[kind]
    return ApiError(
        ErrorReason.HOLD_ENDED,
        f"The hold is {state} and cannot be {verb.participle}.",
        metadata={"state": state, "verb": verb.name},
    )

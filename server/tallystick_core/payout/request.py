"""A payout, as a caller or a schedule requests it."""

from __future__ import annotations

from dataclasses import dataclass

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.fingerprint import fingerprint
from tallystick_core.provider.outcome import PayoutFailure
from tallystick_core.validation import parse_id

MAX_PAYOUTS = 1000
"""The maximum number of payouts in a list batch."""
RUN_PAYOUT_PREFIX = "r-"


@dataclass(frozen=True, slots=True)
class NewPayout:
    """A parsed payout request. `amount` is in minor units; None: all that can be paid when the
    payout is accepted.
    """

    payout_id: str
    caller: str
    owner: str
    """The required owner of the seller; "": any owner, for a run of the platform."""
    seller_account: str
    amount: int | None
    currency: str
    payout_destination_id: str = ""
    """"": the seller's current destination."""

    def values(self) -> tuple[str | int, ...]:
        """The values that define equality of two payouts: the requested ones, never the computed
        amount.
        """
        amount = "" if self.amount is None else self.amount
        return (
            self.payout_id,
            self.owner,
            self.seller_account,
            amount,
            self.currency,
            self.payout_destination_id,
        )

    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values, regardless of how they were written."""
        return fingerprint(*self.values())


def first_difference(sent: NewPayout, stored: NewPayout) -> str:
    """The API name of the first field in which two payouts with the same id differ, in the order of
    the request.
    """
    names = ("seller_account", "amount", "currency", "payout_destination_id")
    return next(
        (name for name in names if getattr(sent, name) != getattr(stored, name)), "payout_id"
    )


def parse_payout_id(text: str) -> str:
    """Parses a caller's payout id. The prefix of payouts from runs is reserved for the platform.
    Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REJECTED.
    """
    if text.startswith(RUN_PAYOUT_PREFIX):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"payout_id must not begin with {RUN_PAYOUT_PREFIX}: such ids are the platform's.",
            field="payout_id",
        )
    return parse_id(text, "payout_id")


def format_payout_hold_id(payout_id: str) -> str:
    """The wallet hold id of a payout, in a namespace reserved for payouts."""
    return f"payouts/{payout_id}"


def classify_hold_failure(reason: ErrorReason) -> PayoutFailure | None:
    """The failure of a payout whose hold the wallet rejected. None: the rejection is an error of
    the platform, unrelated to the seller's money.
    """
    match reason:
        # no wallet: the seller has no sales
        case ErrorReason.INSUFFICIENT_FUNDS | ErrorReason.NOT_FOUND:
            return PayoutFailure.INSUFFICIENT_FUNDS
        case ErrorReason.INVALID_STATE:
            return PayoutFailure.WALLET_FROZEN
        case _:
            return None

"""A payout, as a caller or a schedule requests it."""

from __future__ import annotations

from dataclasses import dataclass

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.fingerprint import fingerprint
from tallystick_core.provider.outcome import PayoutFailure
from tallystick_core.validation import parse_id

MAX_PAYOUTS = 1000
"""The most payouts of a batch that is a list."""
RUN_PAYOUT_PREFIX = "r-"


@dataclass(frozen=True, slots=True)
class NewPayout:
    """What the caller asked for, parsed. `amount` in minor units; None: whatever can be paid when
    it is accepted.
    """

    payout_id: str
    caller: str
    owner: str
    """Whose seller it must be; "": whosever it is, as a run of the platform has it."""
    seller_account: str
    amount: int | None
    currency: str
    payout_destination_id: str = ""
    """"": the seller's current one."""

    def values(self) -> tuple[str | int, ...]:
        """What makes two payouts the same: what was asked for, never what was found to be
        payable.
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
        """32 bytes that are equal for equal values, however they were written."""
        return fingerprint(*self.values())


def first_difference(sent: NewPayout, stored: NewPayout) -> str:
    """The contract's name of the first field in which two payouts of one id differ, in the order of
    the request.
    """
    names = ("seller_account", "amount", "currency", "payout_destination_id")
    return next(
        (name for name in names if getattr(sent, name) != getattr(stored, name)), "payout_id"
    )


def parse_payout_id(text: str, field: str = "payout_id") -> str:
    """A caller's id of a payout; those that runs make are the platform's. Raises FIELD_REQUIRED,
    FIELD_INVALID, CARD_NUMBER_REJECTED.
    """
    if text.startswith(RUN_PAYOUT_PREFIX):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must not begin with {RUN_PAYOUT_PREFIX}: such ids are the platform's.",
            field=field,
        )
    return parse_id(text, field)


def classify_hold_failure(reason: ErrorReason) -> PayoutFailure | None:
    """Why a payout fails whose hold the wallet refused; None: the refusal is a fault of ours, and
    says nothing about the seller's money.
    """
    match reason:
        # no wallet: nothing was ever sold
        case ErrorReason.INSUFFICIENT_FUNDS | ErrorReason.NOT_FOUND:
            return PayoutFailure.INSUFFICIENT_FUNDS
        case ErrorReason.INVALID_STATE:
            return PayoutFailure.WALLET_FROZEN
        case _:
            return None

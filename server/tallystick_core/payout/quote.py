"""How much can be paid to a seller now, and what blocks the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from tallystick_core.errors import ApiError, ErrorReason, state_error
from tallystick_core.money import MAX_AMOUNT
from tallystick_core.payout.destination import DestinationState


class PayoutBlocker(StrEnum):
    """A reason why less than the balance is paid. Names and order are those of
    `tallystick.payout.v1.PayoutBlocker`.
    """

    PENDING_FUNDS = "PENDING_FUNDS"
    HELD = "HELD"
    OWED = "OWED"
    RESERVE = "RESERVE"
    MAXIMUM_AMOUNT = "MAXIMUM_AMOUNT"
    MINIMUM_AMOUNT = "MINIMUM_AMOUNT"
    FEE = "FEE"
    FROZEN = "FROZEN"
    NO_DESTINATION = "NO_DESTINATION"
    DESTINATION_UNVERIFIED = "DESTINATION_UNVERIFIED"
    DESTINATION_COOLDOWN = "DESTINATION_COOLDOWN"
    DESTINATION_UNUSABLE = "DESTINATION_UNUSABLE"
    DESTINATION_AWAITING_APPROVAL = "DESTINATION_AWAITING_APPROVAL"


_DESTINATION_BLOCKERS = frozenset(
    {
        PayoutBlocker.NO_DESTINATION,
        PayoutBlocker.DESTINATION_UNVERIFIED,
        PayoutBlocker.DESTINATION_COOLDOWN,
        PayoutBlocker.DESTINATION_UNUSABLE,
        PayoutBlocker.DESTINATION_AWAITING_APPROVAL,
    }
)


@dataclass(frozen=True, slots=True)
class WalletBalance:
    """A wallet's balances in minor units, each at least 0. All are 0 if the wallet does not
    exist.
    """

    pending: int = 0
    available: int = 0
    held: int = 0
    owed: int = 0
    frozen: bool = False

    def with_hold(self, amount: int) -> WalletBalance:
        """The balance after holding `amount`, or all that is available if that is less."""
        held_amount = min(amount, self.available)
        return replace(self, available=self.available - held_amount, held=self.held + held_amount)


@dataclass(frozen=True, slots=True)
class PayoutTerms:
    """The terms of a seller's payouts, in minor units, each at least 0."""

    minimum_amount: int = 0
    """The smallest amount that one payout takes from the wallet."""
    fee: int = 0
    """The part of a payout that the platform keeps."""
    reserve: int = 0
    """The amount that must remain available in the wallet."""


@dataclass(frozen=True, slots=True)
class DestinationReadiness:
    """Whether a seller's destination can be paid to. `in_cooldown`: its usable_time has not been
    reached, by the database's clock. `awaits_approval`: a second person has not approved it.
    """

    state: DestinationState
    in_cooldown: bool
    awaits_approval: bool = False


@dataclass(frozen=True, slots=True)
class PayoutQuote:
    """The amount that can be paid: all that the terms allow, or 0. `blocked_amounts` has for each
    blocker the amount it blocks, computed independently. The owed amount is not part of the
    wallet's funds.
    """

    amount: int
    fee: int
    blocked_amounts: Mapping[PayoutBlocker, int]

    @property
    def net_amount(self) -> int:
        """The amount that the seller's bank receives."""
        return self.amount - self.fee if self.amount else 0


def quote_payout(
    balance: WalletBalance, terms: PayoutTerms, destination: DestinationReadiness | None
) -> PayoutQuote:
    """How much a seller could be paid now, and what blocks the rest. Blockers that reduce the
    amount by zero are reported only if they would block the whole payout.
    """
    spendable = max(balance.available - terms.reserve, 0)
    max_amount = min(spendable, MAX_AMOUNT)
    amounts = {
        PayoutBlocker.PENDING_FUNDS: balance.pending,
        PayoutBlocker.HELD: balance.held,
        PayoutBlocker.OWED: balance.owed,
        PayoutBlocker.RESERVE: balance.available - spendable,
        PayoutBlocker.MAXIMUM_AMOUNT: spendable - max_amount,
    }
    blocking = {
        PayoutBlocker.MINIMUM_AMOUNT: 0 < max_amount < terms.minimum_amount,
        PayoutBlocker.FEE: 0 < max_amount <= terms.fee,
        PayoutBlocker.FROZEN: balance.frozen,
        **{
            blocker: blocker is _destination_blocker(destination)
            for blocker in PayoutBlocker
            if blocker in _DESTINATION_BLOCKERS
        },
    }
    blocked_amounts = {blocker: amount for blocker, amount in amounts.items() if amount} | {
        blocker: max_amount for blocker, blocks in blocking.items() if blocks
    }
    return PayoutQuote(
        0 if any(blocking.values()) else max_amount, terms.fee, MappingProxyType(blocked_amounts)
    )


def _destination_blocker(destination: DestinationReadiness | None) -> PayoutBlocker | None:
    """Why the destination cannot be paid to now, or None if it can."""
    if destination is None:
        return PayoutBlocker.NO_DESTINATION
    match destination.state:
        case DestinationState.PENDING_VERIFICATION:
            return PayoutBlocker.DESTINATION_UNVERIFIED
        case DestinationState.VERIFIED:
            if destination.awaits_approval:
                return PayoutBlocker.DESTINATION_AWAITING_APPROVAL
            return PayoutBlocker.DESTINATION_COOLDOWN if destination.in_cooldown else None
        case DestinationState.UNUSABLE | DestinationState.DISABLED:
            return PayoutBlocker.DESTINATION_UNUSABLE


def quote_amount(
    requested_amount: int | None,
    balance: WalletBalance,
    terms: PayoutTerms,
    destination: DestinationReadiness | None,
) -> int:
    """The amount that leaves the wallet for a payout accepted now: the requested amount, or all
    that can be paid. Only the hold guarantees it.

    Raises AMOUNT_OUT_OF_RANGE (below the minimum, or not above the fee), INVALID_STATE (frozen),
    DESTINATION_UNUSABLE, INSUFFICIENT_FUNDS.
    """
    if requested_amount is not None and (
        requested_amount < terms.minimum_amount or requested_amount <= terms.fee
    ):
        message = (
            "amount must be at least the minimum amount, and more than the fee; PreviewPayout "
            "shows both."
        )
        raise ApiError(ErrorReason.AMOUNT_OUT_OF_RANGE, message, field="amount")
    quote = quote_payout(balance, terms, destination)
    metadata = {"blockers": ",".join(quote.blocked_amounts)}
    if PayoutBlocker.FROZEN in quote.blocked_amounts:
        message = "The wallet is FROZEN and cannot be paid out."
        raise state_error(message, "FROZEN", "PAY_OUT", metadata)
    if not _DESTINATION_BLOCKERS.isdisjoint(quote.blocked_amounts):
        raise ApiError(
            ErrorReason.DESTINATION_UNUSABLE,
            "The seller has no destination that can be paid to now.",
            metadata=metadata,
        )
    amount = quote.amount if requested_amount is None else requested_amount
    if not 0 < amount <= quote.amount:
        problem = (
            "Nothing can be paid now"
            if requested_amount is None
            else "Less than the requested amount can be paid now"
        )
        raise ApiError(
            ErrorReason.INSUFFICIENT_FUNDS,
            f"{problem}; PreviewPayout lists the blockers.",
            metadata=metadata,
        )
    return amount

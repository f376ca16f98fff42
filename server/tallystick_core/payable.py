"""Where sellers are paid, and how much they can be paid now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from tallystick_core.money import MAX_AMOUNT
from tallystick_core.provider import Declined, NotSent, PayoutFailure, PayoutOutcome, Pending, Returned, Unknown, Verified
from tallystick_core.refusal import Reason, Refused
from tallystick_core.table import Verb, forbidden, moved


class DestinationState(StrEnum):
    """Where a destination is."""

    PENDING_VERIFICATION = "PENDING_VERIFICATION"
    VERIFIED = "VERIFIED"
    UNUSABLE = "UNUSABLE"
    DISABLED = "DISABLED"


class DestinationHappening(StrEnum):
    """What can happen to a destination: the answers to its verification, what its payouts show, and what people decide."""

    VERIFIED = "VERIFIED"
    DECLINED = "DECLINED"
    PENDING = "PENDING"
    NOT_SENT = "NOT_SENT"
    UNKNOWN = "UNKNOWN"
    ACCOUNT_REFUSED = "ACCOUNT_REFUSED"
    """A payout to it was declined or came back, and the account is at fault."""
    DISABLED = "DISABLED"
    CLOSED = "CLOSED"
    """An operator has closed it, whose verification had been asked for in vain."""


_D, _N = DestinationState, DestinationHappening
DESTINATION_MOVES: dict[tuple[DestinationState, DestinationHappening], DestinationState] = {
    # moved on by the provider, at once or after its review; asked now and then
    (_D.PENDING_VERIFICATION, _N.VERIFIED): _D.VERIFIED,
    (_D.PENDING_VERIFICATION, _N.DECLINED): _D.UNUSABLE,
    (_D.PENDING_VERIFICATION, _N.PENDING): _D.PENDING_VERIFICATION,
    (_D.PENDING_VERIFICATION, _N.NOT_SENT): _D.PENDING_VERIFICATION,
    (_D.PENDING_VERIFICATION, _N.UNKNOWN): _D.PENDING_VERIFICATION,
    (_D.PENDING_VERIFICATION, _N.DISABLED): _D.DISABLED,
    (_D.PENDING_VERIFICATION, _N.CLOSED): _D.UNUSABLE,
    # rests here
    (_D.VERIFIED, _N.ACCOUNT_REFUSED): _D.UNUSABLE,
    (_D.VERIFIED, _N.DISABLED): _D.DISABLED,
    # payouts that were sent before may still show it
    (_D.UNUSABLE, _N.ACCOUNT_REFUSED): _D.UNUSABLE,
    (_D.DISABLED, _N.ACCOUNT_REFUSED): _D.DISABLED,
}

DESTINATION_VERBS: dict[DestinationHappening, Verb] = {
    _N.VERIFIED: Verb("VERIFY", "verified"),
    _N.DECLINED: Verb("DECLINE", "declined"),
    _N.PENDING: Verb("VERIFY", "verified"),
    _N.NOT_SENT: Verb("VERIFY", "verified"),
    _N.UNKNOWN: Verb("VERIFY", "verified"),
    _N.ACCOUNT_REFUSED: Verb("REFUSE", "refused"),
    _N.DISABLED: Verb("DISABLE", "disabled"),
    _N.CLOSED: Verb("CLOSE", "closed"),
}
"""What each happening does to a destination, as refusals name it."""
_APPROVE = Verb("APPROVE", "approved")

ENDED = frozenset({DestinationState.UNUSABLE, DestinationState.DISABLED})
"""Never the current one; the current one is the newest of the others that can be paid to."""

VERIFICATIONS: dict[type, DestinationHappening] = {
    Verified: DestinationHappening.VERIFIED,
    Declined: DestinationHappening.DECLINED,
    Pending: DestinationHappening.PENDING,
    NotSent: DestinationHappening.NOT_SENT,
    Unknown: DestinationHappening.UNKNOWN,
}


def move_destination(state: DestinationState, happening: DestinationHappening) -> DestinationState:
    """The state after. Raises STATE_FORBIDS for what cannot happen to a destination in that state."""
    return moved(DESTINATION_MOVES, DESTINATION_VERBS, state, happening, "payout destination")


def account_refused(outcome: PayoutOutcome) -> bool:
    """Whether an answer shows that the destination cannot be paid to any more."""
    match outcome:
        case Declined(reason=PayoutFailure.DESTINATION_REFUSED):
            return True
        case Returned():
            return outcome.account_refused
        case _:
            return False


def require_approvable(state: DestinationState, *, awaits_approval: bool) -> None:
    """Raises STATE_FORBIDS for a destination that has ended, or awaits no approval."""
    if state in ENDED:
        raise forbidden("destination", state, _APPROVE)
    if not awaits_approval:
        message = f"The destination is {state} and cannot be approved: it awaits no approval."
        raise Refused(Reason.STATE_FORBIDS, message, metadata={"state": state, "verb": _APPROVE.name})


class Limit(StrEnum):
    """What keeps money from being paid out; the same names as `tallystick.payout.v1.PayoutLimit`, in its order."""

    PENDING_FUNDS = "PENDING_FUNDS"
    HELD = "HELD"
    OWED = "OWED"
    RESERVE = "RESERVE"
    LARGEST_AMOUNT = "LARGEST_AMOUNT"
    MINIMUM_AMOUNT = "MINIMUM_AMOUNT"
    FEE = "FEE"
    FROZEN = "FROZEN"
    NO_DESTINATION = "NO_DESTINATION"
    DESTINATION_UNVERIFIED = "DESTINATION_UNVERIFIED"
    DESTINATION_WAITING = "DESTINATION_WAITING"
    DESTINATION_UNUSABLE = "DESTINATION_UNUSABLE"
    DESTINATION_AWAITING_APPROVAL = "DESTINATION_AWAITING_APPROVAL"


_NOWHERE = frozenset(
    {
        Limit.NO_DESTINATION,
        Limit.DESTINATION_UNVERIFIED,
        Limit.DESTINATION_WAITING,
        Limit.DESTINATION_UNUSABLE,
        Limit.DESTINATION_AWAITING_APPROVAL,
    }
)


@dataclass(frozen=True, slots=True)
class Funds:
    """What the wallet shows of a seller's money, in minor units, each at least 0; all 0 where there is no wallet."""

    pending: int = 0
    available: int = 0
    held: int = 0
    owed: int = 0
    frozen: bool = False

    def without(self, amount: int) -> Funds:
        """What is left when so much is going to be held."""
        going = min(amount, self.available)
        return replace(self, available=self.available - going, held=self.held + going)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a seller is paid, in minor units, each at least 0."""

    minimum_amount: int = 0
    """The least that leaves the wallet at once."""
    fee: int = 0
    """What the platform keeps of it."""
    reserve: int = 0
    """What stays available."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a seller would be paid. `waits`: its usable_time has not come, by the database's clock; `awaits_approval`: a second person's."""

    state: DestinationState
    waits: bool
    awaits_approval: bool = False


@dataclass(frozen=True, slots=True)
class Payable:
    """What can be paid: all or nothing of what the terms leave. `shortfalls`: what keeps how much, each for itself; owed is not in the wallet."""

    amount: int
    fee: int
    shortfalls: Mapping[Limit, int]

    @property
    def net(self) -> int:
        """What the seller's bank gets."""
        return self.amount - self.fee if self.amount else 0


def payable(funds: Funds, terms: Terms, destination: Destination | None) -> Payable:
    """What a seller could be paid now, and what keeps the rest. A limit that keeps nothing is told only where it would keep everything."""
    free = max(funds.available - terms.reserve, 0)
    most = min(free, MAX_AMOUNT)
    parts = {
        Limit.PENDING_FUNDS: funds.pending,
        Limit.HELD: funds.held,
        Limit.OWED: funds.owed,
        Limit.RESERVE: funds.available - free,
        Limit.LARGEST_AMOUNT: free - most,
    }
    blocked = {
        Limit.MINIMUM_AMOUNT: 0 < most < terms.minimum_amount,
        Limit.FEE: 0 < most <= terms.fee,
        Limit.FROZEN: funds.frozen,
        **{limit: limit is _nowhere(destination) for limit in Limit if limit in _NOWHERE},
    }
    shortfalls = {limit: kept for limit, kept in parts.items() if kept} | {limit: most for limit, holds in blocked.items() if holds}
    return Payable(0 if any(blocked.values()) else most, terms.fee, MappingProxyType(shortfalls))


def _nowhere(destination: Destination | None) -> Limit | None:
    """Why a destination cannot be paid to now."""
    if destination is None:
        return Limit.NO_DESTINATION
    match destination.state:
        case DestinationState.PENDING_VERIFICATION:
            return Limit.DESTINATION_UNVERIFIED
        case DestinationState.VERIFIED:
            if destination.awaits_approval:
                return Limit.DESTINATION_AWAITING_APPROVAL
            return Limit.DESTINATION_WAITING if destination.waits else None
        case DestinationState.UNUSABLE | DestinationState.DISABLED:
            return Limit.DESTINATION_UNUSABLE


def amount_to_pay(asked: int | None, funds: Funds, terms: Terms, destination: Destination | None) -> int:
    """What leaves the wallet for a payout that is accepted now: what was asked for, or whatever can be paid. Only the hold makes sure of it.

    Raises AMOUNT_OUT_OF_RANGE (below the minimum, or not above the fee), STATE_FORBIDS (frozen), DESTINATION_UNUSABLE, INSUFFICIENT_FUNDS.
    """
    if asked is not None and (asked < terms.minimum_amount or asked <= terms.fee):
        message = "amount must be at least the minimum amount, and more than the fee; PreviewPayout shows both."
        raise Refused(Reason.AMOUNT_OUT_OF_RANGE, message, field="amount")
    can = payable(funds, terms, destination)
    limits = {"limits": ",".join(can.shortfalls)}
    if Limit.FROZEN in can.shortfalls:
        raise Refused(Reason.STATE_FORBIDS, "The wallet is FROZEN and cannot be paid out.", metadata={"state": "FROZEN", "verb": "PAY_OUT", **limits})
    if not _NOWHERE.isdisjoint(can.shortfalls):
        raise Refused(Reason.DESTINATION_UNUSABLE, "The seller has no destination that can be paid to now.", metadata=limits)
    amount = can.amount if asked is None else asked
    if not 0 < amount <= can.amount:
        what = "Nothing can be paid now" if asked is None else "Less can be paid than is asked for"
        raise Refused(Reason.INSUFFICIENT_FUNDS, f"{what}; PreviewPayout tells why.", metadata=limits)
    return amount

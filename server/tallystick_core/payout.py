"""Pay-out: what a payout is made of, and the table of its states."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from tallystick_core.canonical import fingerprint
from tallystick_core.identifier import parse_id
from tallystick_core.provider import Declined, InTransit, NotSent, PayoutFailure, Returned, Submitted, Succeeded, Unknown
from tallystick_core.refusal import Reason, Refused
from tallystick_core.table import Verb, moved

MOST_PAYOUTS = 1000
"""The most payouts of a batch that is a list."""
MADE = "r-"
_PAYOUT, _DESTINATION = "p-", "d-"


class PayoutState(StrEnum):
    """How far a payout has come."""

    CREATED = "CREATED"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    READY = "READY"
    SUBMITTING = "SUBMITTING"
    SUBMITTED = "SUBMITTED"
    IN_TRANSIT = "IN_TRANSIT"
    PAID = "PAID"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"
    RETURNED = "RETURNED"


class Happening(StrEnum):
    """What can happen to a payout: the wallet's verdicts, what people decide, the provider's answers, and that it is settled."""

    FUNDS_HELD = "FUNDS_HELD"
    HELD_FOR_APPROVAL = "HELD_FOR_APPROVAL"
    """Its money is held, and its amount is above the threshold."""
    HOLD_REFUSED = "HOLD_REFUSED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"
    DESTINATION_ENDED = "DESTINATION_ENDED"
    """Its destination is UNUSABLE or DISABLED, and it has not been sent."""
    SENDING = "SENDING"
    """An attempt was committed: from here on the provider may have it."""
    SUBMITTED = "SUBMITTED"
    IN_TRANSIT = "IN_TRANSIT"
    SUCCEEDED = "SUCCEEDED"
    RETURNED = "RETURNED"
    DECLINED = "DECLINED"
    NOT_SENT = "NOT_SENT"
    UNKNOWN = "UNKNOWN"
    STRAY = "STRAY"
    """Money was paid, or came back, that fits no move; or the provider tells otherwise than before, which moves nothing."""
    GIVEN_UP = "GIVEN_UP"
    """Sending has been given up, and surely nothing was paid."""
    CLOSED = "CLOSED"
    """An operator has closed it, with evidence that nothing was paid."""
    SETTLED = "SETTLED"


class Cause(StrEnum):
    """Why a payout has a new version, as its history tells it."""

    ACCEPTED = "ACCEPTED"
    FUNDS_HELD = "FUNDS_HELD"
    HOLD_REFUSED = "HOLD_REFUSED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"
    DESTINATION_ENDED = "DESTINATION_ENDED"
    SENDING = "SENDING"
    PROVIDER_ANSWER = "PROVIDER_ANSWER"
    STRAY_TRANSFER = "STRAY_TRANSFER"
    GIVEN_UP = "GIVEN_UP"
    CLOSED_BY_OPERATOR = "CLOSED_BY_OPERATOR"
    SETTLED = "SETTLED"
    ACKNOWLEDGED = "ACKNOWLEDGED"
    """An operator has dealt with a transfer that fits no move, or with a conflicting report. Nothing else changes."""


_S, _H = PayoutState, Happening
MOVES: dict[tuple[PayoutState, Happening], PayoutState] = {
    # moved on by the wallet's answer to its hold, at once; without one it is asked again, since only an answer tells whether money is held
    (_S.CREATED, _H.FUNDS_HELD): _S.READY,
    (_S.CREATED, _H.HELD_FOR_APPROVAL): _S.AWAITING_APPROVAL,
    (_S.CREATED, _H.HOLD_REFUSED): _S.FAILED,
    (_S.CREATED, _H.CANCELLED): _S.CANCELLED,
    # moved on by a person, in their own time; past the threshold an alert is raised
    (_S.AWAITING_APPROVAL, _H.APPROVED): _S.READY,
    (_S.AWAITING_APPROVAL, _H.REJECTED): _S.REJECTED,
    (_S.AWAITING_APPROVAL, _H.CANCELLED): _S.CANCELLED,
    (_S.AWAITING_APPROVAL, _H.DESTINATION_ENDED): _S.CANCELLED,
    # moved on by the prepare stage, at once
    (_S.READY, _H.SENDING): _S.SUBMITTING,
    (_S.READY, _H.CANCELLED): _S.CANCELLED,
    (_S.READY, _H.DESTINATION_ENDED): _S.CANCELLED,
    # moved on by the provider's answer; without a definite one the sweep sends the same key again
    (_S.SUBMITTING, _H.SUBMITTED): _S.SUBMITTED,
    (_S.SUBMITTING, _H.IN_TRANSIT): _S.IN_TRANSIT,
    (_S.SUBMITTING, _H.SUCCEEDED): _S.PAID,
    (_S.SUBMITTING, _H.DECLINED): _S.FAILED,
    (_S.SUBMITTING, _H.NOT_SENT): _S.SUBMITTING,
    (_S.SUBMITTING, _H.UNKNOWN): _S.SUBMITTING,
    (_S.SUBMITTING, _H.GIVEN_UP): _S.FAILED,
    (_S.SUBMITTING, _H.CLOSED): _S.FAILED,
    # moved on by the provider, in its own time: hours
    (_S.SUBMITTED, _H.SUBMITTED): _S.SUBMITTED,
    (_S.SUBMITTED, _H.IN_TRANSIT): _S.IN_TRANSIT,
    (_S.SUBMITTED, _H.SUCCEEDED): _S.PAID,
    (_S.SUBMITTED, _H.DECLINED): _S.FAILED,
    (_S.SUBMITTED, _H.NOT_SENT): _S.SUBMITTED,
    (_S.SUBMITTED, _H.UNKNOWN): _S.SUBMITTED,
    (_S.SUBMITTED, _H.CLOSED): _S.FAILED,
    # moved on by the banks: days; that it was submitted may be told late
    (_S.IN_TRANSIT, _H.SUBMITTED): _S.IN_TRANSIT,
    (_S.IN_TRANSIT, _H.IN_TRANSIT): _S.IN_TRANSIT,
    (_S.IN_TRANSIT, _H.SUCCEEDED): _S.PAID,
    (_S.IN_TRANSIT, _H.DECLINED): _S.FAILED,
    (_S.IN_TRANSIT, _H.NOT_SENT): _S.IN_TRANSIT,
    (_S.IN_TRANSIT, _H.UNKNOWN): _S.IN_TRANSIT,
    (_S.IN_TRANSIT, _H.CLOSED): _S.FAILED,
    # moved on by the seller's bank alone, if at all
    (_S.PAID, _H.RETURNED): _S.RETURNED,
    # its two flags set, by settle; and set again after money moved that fits no move
    (_S.PAID, _H.SETTLED): _S.PAID,
    (_S.FAILED, _H.SETTLED): _S.FAILED,
    (_S.REJECTED, _H.SETTLED): _S.REJECTED,
    (_S.CANCELLED, _H.SETTLED): _S.CANCELLED,
    (_S.RETURNED, _H.SETTLED): _S.RETURNED,
    (_S.PAID, _H.STRAY): _S.PAID,
    (_S.FAILED, _H.STRAY): _S.FAILED,
    (_S.RETURNED, _H.STRAY): _S.RETURNED,
}

VERBS: dict[Happening, Verb] = {
    _H.FUNDS_HELD: Verb("HOLD", "held"),
    _H.HELD_FOR_APPROVAL: Verb("HOLD", "held"),
    _H.HOLD_REFUSED: Verb("REFUSE", "refused"),
    _H.APPROVED: Verb("APPROVE", "approved"),
    _H.REJECTED: Verb("REJECT", "rejected"),
    _H.CANCELLED: Verb("CANCEL", "cancelled"),
    _H.DESTINATION_ENDED: Verb("CANCEL", "cancelled"),
    _H.SENDING: Verb("SEND", "sent"),
    _H.SUBMITTED: Verb("SUBMIT", "submitted"),
    _H.IN_TRANSIT: Verb("SUBMIT", "submitted"),
    _H.SUCCEEDED: Verb("PAY", "paid"),
    _H.RETURNED: Verb("RETURN", "returned"),
    _H.DECLINED: Verb("DECLINE", "declined"),
    _H.NOT_SENT: Verb("SEND", "sent"),
    _H.UNKNOWN: Verb("SEND", "sent"),
    _H.STRAY: Verb("CORRECT", "corrected"),
    _H.GIVEN_UP: Verb("GIVE_UP", "given up"),
    _H.CLOSED: Verb("CLOSE", "closed"),
    _H.SETTLED: Verb("SETTLE", "settled"),
}
"""What each happening does to a payout, as refusals name it."""

HELD = frozenset({_S.AWAITING_APPROVAL, _S.READY, _S.SUBMITTING, _S.SUBMITTED, _S.IN_TRANSIT})
"""O1: the wallet has an open hold of its amount."""
CAPTURED = frozenset({_S.PAID, _S.RETURNED})
"""O1: its hold is captured, once it is settled."""
GIVEN_BACK = frozenset({_S.FAILED, _S.REJECTED, _S.CANCELLED})
"""Its hold is released, once it is settled; one that FAILED for want of money never had any."""
UNSENT = frozenset({_S.AWAITING_APPROVAL, _S.READY})
"""Its money is held, and nothing was sent: it can be CANCELLED."""
AT_REST = CAPTURED | GIVEN_BACK
"""Nothing is expected any more; PAID may still be RETURNED."""
MAYBE_SENT = frozenset({_S.SUBMITTING, _S.SUBMITTED, _S.IN_TRANSIT, _S.FAILED}) | CAPTURED
"""The provider may tell of it."""
WATCHED = MAYBE_SENT & AT_REST
"""Money may still move: it comes back, in parts, or was paid after all."""

ALERT_AFTER: Mapping[str, float] = {
    "MOVING": 600.0,
    "AWAITING_APPROVAL": 86_400.0,
    "SUBMITTED": 86_400.0,
    "IN_TRANSIT": 432_000.0,
    "VERIFYING": 259_200.0,
    "COLLECTING": 3_600.0,
}
"""Seconds that a payout may rest in a state before a person should know.

MOVING: in any other, or at its end until it is settled; VERIFYING: a destination; COLLECTING: a batch.
"""

HAPPENINGS: dict[type, Happening] = {
    Submitted: Happening.SUBMITTED,
    InTransit: Happening.IN_TRANSIT,
    Succeeded: Happening.SUCCEEDED,
    Returned: Happening.RETURNED,
    Declined: Happening.DECLINED,
    NotSent: Happening.NOT_SENT,
    Unknown: Happening.UNKNOWN,
}


def move(state: PayoutState, happening: Happening) -> PayoutState:
    """The state after. Raises STATE_FORBIDS for what cannot happen to a payout in that state."""
    return moved(MOVES, VERBS, state, happening, "payout")


@dataclass(frozen=True, slots=True)
class NewPayout:
    """What the caller asked for, parsed. `amount` in minor units; None: whatever can be paid when it is accepted."""

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
        """What makes two payouts the same: what was asked for, never what was found to be payable."""
        amount = "" if self.amount is None else self.amount
        return (self.payout_id, self.owner, self.seller_account, amount, self.currency, self.payout_destination_id)

    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values, however they were written."""
        return fingerprint(*self.values())


@dataclass(frozen=True, slots=True)
class NewDestination:
    """A bank account to be registered, parsed."""

    payout_destination_id: str
    caller: str
    owner: str
    seller_account: str
    currency: str
    bank_account_token: str
    description: str = ""

    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values."""
        who = (self.payout_destination_id, self.owner, self.seller_account, self.currency)
        return fingerprint(*who, self.bank_account_token, self.description)


def first_difference(sent: NewPayout, stored: NewPayout) -> str:
    """The contract's name of the first field in which two payouts of one id differ, in the order of the request."""
    names = ("seller_account", "amount", "currency", "payout_destination_id")
    return next((name for name in names if getattr(sent, name) != getattr(stored, name)), "payout_id")


def payout_demand(payout_id: str) -> str:
    """What a provider's key names of a payout; see `provider_key`."""
    return f"{_PAYOUT}{payout_id}"


def payout_hold_id(payout_id: str) -> str:
    """The id of a payout's hold in the wallet, in the namespace that is for payouts alone."""
    return f"payouts/{payout_id}"


def destination_demand(payout_destination_id: str) -> str:
    """The demand to verify a destination."""
    return f"{_DESTINATION}{payout_destination_id}"


def demanded(demand_ids: Collection[str]) -> tuple[list[str], list[str]]:
    """The ids of the payouts, and those of the destinations, that are demanded."""
    payouts = [id_.removeprefix(_PAYOUT) for id_ in demand_ids if id_.startswith(_PAYOUT)]
    return payouts, [id_.removeprefix(_DESTINATION) for id_ in demand_ids if id_.startswith(_DESTINATION)]


def parse_payout_id(text: str, field: str = "payout_id") -> str:
    """A caller's id of a payout; those that runs make are the platform's. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REFUSED."""
    if text.startswith(MADE):
        raise Refused(Reason.FIELD_INVALID, f"{field} must not begin with {MADE}: such ids are the platform's.", field=field)
    return parse_id(text, field)


def needs_approval(amount: int, currency: str, thresholds: Mapping[str, int]) -> bool:
    """Whether a second person has to approve: the amount that leaves the wallet is above its currency's threshold; without one, none has to."""
    return currency in thresholds and amount > thresholds[currency]


def require_second_person(approver: str, creator: str) -> None:
    """Raises SECOND_PERSON_REQUIRED where the approver is the creator."""
    if approver == creator:
        raise Refused(Reason.SECOND_PERSON_REQUIRED, "Somebody else than its creator has to approve it.")


def hold_failure(reason: Reason) -> PayoutFailure | None:
    """Why a payout fails whose hold the wallet refused; None: the refusal is a fault of ours, and says nothing about the seller's money."""
    match reason:
        case Reason.INSUFFICIENT_FUNDS | Reason.NOT_FOUND:  # no wallet: nothing was ever sold
            return PayoutFailure.INSUFFICIENT_FUNDS
        case Reason.STATE_FORBIDS:
            return PayoutFailure.WALLET_FROZEN
        case _:
            return None

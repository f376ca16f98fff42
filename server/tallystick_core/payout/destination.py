"""Payout destinations: their states, and what makes one usable."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.fingerprint import fingerprint
from tallystick_core.provider.outcome import (
    Declined,
    NotSent,
    PayoutFailure,
    PayoutOutcome,
    Pending,
    Returned,
    Unknown,
    Verified,
)
from tallystick_core.state_machine import Verb, invalid_state_error, next_state


class DestinationState(StrEnum):
    """Where a destination is."""

    PENDING_VERIFICATION = "PENDING_VERIFICATION"
    VERIFIED = "VERIFIED"
    UNUSABLE = "UNUSABLE"
    DISABLED = "DISABLED"


class DestinationTrigger(StrEnum):
    """What can happen to a destination: the answers to its verification, what its payouts show, and
    what people decide.
    """

    VERIFIED = "VERIFIED"
    DECLINED = "DECLINED"
    PENDING = "PENDING"
    NOT_SENT = "NOT_SENT"
    UNKNOWN = "UNKNOWN"
    ACCOUNT_REJECTED = "ACCOUNT_REJECTED"
    """A payout to it was declined or came back, and the account is at fault."""
    DISABLED = "DISABLED"
    CLOSED = "CLOSED"
    """An operator has closed it, whose verification had been asked for in vain."""


_S, _T = DestinationState, DestinationTrigger
DESTINATION_TRANSITIONS: dict[tuple[DestinationState, DestinationTrigger], DestinationState] = {
    # moved on by the provider, at once or after its review; asked now and then
    (_S.PENDING_VERIFICATION, _T.VERIFIED): _S.VERIFIED,
    (_S.PENDING_VERIFICATION, _T.DECLINED): _S.UNUSABLE,
    (_S.PENDING_VERIFICATION, _T.PENDING): _S.PENDING_VERIFICATION,
    (_S.PENDING_VERIFICATION, _T.NOT_SENT): _S.PENDING_VERIFICATION,
    (_S.PENDING_VERIFICATION, _T.UNKNOWN): _S.PENDING_VERIFICATION,
    (_S.PENDING_VERIFICATION, _T.DISABLED): _S.DISABLED,
    (_S.PENDING_VERIFICATION, _T.CLOSED): _S.UNUSABLE,
    # rests here
    (_S.VERIFIED, _T.ACCOUNT_REJECTED): _S.UNUSABLE,
    (_S.VERIFIED, _T.DISABLED): _S.DISABLED,
    # payouts that were sent before may still show it
    (_S.UNUSABLE, _T.ACCOUNT_REJECTED): _S.UNUSABLE,
    (_S.DISABLED, _T.ACCOUNT_REJECTED): _S.DISABLED,
}

DESTINATION_VERBS: dict[DestinationTrigger, Verb] = {
    _T.VERIFIED: Verb("VERIFY", "verified"),
    _T.DECLINED: Verb("DECLINE", "declined"),
    _T.PENDING: Verb("VERIFY", "verified"),
    _T.NOT_SENT: Verb("VERIFY", "verified"),
    _T.UNKNOWN: Verb("VERIFY", "verified"),
    _T.ACCOUNT_REJECTED: Verb("REFUSE", "refused"),
    _T.DISABLED: Verb("DISABLE", "disabled"),
    _T.CLOSED: Verb("CLOSE", "closed"),
}
"""What each happening does to a destination, as refusals name it."""
_APPROVE = Verb("APPROVE", "approved")

TERMINAL_DESTINATION_STATES = frozenset({DestinationState.UNUSABLE, DestinationState.DISABLED})
"""Never the current one; the current one is the newest of the others that can be paid to."""

DESTINATION_TRIGGERS: dict[type, DestinationTrigger] = {
    Verified: DestinationTrigger.VERIFIED,
    Declined: DestinationTrigger.DECLINED,
    Pending: DestinationTrigger.PENDING,
    NotSent: DestinationTrigger.NOT_SENT,
    Unknown: DestinationTrigger.UNKNOWN,
}


def transition_destination(
    state: DestinationState, trigger: DestinationTrigger
) -> DestinationState:
    """The state after. Raises INVALID_STATE for what cannot happen to a destination in that
    state.
    """
    return next_state(
        DESTINATION_TRANSITIONS, DESTINATION_VERBS, state, trigger, "payout destination"
    )


def is_account_rejected(outcome: PayoutOutcome) -> bool:
    """Whether an answer shows that the destination cannot be paid to any more."""
    match outcome:
        case Declined(reason=PayoutFailure.DESTINATION_REJECTED):
            return True
        case Returned():
            return outcome.account_rejected
        case _:
            return False


def require_approvable(state: DestinationState, *, awaits_approval: bool) -> None:
    """Raises INVALID_STATE for a destination that has ended, or awaits no approval."""
    if state in TERMINAL_DESTINATION_STATES:
        raise invalid_state_error("destination", state, _APPROVE)
    if not awaits_approval:
        message = f"The destination is {state} and cannot be approved: it awaits no approval."
        raise ApiError(
            ErrorReason.INVALID_STATE, message, metadata={"state": state, "verb": _APPROVE.name}
        )


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
        identity = (self.payout_destination_id, self.owner, self.seller_account, self.currency)
        return fingerprint(*identity, self.bank_account_token, self.description)

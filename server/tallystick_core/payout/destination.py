"""Payout destinations: their states, and when they can be used."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tallystick_core.errors import state_error
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
    """The state of a destination."""

    PENDING_VERIFICATION = "PENDING_VERIFICATION"
    VERIFIED = "VERIFIED"
    UNUSABLE = "UNUSABLE"
    DISABLED = "DISABLED"


class DestinationTrigger(StrEnum):
    """The triggers of a destination: verification outcomes, results of its payouts, and decisions
    of callers and operators.
    """

    VERIFIED = "VERIFIED"
    DECLINED = "DECLINED"
    PENDING = "PENDING"
    NOT_SENT = "NOT_SENT"
    UNKNOWN = "UNKNOWN"
    ACCOUNT_REJECTED = "ACCOUNT_REJECTED"
    """A payout to it was declined or returned because of the account."""
    DISABLED = "DISABLED"
    CLOSED = "CLOSED"
    """An operator has closed it because its verification gave no result."""


_S, _T = DestinationState, DestinationTrigger
DESTINATION_TRANSITIONS: dict[tuple[DestinationState, DestinationTrigger], DestinationState] = {
    # triggered by the provider, immediately or after its review; polled until then
    (_S.PENDING_VERIFICATION, _T.VERIFIED): _S.VERIFIED,
    (_S.PENDING_VERIFICATION, _T.DECLINED): _S.UNUSABLE,
    (_S.PENDING_VERIFICATION, _T.PENDING): _S.PENDING_VERIFICATION,
    (_S.PENDING_VERIFICATION, _T.NOT_SENT): _S.PENDING_VERIFICATION,
    (_S.PENDING_VERIFICATION, _T.UNKNOWN): _S.PENDING_VERIFICATION,
    (_S.PENDING_VERIFICATION, _T.DISABLED): _S.DISABLED,
    (_S.PENDING_VERIFICATION, _T.CLOSED): _S.UNUSABLE,
    # current until its account is rejected or it is disabled
    (_S.VERIFIED, _T.ACCOUNT_REJECTED): _S.UNUSABLE,
    (_S.VERIFIED, _T.DISABLED): _S.DISABLED,
    # payouts sent earlier may still report it
    (_S.UNUSABLE, _T.ACCOUNT_REJECTED): _S.UNUSABLE,
    (_S.DISABLED, _T.ACCOUNT_REJECTED): _S.DISABLED,
}

DESTINATION_VERBS: dict[DestinationTrigger, Verb] = {
    _T.VERIFIED: Verb("VERIFY", "verified"),
    _T.DECLINED: Verb("DECLINE", "declined"),
    _T.PENDING: Verb("VERIFY", "verified"),
    _T.NOT_SENT: Verb("VERIFY", "verified"),
    _T.UNKNOWN: Verb("VERIFY", "verified"),
    _T.ACCOUNT_REJECTED: Verb("REJECT", "rejected"),
    _T.DISABLED: Verb("DISABLE", "disabled"),
    _T.CLOSED: Verb("CLOSE", "closed"),
}
"""What each trigger does to a destination, as errors name it."""
_APPROVE = Verb("APPROVE", "approved")

TERMINAL_DESTINATION_STATES = frozenset({DestinationState.UNUSABLE, DestinationState.DISABLED})
"""Destinations in these states are never current. The current destination is the newest of the
others that can be paid to.
"""

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
    """The next state. Raises INVALID_STATE if the state does not allow the trigger."""
    return next_state(
        DESTINATION_TRANSITIONS, DESTINATION_VERBS, state, trigger, "payout destination"
    )


def is_account_rejected(outcome: PayoutOutcome) -> bool:
    """Whether an outcome shows that the destination can no longer be paid to."""
    match outcome:
        case Declined(reason=PayoutFailure.DESTINATION_REJECTED):
            return True
        case Returned():
            return outcome.account_rejected
        case _:
            return False


def require_approvable(state: DestinationState, *, awaits_approval: bool) -> None:
    """Raises INVALID_STATE for a destination that is final or awaits no approval."""
    if state in TERMINAL_DESTINATION_STATES:
        raise invalid_state_error("destination", state, _APPROVE)
    if not awaits_approval:
        message = f"The destination is {state} and cannot be approved: it awaits no approval."
        raise state_error(message, state, _APPROVE.name)


@dataclass(frozen=True, slots=True)
class NewDestination:
    """A parsed request to register a bank account."""

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

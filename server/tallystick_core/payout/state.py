"""The states of a payout, and the transitions between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    NotSent,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
)
from tallystick_core.state_machine import Verb, next_state


class PayoutState(StrEnum):
    """The state of a payout."""

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


class PayoutTrigger(StrEnum):
    """The triggers of a payout: wallet results, decisions of callers and operators, provider
    outcomes and booking.
    """

    FUNDS_HELD = "FUNDS_HELD"
    HELD_FOR_APPROVAL = "HELD_FOR_APPROVAL"
    """Its money is held, and its amount is above the approval threshold."""
    HOLD_REJECTED = "HOLD_REJECTED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"
    DESTINATION_ENDED = "DESTINATION_ENDED"
    """Its destination is UNUSABLE or DISABLED, and the payout has not been sent."""
    SENDING = "SENDING"
    """An attempt was committed. From now on the provider may have received it."""
    SUBMITTED = "SUBMITTED"
    IN_TRANSIT = "IN_TRANSIT"
    SUCCEEDED = "SUCCEEDED"
    RETURNED = "RETURNED"
    DECLINED = "DECLINED"
    NOT_SENT = "NOT_SENT"
    UNKNOWN = "UNKNOWN"
    UNMATCHED_TRANSFER = "UNMATCHED_TRANSFER"
    """A transfer or return that matches no transition, or a conflicting report, which moves no
    money.
    """
    GIVEN_UP = "GIVEN_UP"
    """Sending was given up, and it is certain that nothing was paid."""
    CLOSED = "CLOSED"
    """An operator closed it with evidence that nothing was paid."""
    BOOKED = "BOOKED"


class PayoutTransitionReason(StrEnum):
    """Why a payout has a new version, as shown in its history."""

    CREATED = "CREATED"
    FUNDS_HELD = "FUNDS_HELD"
    HOLD_REJECTED = "HOLD_REJECTED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"
    DESTINATION_ENDED = "DESTINATION_ENDED"
    SENDING = "SENDING"
    PROVIDER_OUTCOME = "PROVIDER_OUTCOME"
    UNMATCHED_TRANSFER = "UNMATCHED_TRANSFER"
    GIVEN_UP = "GIVEN_UP"
    CLOSED_BY_OPERATOR = "CLOSED_BY_OPERATOR"
    BOOKED = "BOOKED"
    ACKNOWLEDGED = "ACKNOWLEDGED"
    """An operator has handled an unmatched transfer or a conflicting report. Nothing else
    changes.
    """


_S, _T = PayoutState, PayoutTrigger
TRANSITIONS: dict[tuple[PayoutState, PayoutTrigger], PayoutState] = {
    # triggered by the wallet's answer to the hold, immediately; without an answer the worker
    # requests the hold again, because only an answer shows whether money is held
    (_S.CREATED, _T.FUNDS_HELD): _S.READY,
    (_S.CREATED, _T.HELD_FOR_APPROVAL): _S.AWAITING_APPROVAL,
    (_S.CREATED, _T.HOLD_REJECTED): _S.FAILED,
    (_S.CREATED, _T.CANCELLED): _S.CANCELLED,
    # triggered by a person, in their own time; an alert is raised after the threshold
    (_S.AWAITING_APPROVAL, _T.APPROVED): _S.READY,
    (_S.AWAITING_APPROVAL, _T.REJECTED): _S.REJECTED,
    (_S.AWAITING_APPROVAL, _T.CANCELLED): _S.CANCELLED,
    (_S.AWAITING_APPROVAL, _T.DESTINATION_ENDED): _S.CANCELLED,
    # triggered by the worker before it sends, immediately
    (_S.READY, _T.SENDING): _S.SUBMITTING,
    (_S.READY, _T.CANCELLED): _S.CANCELLED,
    (_S.READY, _T.DESTINATION_ENDED): _S.CANCELLED,
    # triggered by the provider's outcome; if it is indefinite, the worker sends the same key again
    (_S.SUBMITTING, _T.SUBMITTED): _S.SUBMITTED,
    (_S.SUBMITTING, _T.IN_TRANSIT): _S.IN_TRANSIT,
    (_S.SUBMITTING, _T.SUCCEEDED): _S.PAID,
    (_S.SUBMITTING, _T.DECLINED): _S.FAILED,
    (_S.SUBMITTING, _T.NOT_SENT): _S.SUBMITTING,
    (_S.SUBMITTING, _T.UNKNOWN): _S.SUBMITTING,
    (_S.SUBMITTING, _T.GIVEN_UP): _S.FAILED,
    (_S.SUBMITTING, _T.CLOSED): _S.FAILED,
    # triggered by the provider, within hours
    (_S.SUBMITTED, _T.SUBMITTED): _S.SUBMITTED,
    (_S.SUBMITTED, _T.IN_TRANSIT): _S.IN_TRANSIT,
    (_S.SUBMITTED, _T.SUCCEEDED): _S.PAID,
    (_S.SUBMITTED, _T.DECLINED): _S.FAILED,
    (_S.SUBMITTED, _T.NOT_SENT): _S.SUBMITTED,
    (_S.SUBMITTED, _T.UNKNOWN): _S.SUBMITTED,
    (_S.SUBMITTED, _T.CLOSED): _S.FAILED,
    # triggered by the banks, within days; SUBMITTED may be reported late
    (_S.IN_TRANSIT, _T.SUBMITTED): _S.IN_TRANSIT,
    (_S.IN_TRANSIT, _T.IN_TRANSIT): _S.IN_TRANSIT,
    (_S.IN_TRANSIT, _T.SUCCEEDED): _S.PAID,
    (_S.IN_TRANSIT, _T.DECLINED): _S.FAILED,
    (_S.IN_TRANSIT, _T.NOT_SENT): _S.IN_TRANSIT,
    (_S.IN_TRANSIT, _T.UNKNOWN): _S.IN_TRANSIT,
    (_S.IN_TRANSIT, _T.CLOSED): _S.FAILED,
    # triggered by the seller's bank alone, if at all
    (_S.PAID, _T.RETURNED): _S.RETURNED,
    # triggered by booking, which sets the two flags; booking runs again after an unmatched transfer
    (_S.PAID, _T.BOOKED): _S.PAID,
    (_S.FAILED, _T.BOOKED): _S.FAILED,
    (_S.REJECTED, _T.BOOKED): _S.REJECTED,
    (_S.CANCELLED, _T.BOOKED): _S.CANCELLED,
    (_S.RETURNED, _T.BOOKED): _S.RETURNED,
    (_S.PAID, _T.UNMATCHED_TRANSFER): _S.PAID,
    (_S.FAILED, _T.UNMATCHED_TRANSFER): _S.FAILED,
    (_S.RETURNED, _T.UNMATCHED_TRANSFER): _S.RETURNED,
}

VERBS: dict[PayoutTrigger, Verb] = {
    _T.FUNDS_HELD: Verb("HOLD", "held"),
    _T.HELD_FOR_APPROVAL: Verb("HOLD", "held"),
    _T.HOLD_REJECTED: Verb("REJECT", "rejected"),
    _T.APPROVED: Verb("APPROVE", "approved"),
    _T.REJECTED: Verb("REJECT", "rejected"),
    _T.CANCELLED: Verb("CANCEL", "cancelled"),
    _T.DESTINATION_ENDED: Verb("CANCEL", "cancelled"),
    _T.SENDING: Verb("SEND", "sent"),
    _T.SUBMITTED: Verb("SUBMIT", "submitted"),
    _T.IN_TRANSIT: Verb("SUBMIT", "submitted"),
    _T.SUCCEEDED: Verb("PAY", "paid"),
    _T.RETURNED: Verb("RETURN", "returned"),
    _T.DECLINED: Verb("DECLINE", "declined"),
    _T.NOT_SENT: Verb("SEND", "sent"),
    _T.UNKNOWN: Verb("SEND", "sent"),
    _T.UNMATCHED_TRANSFER: Verb("CORRECT", "corrected"),
    _T.GIVEN_UP: Verb("GIVE_UP", "given up"),
    _T.CLOSED: Verb("CLOSE", "closed"),
    _T.BOOKED: Verb("BOOK", "booked"),
}
"""What each trigger does to a payout, as errors name it."""

HOLD_OPEN = frozenset({_S.AWAITING_APPROVAL, _S.READY, _S.SUBMITTING, _S.SUBMITTED, _S.IN_TRANSIT})
"""The wallet has an open hold of the payout's amount: invariant O1
(docs/reference/invariants.md).
"""
HOLD_CAPTURED = frozenset({_S.PAID, _S.RETURNED})
"""The hold is captured once the payout is booked: invariant O1 (docs/reference/invariants.md)."""
HOLD_RELEASED = frozenset({_S.FAILED, _S.REJECTED, _S.CANCELLED})
"""The hold is released once the payout is booked. A payout that FAILED for insufficient funds never
had a hold.
"""
HELD_UNSENT_STATES = frozenset({_S.AWAITING_APPROVAL, _S.READY})
"""Its money is held and nothing was sent: it can be CANCELLED."""
TERMINAL_STATES = HOLD_CAPTURED | HOLD_RELEASED
"""No further transition is expected; PAID may still become RETURNED."""
POSSIBLY_SENT = frozenset({_S.SUBMITTING, _S.SUBMITTED, _S.IN_TRANSIT, _S.FAILED}) | HOLD_CAPTURED
"""The provider may report on payouts in these states."""
POLLED_AFTER_COMPLETION = POSSIBLY_SENT & TERMINAL_STATES
"""Money may still move: a return, a partial return, or a late transfer."""

ALERT_AFTER_SECONDS: Mapping[str, float] = {
    "MOVING": 600.0,
    "AWAITING_APPROVAL": 86_400.0,
    "SUBMITTED": 86_400.0,
    "IN_TRANSIT": 432_000.0,
    "VERIFYING": 259_200.0,
    "GENERATING": 3_600.0,
}
"""Seconds that a payout may remain in a state before an alert is raised.

MOVING: any other state, and a final state until booking; VERIFYING: a destination; GENERATING: a
batch.
"""

TRIGGERS: dict[type, PayoutTrigger] = {
    Submitted: PayoutTrigger.SUBMITTED,
    InTransit: PayoutTrigger.IN_TRANSIT,
    Succeeded: PayoutTrigger.SUCCEEDED,
    Returned: PayoutTrigger.RETURNED,
    Declined: PayoutTrigger.DECLINED,
    NotSent: PayoutTrigger.NOT_SENT,
    Unknown: PayoutTrigger.UNKNOWN,
}


def transition(state: PayoutState, trigger: PayoutTrigger) -> PayoutState:
    """The next state. Raises INVALID_STATE if the state does not allow the trigger."""
    return next_state(TRANSITIONS, VERBS, state, trigger, "payout")

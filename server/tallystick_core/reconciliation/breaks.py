"""Breaks: what statements and ledger do not agree on, who deals with it, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tallystick_core.state_machine import Verb, next_state


class BreakClass(StrEnum):
    """Who deals with a break."""

    AUTOMATIC = "AUTOMATIC"
    """The cause is known, and the platform resolves it."""
    FINANCE = "FINANCE"
    """The cause is known, and finance resolves it."""
    INVESTIGATION = "INVESTIGATION"
    """The cause is not known."""


class BreakKind(StrEnum):
    """What differs. The names are those of `tallystick.reconciliation.v1`, which describes each."""

    CHARGE_NOT_BOOKED = "CHARGE_NOT_BOOKED"
    CHARGE_UNKNOWN = "CHARGE_UNKNOWN"
    PAYOUT_NOT_BOOKED = "PAYOUT_NOT_BOOKED"
    PAYOUT_UNKNOWN = "PAYOUT_UNKNOWN"
    ROUNDING = "ROUNDING"
    AMOUNT_DIFFERS = "AMOUNT_DIFFERS"
    CURRENCY_DIFFERS = "CURRENCY_DIFFERS"
    SIGN_DIFFERS = "SIGN_DIFFERS"
    DATE_DIFFERS = "DATE_DIFFERS"
    FEE_DIFFERS = "FEE_DIFFERS"
    DUPLICATE_LINE = "DUPLICATE_LINE"
    LINE_CORRECTED = "LINE_CORRECTED"
    REFUND_NOT_BOOKED = "REFUND_NOT_BOOKED"
    DISPUTE_NOT_BOOKED = "DISPUTE_NOT_BOOKED"
    RESERVE = "RESERVE"
    TRANSFER = "TRANSFER"
    CONVERSION = "CONVERSION"
    PROVIDER_ADJUSTMENT = "PROVIDER_ADJUSTMENT"
    SETTLEMENT_FAILED = "SETTLEMENT_FAILED"
    BANK_ENTRY_UNKNOWN = "BANK_ENTRY_UNKNOWN"
    LINE_UNKNOWN = "LINE_UNKNOWN"
    MISSING_IN_FILE = "MISSING_IN_FILE"
    BALANCE_GAP = "BALANCE_GAP"
    BALANCE_DIFFERS = "BALANCE_DIFFERS"
    LEDGER_UNBALANCED = "LEDGER_UNBALANCED"
    WALLET_DIFFERS = "WALLET_DIFFERS"
    ORDER_DIFFERS = "ORDER_DIFFERS"
    HOLD_DIFFERS = "HOLD_DIFFERS"


@dataclass(frozen=True, slots=True)
class BreakRule:
    """What breaks of a kind are: data, of which each version has an author."""

    kind: BreakKind
    version: int
    break_class: BreakClass
    limit: int = 0
    """ROUNDING: the largest difference, in minor units. DATE_DIFFERS, MISSING_IN_FILE: days.
    FEE_DIFFERS: percent of the charge. 0 for all other kinds.
    """


_AUTOMATIC, _FINANCE = BreakClass.AUTOMATIC, BreakClass.FINANCE
_INVESTIGATION = BreakClass.INVESTIGATION
BUILT_IN_RULES: tuple[BreakRule, ...] = (
    BreakRule(BreakKind.CHARGE_NOT_BOOKED, 1, _AUTOMATIC),
    BreakRule(BreakKind.CHARGE_UNKNOWN, 1, _INVESTIGATION),
    BreakRule(BreakKind.PAYOUT_NOT_BOOKED, 1, _AUTOMATIC),
    BreakRule(BreakKind.PAYOUT_UNKNOWN, 1, _INVESTIGATION),
    BreakRule(BreakKind.ROUNDING, 1, _AUTOMATIC, limit=1),
    BreakRule(BreakKind.AMOUNT_DIFFERS, 1, _FINANCE),
    BreakRule(BreakKind.CURRENCY_DIFFERS, 1, _INVESTIGATION),
    BreakRule(BreakKind.SIGN_DIFFERS, 1, _INVESTIGATION),
    BreakRule(BreakKind.DATE_DIFFERS, 1, _FINANCE, limit=10),
    BreakRule(BreakKind.FEE_DIFFERS, 1, _FINANCE, limit=50),
    BreakRule(BreakKind.DUPLICATE_LINE, 1, _INVESTIGATION),
    BreakRule(BreakKind.LINE_CORRECTED, 1, _FINANCE),
    BreakRule(BreakKind.REFUND_NOT_BOOKED, 1, _FINANCE),
    BreakRule(BreakKind.DISPUTE_NOT_BOOKED, 1, _FINANCE),
    BreakRule(BreakKind.RESERVE, 1, _FINANCE),
    BreakRule(BreakKind.TRANSFER, 1, _FINANCE),
    BreakRule(BreakKind.CONVERSION, 1, _FINANCE),
    BreakRule(BreakKind.PROVIDER_ADJUSTMENT, 1, _FINANCE),
    BreakRule(BreakKind.SETTLEMENT_FAILED, 1, _FINANCE),
    BreakRule(BreakKind.BANK_ENTRY_UNKNOWN, 1, _INVESTIGATION),
    BreakRule(BreakKind.LINE_UNKNOWN, 1, _INVESTIGATION),
    BreakRule(BreakKind.MISSING_IN_FILE, 1, _INVESTIGATION, limit=5),
    BreakRule(BreakKind.BALANCE_GAP, 1, _FINANCE),
    BreakRule(BreakKind.BALANCE_DIFFERS, 1, _FINANCE),
    BreakRule(BreakKind.LEDGER_UNBALANCED, 1, _INVESTIGATION),
    BreakRule(BreakKind.WALLET_DIFFERS, 1, _INVESTIGATION),
    BreakRule(BreakKind.ORDER_DIFFERS, 1, _INVESTIGATION),
    BreakRule(BreakKind.HOLD_DIFFERS, 1, _INVESTIGATION),
)
"""The first version of each rule."""
KINDS_WITH_REMEDY = frozenset(
    rule.kind for rule in BUILT_IN_RULES if rule.break_class is BreakClass.AUTOMATIC
)
"""What the platform can resolve; only their rules can be AUTOMATIC."""
MAX_LIMITS: Mapping[BreakKind, int] = {
    BreakKind.ROUNDING: 100,
    BreakKind.DATE_DIFFERS: 60,
    BreakKind.FEE_DIFFERS: 100,
    BreakKind.MISSING_IN_FILE: 365,
}
"""The largest limit of each kind that has one: a larger one would switch the check off."""
KINDS_WITH_LIMIT = frozenset(MAX_LIMITS)
KINDS_THAT_WAIT = frozenset({BreakKind.CHARGE_NOT_BOOKED, BreakKind.PAYOUT_NOT_BOOKED})
"""They end by themselves once the ledger has what the file has."""
KINDS_ENDED_BY_BOOKING = KINDS_THAT_WAIT | {BreakKind.CHARGE_UNKNOWN, BreakKind.PAYOUT_UNKNOWN}
"""They end once the ledger has an entry with their reference, also if they were not waiting. The
provider is asked about those that have an id of ours.
"""
KINDS_ENDED_BY_ENTRIES = KINDS_ENDED_BY_BOOKING | {BreakKind.BANK_ENTRY_UNKNOWN}
"""As KINDS_ENDED_BY_BOOKING, of providers and of banks."""
KINDS_OF_BALANCES = frozenset(
    {
        BreakKind.BALANCE_GAP,
        BreakKind.BALANCE_DIFFERS,
        BreakKind.LEDGER_UNBALANCED,
        BreakKind.WALLET_DIFFERS,
        BreakKind.ORDER_DIFFERS,
        BreakKind.HOLD_DIFFERS,
    }
)
"""They have neither lines nor entries, so nothing can be posted for them."""
Rules = Mapping[BreakKind, BreakRule]


class BreakState(StrEnum):
    """The state of a break."""

    OPEN = "OPEN"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    RESOLVED = "RESOLVED"
    AWAITING_REOPENING = "AWAITING_REOPENING"
    """It is resolved, until a second person approves that it is opened again."""


STATES_WITH_PROPOSAL = frozenset({BreakState.AWAITING_APPROVAL, BreakState.AWAITING_REOPENING})
"""What is proposed waits for a second person."""


class Resolution(StrEnum):
    """How a break is resolved."""

    ADJUST = "ADJUST"
    ACCEPT = "ACCEPT"
    WRITE_OFF = "WRITE_OFF"
    MATCH = "MATCH"


class BreakAction(StrEnum):
    """What is done to a break."""

    FOUND = "FOUND"
    RECLASSIFIED = "RECLASSIFIED"
    """The platform cannot resolve it by itself after all."""
    ASSIGNED = "ASSIGNED"
    COMMENTED = "COMMENTED"
    PROPOSED = "PROPOSED"
    """A resolution that a second person must approve."""
    RESOLVED = "RESOLVED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    REOPENING_PROPOSED = "REOPENING_PROPOSED"
    """A second person must approve it."""
    REOPENED = "REOPENED"


_S, _A = BreakState, BreakAction
BREAK_TRANSITIONS: Mapping[tuple[BreakState, BreakAction], BreakState] = {
    (_S.OPEN, _A.RECLASSIFIED): _S.OPEN,
    (_S.OPEN, _A.ASSIGNED): _S.OPEN,
    (_S.OPEN, _A.COMMENTED): _S.OPEN,
    (_S.OPEN, _A.PROPOSED): _S.AWAITING_APPROVAL,
    (_S.OPEN, _A.RESOLVED): _S.RESOLVED,
    (_S.AWAITING_APPROVAL, _A.ASSIGNED): _S.AWAITING_APPROVAL,
    (_S.AWAITING_APPROVAL, _A.COMMENTED): _S.AWAITING_APPROVAL,
    (_S.AWAITING_APPROVAL, _A.APPROVED): _S.RESOLVED,
    (_S.AWAITING_APPROVAL, _A.REJECTED): _S.OPEN,
    (_S.RESOLVED, _A.COMMENTED): _S.RESOLVED,
    (_S.RESOLVED, _A.REOPENED): _S.OPEN,
    (_S.RESOLVED, _A.REOPENING_PROPOSED): _S.AWAITING_REOPENING,
    (_S.AWAITING_REOPENING, _A.ASSIGNED): _S.AWAITING_REOPENING,
    (_S.AWAITING_REOPENING, _A.COMMENTED): _S.AWAITING_REOPENING,
    (_S.AWAITING_REOPENING, _A.APPROVED): _S.OPEN,
    (_S.AWAITING_REOPENING, _A.REJECTED): _S.RESOLVED,
}
_VERBS = {
    _A.RECLASSIFIED: Verb("RECLASSIFY", "reclassified"),
    _A.ASSIGNED: Verb("ASSIGN", "assigned"),
    _A.COMMENTED: Verb("COMMENT", "commented on"),
    _A.PROPOSED: Verb("RESOLVE", "resolved"),
    _A.RESOLVED: Verb("RESOLVE", "resolved"),
    _A.APPROVED: Verb("APPROVE", "approved"),
    _A.REJECTED: Verb("REJECT", "rejected"),
    _A.REOPENING_PROPOSED: Verb("REOPEN", "opened again"),
    _A.REOPENED: Verb("REOPEN", "opened again"),
}


def next_break_state(state: BreakState, action: BreakAction) -> BreakState:
    """The state after an action. Raises INVALID_STATE."""
    return next_state(BREAK_TRANSITIONS, _VERBS, state, action, "break")
